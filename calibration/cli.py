"""`streamsplat-edge calibrate`. Heavy packages are imported when the command runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..extras import require
from ..runtime.errors import InputError


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "calibrate",
        help="quantise a bundle to INT8 or FP8 on videos of yours",
        description="Records what the stages read on your videos, quantises what the recipe says, measures "
        "rendered frames against fp32, and writes a bundle that has passed.",
        epilog="docs/quantise.md explains each step. A run that was interrupted goes on where it stopped.",
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle with fp32 files (and fp16 for TensorRT)")
    add("--data", metavar="PATH", nargs="+", type=Path, help="videos, or folders of videos or images")
    add("-o", "--output", metavar="BUNDLE", type=Path, help="bundle to write")
    add(
        "--precision",
        choices=("int8", "fp8"),
        default="int8",
        help="default: int8; fp8 is for TensorRT alone",
    )
    add(
        "--target",
        choices=("all", "cpu", "tensorrt"),
        default="all",
        help="make files for CPUs, for TensorRT, or for both (default)",
    )
    add(
        "--samples",
        type=int,
        default=256,
        metavar="N",
        help="pairs of key frames to calibrate on (default: 256)",
    )
    add(
        "--method",
        choices=("entropy", "percentile", "mse", "minmax"),
        default="mse",
        help="how ranges follow from histograms (default: mse)",
    )
    add("--percentile", type=float, default=99.99, metavar="P", help="for that method (default: 99.99)")
    add("--min-psnr", type=float, default=38.0, metavar="DB", help="of every rendered frame (default: 38)")
    add(
        "--gate-data",
        metavar="PATH",
        nargs="+",
        type=Path,
        default=[],
        help="videos to measure on (default: a part of --data, which is then not calibrated on)",
    )
    add("--gate-samples", type=int, default=16, metavar="N", help="pairs to measure on (default: 16)")
    add(
        "--keep",
        metavar="NODE",
        action="append",
        default=[],
        help="layer that stays in floating point, as NODE or STAGE:NODE, with * and ?; may be repeated",
    )
    add("--recipe", metavar="FILE", type=Path, help="rules that go before the default ones (JSON)")
    add(
        "--smooth",
        type=float,
        metavar="A",
        help="move outliers of activations into the weights (SmoothQuant), by this strength: 0.5",
    )
    add(
        "--no-sensitivity",
        action="store_true",
        help="do not measure each layer by itself; the gate can then give nothing back",
    )
    add("--slower", action="store_true", help="take quantised files even where they are slower here")
    add("--work", metavar="DIR", type=Path, help="keep recordings there for another run")
    add("--report", metavar="DIR", type=Path, help="also write report.json and sensitivity.png there")
    add("--list-layers", action="store_true", help="print what the recipe decides for each layer, and stop")
    add("--force", action="store_true", help="replace an existing bundle")
    add("--force-quality", action="store_true", help="save the bundle although it is below --min-psnr")
    add("--json", action="store_true", help="print the report as JSON")
    add("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(handler=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    require("build", "onnx")
    from .calibrate import calibrate, decide
    from .options import Options
    from .recipe import Recipe, to_json

    options = Options(
        precision=arguments.precision,
        target=arguments.target,
        method=arguments.method,
        percentile=arguments.percentile,
        samples=arguments.samples,
        gate_samples=arguments.gate_samples,
        min_psnr=arguments.min_psnr,
        recipe=Recipe.load(arguments.recipe, arguments.keep),
        smooth=arguments.smooth,
        sensitivity=not arguments.no_sensitivity,
        slower=arguments.slower,
        force_quality=arguments.force_quality,
    )
    if arguments.list_layers:
        decisions = decide(arguments.bundle, options)
        if arguments.json:
            print(json.dumps(to_json(decisions), indent=1))
        else:
            for d in decisions:
                print(f"{'quantised' if d.quantise else 'kept':<10} {d.stage}:{d.layer.node}  ({d.reason})")
        return 0
    if not arguments.data or arguments.output is None:
        missing = "--data" if not arguments.data else "-o"
        raise InputError(
            f"{missing} is missing.", "calibrate BUNDLE --data VIDEOS -o OUT; or look first: --list-layers."
        )
    bundle, result = calibrate(
        arguments.bundle,
        arguments.data,
        arguments.output,
        options,
        gate_data=arguments.gate_data,
        work=arguments.work,
        force=arguments.force,
        progress=not arguments.quiet,
    )
    from .report import lines, write_report

    if arguments.report is not None:
        write_report(result, arguments.report)
    if arguments.json:
        print(json.dumps({"bundle": str(bundle.path), **result.to_json()}, indent=1))
    else:
        print("\n".join([f"{bundle.path}", *lines(result)]))
    return 0
