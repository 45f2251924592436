"""`streamsplat-edge bench`. Everything heavy is imported when the command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ... import option_types
from ...export.cli import add_source

_BACKENDS = (
    *("torch-eager", "torch-compiled", "onnxruntime", "onnxruntime-int8"),
    *("openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"),
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a bundle in every backend that runs here",
        description="Measures speed, memory, power and quality of every backend in the same run, each in a "
        "process of its own, and says why the others are missing. Nothing is removed from the samples.",
        epilog="docs/benchmarks.md explains what is measured and how to read it.",
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle folder")
    add("--clip", metavar="FILE", help="video or folder of images (default: the demo clip)")
    add(
        "--backends",
        type=_backends,
        default=_BACKENDS,
        metavar="B",
        help=f"all, or several of {', '.join(_BACKENDS)}, separated by commas (default: all)",
    )
    add(
        "--device",
        choices=("all", "cpu", "cuda"),
        default="all",
        help="leave out the backends of other devices; all runs PyTorch on a GPU where it sees one",
    )
    add("--threads", type=option_types.threads, default=0, metavar="N", help="0 = all cores (default)")
    add("--gap", type=option_types.positive, metavar="N", help="as for `run`")
    add("--frames", type=option_types.positive, metavar="N", help="use the first N frames (default: all)")
    add(
        "--warm-up",
        type=option_types.positive,
        default=16,
        metavar="N",
        help="frames before the clock (default: 16)",
    )
    add(
        "--paced",
        type=option_types.rate,
        metavar="FPS",
        help="also measure frames that arrive at FPS, as from a camera",
    )
    add_source(parser, required=False)
    add("--lpips", metavar="FILE", type=Path, help="weights of LPIPS, to measure it")
    add("-o", "--output", metavar="FOLDER", type=Path, help="write bench.json, tables, samples and a PNG")
    add("--compare", metavar="JSON", type=Path, help="an earlier bench.json; regressions are marked")
    add("--force", action="store_true", help="replace what is in FOLDER")
    add("--json", action="store_true", help="print the whole report as JSON")
    parser.set_defaults(handler=_bench)


def _backends(text: str) -> tuple[str, ...]:
    if text == "all":
        return _BACKENDS
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [name for name in names if name not in _BACKENDS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'} is no backend; use all, or some of {', '.join(_BACKENDS)}"
        )
    return names


def _bench(args: argparse.Namespace) -> int:
    from .report import main

    return main(args)
