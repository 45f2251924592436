"""The time of a bundle on GPUs nobody here has: `python -m streamsplat_edge.benchmarks.device_model BUNDLE`.

Operations and bytes are counted from the bundle's ONNX files and put over rates that NVIDIA publishes;
the result says "computed, not measured" everywhere. How far off that is: the bundle also runs on this
CPU, whose rates are measured in the same run, and the model's times stand beside the measured ones, stage
by stage. With --measured the same is done for the GPUs in results of `streamsplat-edge bench`. Needs onnx
(extra [build] or [export]).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ... import option_types
from ...extras import require
from ..outcome import carried_out
from .model import Assumptions
from .result import compute, text


def main(argv: list[str] | None = None) -> int:
    assumed = Assumptions()
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.device_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle folder")
    add(
        "--clip", required=True, metavar="FILE", help="what this CPU is measured on, and pairs are counted on"
    )
    add("--frames", type=option_types.positive, default=48, metavar="N", help="of the clip (default 48)")
    add("--gap", type=option_types.positive, metavar="N", help="as for `run`")
    add("--threads", type=option_types.threads, default=0, metavar="N", help="0 = all cores (default)")
    add("--measured", type=Path, nargs="+", default=[], metavar="JSON", help="results of `bench` on GPUs")
    add(
        "--matrix-share",
        type=float,
        default=assumed.matrix_share,
        metavar="E",
        help="of peak rates that kernels reach (default %(default)s)",
    )
    add(
        "--bandwidth-share",
        type=float,
        default=assumed.bandwidth_share,
        metavar="B",
        help="the same of bandwidth (default %(default)s)",
    )
    add(
        "--launch-us",
        type=float,
        default=assumed.launch_us,
        metavar="US",
        help="to start a kernel (default %(default)s)",
    )
    add("--json", type=Path, metavar="OUT", help="also write everything as JSON")
    args = parser.parse_args(argv)

    def computed() -> dict[str, Any]:
        require("build", "onnx")
        assumptions = Assumptions(args.matrix_share, args.bandwidth_share, args.launch_us)
        return compute(
            args.bundle, args.clip, args.frames, args.gap, args.threads, assumptions, args.measured
        )

    return carried_out(computed, text, args.json)


if __name__ == "__main__":
    raise SystemExit(main())
