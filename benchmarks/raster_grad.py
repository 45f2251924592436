"""Speed of the rasterizer in training: `python -m streamsplat_edge.benchmarks.raster_grad --device cuda`.

Batches of the made-up scenes of the benchmark `rasterizer`: on tensors, forward and backward. On a GPU the
times are those between events on its stream, with the wait for the number of pairs inside, as a training
step has it. Nothing is removed. Needs torch; `--device cuda` a GPU and the CUDA rasterizer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..machine import describe_machine, scheduling, source_commit
from ..runtime.errors import EngineError, StreamSplatError
from ..runtime.rasterizer import Rasterizer, RenderBuffers
from ..runtime.video import write_bytes
from .rasterizer import make_scene

if TYPE_CHECKING:
    from torch import Tensor

# batch, Gaussians, height, width, sigma in pixels
CASES = (
    (1, 18432, 144, 256, 2.0),
    (8, 18432, 144, 256, 2.0),
    (8, 73728, 144, 256, 1.0),
    (1, 73728, 288, 512, 2.0),
    (8, 73728, 288, 512, 1.0),
    (8, 73728, 288, 512, 2.0),
    (8, 73728, 288, 512, 4.0),
)
SMOKE = CASES[:1]
_ASKED = ("driver_version", "clocks.sm", "power.limit", "temperature.gpu")  # of nvidia-smi


@dataclass
class Result:
    """One batch, milliseconds; pairs of a Gaussian and a 16x16 tile after the alpha cut, all images."""

    batch: int
    gaussians: int
    height: int
    width: int
    sigma_px: float
    binned_pairs: int
    runs: int
    forward_min_ms: float
    forward_p50_ms: float
    forward_p90_ms: float
    backward_min_ms: float
    backward_p50_ms: float
    backward_p90_ms: float
    peak_mib: float | None  # of torch's allocator on the GPU


def make_batch(
    batch: int, count: int, height: int, width: int, sigma: float, device: str
) -> tuple[list[Tensor], int]:
    """Leaves for `rasterize`, and the number of pairs."""
    import torch

    counter, buffers = Rasterizer(height, width), RenderBuffers.allocate(height, width)
    scenes = [make_scene(count, height, width, sigma, seed) for seed in range(batch)]
    pairs = sum(counter.render(scene, out=buffers).stats.binned_pairs for scene in scenes)
    arrays = [
        np.stack([scene.means[:, [0, 2]] for scene in scenes]),
        np.stack([scene.means[:, 1] for scene in scenes]),
        np.stack([scene.scales[:, [0, 2]] for scene in scenes]),
        np.stack([scene.opacity for scene in scenes]),
        np.stack([scene.rgb for scene in scenes]),
        np.full((batch, 3), 0.5, np.float32),
    ]
    return [torch.from_numpy(a).to(device).requires_grad_() for a in arrays], pairs


def clock(device: str) -> Callable[[], Callable[[], float]]:
    """`start = clock(d)` gives a function; calling it starts, calling what it returns stops and gives ms."""
    import torch

    def on_cpu() -> Callable[[], float]:
        begin = time.perf_counter()
        return lambda: (time.perf_counter() - begin) * 1e3

    def on_gpu() -> Callable[[], float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()

        def stop() -> float:
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end))

        return stop

    return on_gpu if device == "cuda" else on_cpu


def measure(case: tuple[int, int, int, int, float], device: str, seconds: float) -> Result:
    """Repeats for `seconds` (at least 10 times) after three runs to warm up."""
    import torch

    from ..training.rasterizer import rasterize

    batch, count, height, width, sigma = case
    leaves, pairs = make_batch(batch, count, height, width, sigma, device)
    xz, depth, scale, opacity, rgb, background = leaves
    start = clock(device)
    forward: list[float] = []
    backward: list[float] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    upstream = None
    end = 0.0
    for run in range(1_000_000):
        stop = start()
        outputs = rasterize(xz, depth, scale, opacity, rgb, background, height, width)
        taken = stop()
        upstream = upstream or [torch.randn_like(o) for o in outputs]
        stop = start()
        torch.autograd.grad(outputs, leaves, upstream)
        if run < 3:
            stop()
            end = time.perf_counter() + seconds
            continue
        forward.append(taken)
        backward.append(stop())
        if len(forward) >= 10 and time.perf_counter() >= end:
            break
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None

    def summary(times: list[float]) -> tuple[float, float, float]:
        p50, p90 = (float(v) for v in np.percentile(times, (50, 90)))
        return min(times), p50, p90

    f_min, f_p50, f_p90 = summary(forward)
    b_min, b_p50, b_p90 = summary(backward)
    return Result(*case, pairs, len(forward), f_min, f_p50, f_p90, b_min, b_p50, b_p90, peak)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on and with."""
    import torch

    about = describe_machine()
    result: dict[str, Any] = {
        "device": device,
        "cpu": about["cpu"] or about["architecture"],
        "cores": about["cores_usable"],
        "threads": torch.get_num_threads(),
        "load_average_1min": str(about["load_average"][0]) if about["load_average"] else "unknown",
        "scheduling": scheduling(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": source_commit() or "not in a git checkout",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        result["gpu"] = properties.name
        result["compute_capability"] = f"{properties.major}.{properties.minor}"
        result["cuda"] = torch.version.cuda
        result |= _nvidia_smi()
    return result


def _nvidia_smi() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # Jetson has none
        return dict.fromkeys(_ASKED, "not measured")
    return dict(zip(_ASKED, (value.strip() for value in answer.split(",")), strict=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.raster_grad", description=__doc__
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the results as JSON")
    parser.add_argument("--seconds", type=float, default=1.0, help="per batch (default 1)")
    parser.add_argument("--quick", action="store_true", help="only the smallest batch")
    args = parser.parse_args(argv)
    try:
        return run(args.device, args.seconds, SMOKE if args.quick else CASES, args.json)
    except StreamSplatError as error:
        print(f"error: {error.message}\n{error.hint}".strip(), file=sys.stderr)
        return 2


def run(
    device: str, seconds: float, cases: tuple[tuple[int, int, int, int, float], ...], out: Path | None
) -> int:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            f"torch {torch.__version__} sees no CUDA device.", "Use --device cpu, or install a CUDA torch."
        )
    about, results = machine(device), []
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    print("batch  Gaussians  image    sigma     pairs   forward: min    p50   backward: min    p50  (ms)")
    for case in cases:
        row = measure(case, device, seconds)
        results.append(asdict(row))
        print(
            f"{row.batch:5}  {row.gaussians:9}  {row.width}x{row.height}  {row.sigma_px:5.1f}  "
            f"{row.binned_pairs:8}  {row.forward_min_ms:13.2f}  {row.forward_p50_ms:5.2f}  "
            f"{row.backward_min_ms:14.2f}  {row.backward_p50_ms:5.2f}",
            flush=True,
        )
    if out:
        report = {"benchmark": "raster_grad", "machine": about, "results": results}
        write_bytes(out, (json.dumps(report, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
