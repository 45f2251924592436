"""Speed of the whole chain: `python -m streamsplat_edge.benchmarks.fps INPUT --bundle B [--json OUT]`.

Two measurements of the same stream after a warm-up, each over the whole clip:

- as fast as possible: decode, key frames and renders one after the other, decoding ahead in a thread;
- with `--paced FPS`: frames arrive at that rate as from a camera, whether the chain keeps up or not; late
  and dropped frames are counted.

Nothing is written or shown inside the clock, and no sample is removed. The rendered images are kept and
compared with the clip after the clock has stopped, so speed and quality are of the same run. What was not
measured says so.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path
from typing import Any

from .. import option_types
from ..commands import report
from ..machine import describe_machine
from ..runtime.bundle import Bundle
from ..runtime.pipeline import Pipeline
from ..runtime.stream import open_stream
from .identity import NOT_MEASURED, describe_bundle, state
from .memory import peak_mib
from .outcome import carried_out
from .passes import INSIDE_THE_CLOCK, MODE, Clip, free_running, latency_lines, paced, quality, unsteady

FORMAT, VERSION = "streamsplat-fps", 1


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report as a JSON-ready dictionary."""
    bundle = Bundle.load(args.bundle)
    model = bundle.model
    clip = Clip(args.input, args.frames)
    before = state()
    start = time.perf_counter()
    with open_stream(
        bundle, engine=args.engine, device=args.device, threads=args.threads, precision=args.precision
    ) as stream:
        load_seconds = time.perf_counter() - start
        for _ in Pipeline(clip, stream, gap=args.gap, max_frames=args.warm_up):
            pass
        results, kept = free_running(clip, stream, args.gap)
        peak = peak_mib()
        live = paced(clip, stream, args.gap, args.paced) if args.paced else NOT_MEASURED
        stages = stream.description
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "accelerator": "none: everything runs on the CPU" if args.device == "cpu" else args.device,
        "software": report.software(args.engine),
        "bundle": describe_bundle(bundle),
        "stages": stages,
        "state": {"before": before, "after": state()},
        "protocol": {
            "input": {"uri": clip.uri, "width": clip.width, "height": clip.height, "fps": clip.rate},
            "gap": model.key_frame_gap if args.gap is None else args.gap,
            "engine": args.engine,
            "device": args.device,
            "threads": args.threads or "all cores",
            "warm_up_frames": args.warm_up,
            "model_load_seconds": load_seconds,
            "mode": MODE,
            "inside_the_clock": INSIDE_THE_CLOCK,
        },
        **results,
        "paced": live,
        "memory": {
            "peak_mib": round(peak, 1),
            "of_which_kept_images_mib": round(sum(image.rgb.nbytes for image in kept.values()) / 2**20, 1),
            "definition": "largest resident set of the process; rendered images are kept for the PSNR",
        },
        "power_w": NOT_MEASURED,
        "psnr_db": quality(clip, kept, model.height, model.width),
        "unsteady_stages": unsteady(results["latency_ms"]),
    }


def describe(result: dict[str, Any]) -> list[str]:
    """The report in lines of text."""
    machine, bundle, protocol, frames = (result[k] for k in ("machine", "bundle", "protocol", "frames"))
    source, throughput, memory = protocol["input"], result["throughput"], result["memory"]
    versions = ", ".join(f"{name} {version}" for name, version in result["software"].items() if version)
    before, after = result["state"]["before"], result["state"]["after"]
    lines = [
        f"machine     {machine['cpu'] or machine['architecture']}, {machine['cores_usable']} cores, "
        f"{machine['distribution'] or machine['system']}",
        f"software    {versions}",
        f"state       load {before['load_average']} before, {after['load_average']} after; scheduling "
        f"{before['scheduling']}, governor "
        f"{before['cpu_governor']}, temperature {before['temperature_c']}, power {result['power_w']}",
        f"bundle      {bundle['name']} (preset {bundle['preset']}), {bundle['width']}x{bundle['height']}, "
        f"{bundle['gaussians_per_key_frame']:,} Gaussians per key frame",
        *(f"  {stage:<10}{text}" for stage, text in result["stages"].items()),
        f"clip        {source['uri']}, {source['width']}x{source['height']} at {source['fps']:.4g} fps: "
        f"{frames['total']} frames, {frames['key']} key frames, {frames['cuts']} cuts",
        f"protocol    {protocol['warm_up_frames']} frames warm-up, {protocol['mode']}",
        "",
        *latency_lines(result["latency_ms"]),
    ]
    psnr_db = result["psnr_db"]
    parts = [
        f"{words} {psnr_db[kind]['mean']:.2f} dB"
        for kind, words in (("key_frames", "key frames"), ("in_between", "in between"))
        if psnr_db[kind]["count"]
    ]
    gaussians = result["gaussians"]
    lines += [
        "",
        f"throughput  {throughput['fps']:.1f} fps by wall clock ({throughput['seconds']:.1f} s), "
        f"{throughput['chain_fps']:.1f} fps chain alone, {throughput['cpu_cores_busy']:.2f} cores busy",
        f"paced       {_paced_line(result['paced'])}",
        f"memory      {memory['peak_mib']:.0f} MiB at most, "
        f"{memory['of_which_kept_images_mib']:.0f} MiB of it images kept for the PSNR",
        f"PSNR        {', '.join(parts)}",
        f"Gaussians   {gaussians['rendered_per_frame']:,.0f} rendered and "
        f"{gaussians['tile_pairs_per_frame']:,.0f} tile pairs per frame",
    ]
    return lines


def _paced_line(values: Any) -> str:
    if not isinstance(values, dict):
        return str(values)
    wait = values["capture_to_present_ms"]
    return (
        f"{values['fps']:g} fps: {values['late']} late (over {values['allowed_ms']:.0f} ms) and "
        f"{values['dropped']} dropped of {values['frames'] + values['dropped']}; capture to present "
        f"p50 {wait['p50']:.0f}, p99 {wait['p99']:.0f}, max {wait['max']:.0f} ms"
    )


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    return parse


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.fps",
        description=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", help="video file or folder of images")
    parser.add_argument("--bundle", required=True, metavar="B", help="bundle folder")
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", metavar="P", help="as for `streamsplat-edge run`")
    parser.add_argument(
        "--threads", type=option_types.threads, default=0, metavar="N", help="0 = all cores (default)"
    )
    parser.add_argument("--gap", type=_positive(int), metavar="N", help="frames from key frame to key frame")
    parser.add_argument("--frames", type=_positive(int), metavar="N", help="use the first N frames of INPUT")
    parser.add_argument(
        "--warm-up", type=_positive(int), default=16, metavar="N", help="frames before the clock (default 16)"
    )
    parser.add_argument(
        "--paced", type=_positive(float), metavar="FPS", help="also measure frames arriving at FPS"
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write everything, raw samples too, as JSON"
    )
    args = parser.parse_args(argv)
    return carried_out(lambda: measure(args), describe, args.json)


if __name__ == "__main__":
    raise SystemExit(main())
