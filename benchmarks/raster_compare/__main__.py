"""Rasterizers side by side in one run: `python -m streamsplat_edge.benchmarks.raster_compare`.

Ours in C++ and, where there is a GPU, in CUDA; the dense torch renderer; gsplat's orthographic camera
where it is installed and finds a GPU. From one base case, one thing at a time is varied: number of
Gaussians, size of the image, sigma, threads, images per call. Before a case is timed, every method's
image is compared with the dense renderer in float64. Methods take turns, round by round in one process,
so that what the machine does besides hits all alike. The lower bound beside the times is counted and
measured in the same run. What could not run is listed with its reason. Needs torch (extra [train]).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ...commands import report
from ...extras import require
from ...machine import usable_cores
from ...runtime.errors import StreamSplatError
from ...runtime.video import encode_png, write_bytes
from .compare import DISAGREES, compare, full, quick
from .methods import all_methods
from .picture import draw
from .tables import text


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where images disagree, 2 where the comparison could not be made."""
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.raster_compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="also write everything, raw samples too, as JSON")
    add("--picture", type=Path, metavar="PNG", help="also draw the times and the lower bound")
    add("--seconds", type=float, default=3.0, metavar="S", help="per case (default 3)")
    add(
        "--dense-pairs",
        type=float,
        default=2e8,
        metavar="N",
        help="leave the dense renderer out where Gaussians times pixels are more (default 2e8)",
    )
    add("--quick", action="store_true", help="a few small cases")
    args = parser.parse_args(argv)
    try:
        require("train", "torch")
        sweep = (quick if args.quick else full)(usable_cores())
        result = compare(sweep, all_methods(args.dense_pairs), args.seconds)
        print("\n".join(text(result)))
        if args.json:
            write_bytes(args.json, (json.dumps(report.finite(result), indent=None) + "\n").encode())
        if args.picture:
            write_bytes(args.picture, encode_png(draw(result)))
    except StreamSplatError as error:
        print(f"error: {error.message}\n{error.hint}".strip(), file=sys.stderr)
        return 2
    disagree = any(row["status"] == DISAGREES for case in result["cases"] for row in case["methods"])
    return 1 if disagree else 0


if __name__ == "__main__":
    raise SystemExit(main())
