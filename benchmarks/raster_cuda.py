"""Speed of the CUDA rasterizer: `python -m streamsplat_edge.benchmarks.raster_cuda [--json OUT]`.

The scenes of `benchmarks.rasterizer`, rendered on the GPU at one time and at six times in one launch. Both
kernels are captured into a graph; a sample is the time on the device (CUDA events) of several replays,
divided by their number. Gaussians and images stay on the device; nothing is removed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..machine import describe_machine, scheduling, source_commit
from ..runtime.cuda import layout
from ..runtime.cuda.device import Device
from ..runtime.cuda.rasterizer import SLOTS_PER_TILE, CudaRasterizer, DeviceSplats
from ..runtime.errors import StreamSplatError
from ..runtime.rasterizer import Splats, View
from ..runtime.video import write_bytes
from .rasterizer import make_scene

REPLAYS = 20  # per sample: one frame is shorter than the clock of the events is exact
SAMPLES = 200
CASES = tuple(
    (count, height, width, sigma, times)
    for height, width in ((144, 256), (288, 512))
    for count in (18432, 73728)
    for sigma in (1.0, 2.0, 4.0)
    for times in (1, 6)
)


@dataclass
class Result:
    """One scene; microseconds per launch (of `times` images), and tile-Gaussian pairs of one image."""

    path: str
    gaussians: int
    height: int
    width: int
    sigma_px: float
    times: int
    slots: int
    pairs: int
    binned_pairs: int
    overflowing_tiles: int
    samples: int
    min_us: float
    p50_us: float
    p90_us: float
    p99_us: float


def upload(device: Device, splats: Splats) -> DeviceSplats:
    """Copies of a scene's Gaussians on the device."""
    arrays = []
    for source in (splats.means, splats.scales, splats.opacity, splats.rgb):
        pinned, target = device.pinned(source.shape, np.float32), device.zeros(source.shape, np.float32)
        np.copyto(pinned, source)
        device.copy(target, pinned)
        device.synchronize()
        arrays.append(target)
    return DeviceSplats(*arrays)


def measure(device: Device, case: tuple[int, int, int, float, int], general: bool, samples: int) -> Result:
    """Times one case after a warm-up of one sample."""
    count, height, width, sigma, times = case
    scene = make_scene(count, height, width, sigma)
    rasterizer = CudaRasterizer(
        device, height, width, count, times=times, outputs=("bytes", "expected_depth", "alpha")
    )
    given = upload(device, scene)
    views = [View.swing(0.1, 0.05, 1.0)] * times if general else None
    images = rasterizer.render(given, views=views)  # its frames stay on the device for the graph
    stats, overflowing = images.stats[0], images.overflowing_tiles[0]
    params = rasterizer.params.copy()
    params["count"] = count
    for name in ("means", "scales", "opacity", "rgb"):
        params[name] = device.address(getattr(given, name))
    path = "general" if general else "canonical"
    replay = device.capture(
        lambda: rasterizer.enqueue(f"project_given_{path}", count, f"blend_given_{path}", params)
    )

    def sample() -> None:
        for _ in range(REPLAYS):
            replay()

    device.milliseconds(sample)
    us = [device.milliseconds(sample) * 1e3 / REPLAYS for _ in range(samples)]
    p50, p90, p99 = (float(v) for v in np.percentile(us, (50, 90, 99)))
    return Result(
        *(path, count, height, width, sigma, times, SLOTS_PER_TILE),
        *(stats.pairs, stats.binned_pairs, overflowing, samples),
        *(min(us), p50, p90, p99),
    )


def machine(device: Device) -> dict[str, Any]:
    """What the numbers were measured on and with."""
    about = describe_machine()
    return {
        "gpu": device.description,
        "cpu": about["cpu"] or about["architecture"],
        "load_average_1min": str(about["load_average"][0]) if about["load_average"] else "unknown",
        "scheduling": scheduling(),
        "python": platform.python_version(),
        "commit": source_commit() or "not in a git checkout",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "tile": layout.TILE,
        "sort_capacity": layout.SORT_CAPACITY,
    }


def run(
    device: Device, cases: Sequence[tuple[int, int, int, float, int]], samples: int, out: Path | None
) -> int:
    about, results = machine(device), []
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    print("path       Gaussians  image    sigma  times   binned  overflow    min    p50    p90    p99  (us)")
    for case in cases:
        for general in (False, True):
            row = measure(device, case, general, samples)
            results.append(asdict(row))
            print(
                f"{row.path:9}  {row.gaussians:9}  {row.width}x{row.height}  {row.sigma_px:5.1f}  "
                f"{row.times:5}  {row.binned_pairs:7}  {row.overflowing_tiles:8}  {row.min_us:5.1f}  "
                f"{row.p50_us:5.1f}  {row.p90_us:5.1f}  {row.p99_us:5.1f}",
                flush=True,
            )
    if out:
        report = {"benchmark": "raster_cuda", "machine": about, "results": results}
        write_bytes(out, (json.dumps(report, indent=1) + "\n").encode())
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.raster_cuda", description=__doc__
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the results as JSON")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"per scene (default {SAMPLES})")
    parser.add_argument("--quick", action="store_true", help="only 73,728 Gaussians at 512x288, sigma 2")
    args = parser.parse_args(argv)
    cases = [case for case in CASES if case[:4] == (73728, 288, 512, 2.0)] if args.quick else CASES
    try:
        from ..runtime.cuda.cupy_device import CupyDevice

        return run(CupyDevice(), cases, args.samples, args.json)
    except StreamSplatError as error:
        print(f"error: {error.message}\n{error.hint}".strip(), file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
