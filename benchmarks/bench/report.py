"""The whole report: which backends are tried, what is said about all of them, and where it is written."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...commands import report
from ...machine import describe_cuda, describe_machine
from ...runtime.bundle import Bundle
from ...runtime.errors import InputError
from ...runtime.power import Nvml
from ...runtime.video import encode_png, write_bytes
from ...runtime.video.output import check_output
from ..identity import describe_bundle, state
from ..passes import INSIDE_THE_CLOCK, MODE, Clip
from . import summary
from .backends import BACKENDS, Request
from .compare import FORMAT, VERSION, compare, lines, read
from .measure import FAILED, MEASURED, in_own_process, left_out
from .picture import draw

FILES = ("bench.json", "samples.csv", "summary.csv", "table.md", "bench.png")
_DEMO_CLIP = Path(__file__).resolve().parents[2] / "demo" / "clip.mp4"
Measure = Callable[[str, Request], dict[str, Any]]


def bench(
    request: Request, names: Sequence[str], device: str = "all", measure: Measure = in_own_process
) -> dict[str, Any]:
    """Measure the backends `names` one after the other. The report, ready for JSON.

    Args:
        request: what is measured. device: `cpu` or `cuda` leaves the others out.
        measure: what measures one backend.

    Raises:
        BundleError, InputError, VideoError: the bundle or the clip cannot be used by any backend.
    """
    bundle, clip = Bundle.load(request.bundle), Clip(request.clip, request.frames)
    before, nvml = state(), Nvml()
    entries = []
    for backend in BACKENDS:
        if backend.name not in names:
            entries.append(left_out(backend.name, "not among --backends"))
        elif device not in ("all", *backend.devices):
            entries.append(left_out(backend.name, f"--device {device}"))
        else:
            print(f"measuring {backend.title} ...", file=sys.stderr)
            entries.append(measure(backend.name, request))
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "cuda": describe_cuda() | {"nvml_driver": nvml.driver, "nvml": nvml.problem or "available"},
        "software": report.software(*dict.fromkeys(p for b in BACKENDS for p in b.packages)),
        "bundle": describe_bundle(bundle),
        "state": before,
        "protocol": {
            "input": {"uri": clip.uri, "width": clip.width, "height": clip.height, "fps": clip.rate},
            "frames": "all" if request.frames is None else request.frames,
            "gap": bundle.model.key_frame_gap if request.gap is None else request.gap,
            "threads": request.threads or "all cores",
            "warm_up_frames": request.warm_up,
            "paced": request.paced,
            "pytorch_device": request.device,
            "mode": MODE,
            "inside_the_clock": INSIDE_THE_CLOCK + ". Resident memory is read after each frame, inside",
            "processes": "one per backend, one after the other",
        },
        "backends": entries,
    }


def pytorch_device(device: str) -> str:
    """Where PyTorch runs: a GPU unless it sees none, or `cpu` was asked for."""
    if device != "all":
        return device
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def write(result: dict[str, Any], folder: Path) -> None:
    """`FILES` into the folder, each of them whole or not at all."""
    contents = (
        json.dumps(report.finite(result), indent=1) + "\n",
        summary.samples_csv(result),
        summary.summary_csv(result),
        summary.document(result),
    )
    for name, content in zip(FILES, contents, strict=False):
        write_bytes(folder / name, content.encode())
    write_bytes(folder / "bench.png", encode_png(draw(result)))


def main(args: argparse.Namespace) -> int:
    """Runs the command; exit code 2 where a backend failed or none could be measured."""
    earlier = read(args.compare) if args.compare else None  # before minutes of measuring
    clip = args.clip or str(_DEMO_CLIP)
    if args.clip is None and not _DEMO_CLIP.is_file():
        raise InputError("The demo clip is not part of an installed package.", "Give a video with --clip.")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            check_output(args.output / name, force=args.force)
    request = Request(
        bundle=args.bundle,
        clip=clip,
        frames=args.frames,
        gap=args.gap,
        device=pytorch_device(args.device),
        threads=args.threads,
        warm_up=args.warm_up,
        paced=args.paced,
        checkpoint=args.checkpoint,
        preset=args.preset,
        dino=args.dino,
        depth=args.depth,
        lpips=args.lpips,
    )
    result = bench(request, args.backends, args.device)
    if earlier is not None:
        result["comparison"] = compare(result, earlier)
    if args.output:
        write(result, args.output)
    if args.json:
        print(json.dumps(report.finite(result), indent=1))
    else:
        print("\n".join(summary.text(result)))
        if earlier is not None:
            print("\n".join(lines(result["comparison"])))
    statuses = {backend["status"] for backend in result["backends"]}
    return 0 if MEASURED in statuses and FAILED not in statuses else 2
