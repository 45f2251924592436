"""Speed of the CPU rasterizer: `python -m streamsplat_edge.benchmarks.rasterizer [--json OUT]`.

Scenes are made, not loaded: one Gaussian per cell of a jittered grid, twice over (two key frames), at the
sizes of the shipped presets, with opacities from 0.05 to 1 mixed and depths of a noisy ramp. Timings include
everything from Gaussians in world space to finished float images; nothing is removed. A busy machine shows in
p90 and p99: compare the minimum.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .. import option_types
from ..machine import describe_machine, scheduling, source_commit
from ..runtime.rasterizer import Rasterizer, RenderBuffers, Splats, View
from ..runtime.video import write_bytes

# Gaussians: two key frames of rows x columns.
GRIDS = {2 * rows * columns: (rows, columns) for rows, columns in ((9 * n, 16 * n) for n in (1, 2, 4, 8, 16))}
COUNTS = (18432, 73728)
SIZES = ((144, 256), (288, 512))
SIGMAS = (1.0, 2.0, 3.0, 4.0)


@dataclass
class Result:
    """One scene, milliseconds; tile-Gaussian pairs of the published rectangles and after the alpha cut."""

    path: str
    gaussians: int
    height: int
    width: int
    sigma_px: float
    threads: int
    pairs: int
    binned_pairs: int
    renders: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


def make_scene(count: int, height: int, width: int, sigma_px: float, seed: int = 0) -> Splats:
    """Two key frames of Gaussians on a jittered grid; sigma in pixels varies by +-20 %."""
    rows, columns = GRIDS[count]
    rng = np.random.default_rng(seed)
    x, z = np.meshgrid((np.arange(columns) + 0.5) / columns * 2 - 1, 1 - (np.arange(rows) + 0.5) / rows * 2)
    splats = Splats.allocate(count)
    splats.count = count
    for half in range(2):
        part = slice(half * count // 2, (half + 1) * count // 2)
        jitter = rng.uniform(-1, 1, (2, rows * columns))
        splats.means[part, 0] = x.ravel() + jitter[0] / columns
        splats.means[part, 2] = z.ravel() + jitter[1] / rows
        splats.means[part, 1] = 1.0 + 0.5 * z.ravel() + 0.1 * rng.standard_normal(rows * columns)
    sigma = sigma_px * rng.uniform(0.8, 1.2, (count, 2))
    splats.scales[:, 0] = sigma[:, 0] * 2 / width
    splats.scales[:, 2] = sigma[:, 1] * 2 / height
    splats.scales[:, 1] = 0.5 * (splats.scales[:, 0] + splats.scales[:, 2])
    splats.opacity[:] = rng.uniform(0.05, 1.0, count)
    splats.rgb[:] = rng.uniform(0, 1, (count, 3))
    return splats


def measure(
    splats: Splats, rasterizer: Rasterizer, sigma_px: float, view: View | None, seconds: float
) -> Result:
    """Render repeatedly for `seconds` (at least 10 times) after two warm-up calls."""
    buffers = RenderBuffers.allocate(rasterizer.height, rasterizer.width)
    for _ in range(2):
        rasterizer.render(splats, view=view, out=buffers)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < end:
        start = time.perf_counter()
        rasterizer.render(splats, view=view, out=buffers)
        times.append((time.perf_counter() - start) * 1e3)
    p50, p90, p99 = (float(v) for v in np.percentile(times, (50, 90, 99)))
    return Result(
        path="canonical" if view is None else "general",
        gaussians=splats.count,
        height=rasterizer.height,
        width=rasterizer.width,
        sigma_px=sigma_px,
        threads=rasterizer.threads,
        pairs=buffers.stats.pairs,
        binned_pairs=buffers.stats.binned_pairs,
        renders=len(times),
        min_ms=min(times),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
    )


def machine(rasterizer: Rasterizer) -> dict[str, str | int]:
    """What the numbers were measured on and with."""
    about = describe_machine()
    return {
        "cpu": about["cpu"] or about["architecture"],
        "cores": about["cores_usable"],
        "threads": rasterizer.threads,
        "simd": rasterizer.simd,
        "load_average_1min": str(about["load_average"][0]) if about["load_average"] else "unknown",
        "scheduling": scheduling(),
        "python": platform.python_version(),
        "commit": source_commit() or "not in a git checkout",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.rasterizer", description=__doc__
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the results as JSON")
    parser.add_argument("--threads", type=option_types.threads, default=0, help="0 = all cores (default)")
    parser.add_argument("--simd", choices=("auto", "avx512", "avx2", "neon", "scalar"), default="auto")
    parser.add_argument("--seconds", type=float, default=0.5, help="per scene (default 0.5)")
    parser.add_argument("--quick", action="store_true", help="only 73,728 Gaussians at 512x288, sigma 2")
    args = parser.parse_args(argv)

    about: dict[str, str | int] = {}
    results: list[Result] = []
    for height, width in SIZES[1:] if args.quick else SIZES:
        rasterizer = Rasterizer(height, width, threads=args.threads, simd=args.simd)
        if not about:
            about = machine(rasterizer)
            print("  ".join(f"{key}: {value}" for key, value in about.items()))
            print("path       Gaussians  image    sigma   pairs     binned    min    p50    p90    p99  (ms)")
        for count in COUNTS[1:] if args.quick else COUNTS:
            for sigma in (2.0,) if args.quick else SIGMAS:
                for view in (None, View.swing(0.1, 0.05, 1.0)):
                    if view is not None and sigma != 2.0:
                        continue
                    result = measure(
                        make_scene(count, height, width, sigma), rasterizer, sigma, view, args.seconds
                    )
                    results.append(result)
                    print(
                        f"{result.path:9}  {count:9}  {width}x{height}  {sigma:5.1f}  {result.pairs:8}  "
                        f"{result.binned_pairs:8}  {result.min_ms:5.2f}  {result.p50_ms:5.2f}  "
                        f"{result.p90_ms:5.2f}  {result.p99_ms:5.2f}"
                    )
    if args.json:
        report = {"benchmark": "rasterizer", "machine": about, "results": [asdict(r) for r in results]}
        write_bytes(args.json, (json.dumps(report, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
