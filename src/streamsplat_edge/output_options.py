"""Options about what is shown and saved, and those of `convert`. Parsing must stay light."""

from __future__ import annotations

import argparse
from typing import Any

from . import option_types


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What `run` shows and saves."""
    parser.add_argument(
        "--layout",
        action=option_types.Given,
        default="reconstruction",
        metavar="L",
        help="what the output video shows: any of input, reconstruction, depth, novel with commas between, "
        "or side-by-side for all four with captions (default: reconstruction)",
    )
    parser.add_argument(
        "--camera",
        action=option_types.Given,
        metavar="PATH",
        help="path of the camera of novel views: swing[:yaw=7,period=5], orbit[:yaw=7,pitch=4,period=5], "
        "fixed:yaw=5,pitch=2, each with pivot=DEPTH where wanted, or a JSON file (default: swing)",
    )
    parser.add_argument(
        "--save",
        action="append",
        default=[],
        metavar="FILE",
        help="save as well, by extension: scene_%%04d.ply or .splat (a file per frame; without number "
        "the last frame), scene.4dgs, tracks.npz, frames/%%05d.png, novel_%%05d.png, "
        "depth_%%05d.png (16 bits), depth_%%05d.exr; may be repeated",
    )


def add_parser(commands: Any) -> None:
    """Adds `convert` to the command line."""
    parser = commands.add_parser(
        "convert",
        help="turn saved Gaussians into another format",
        description="Reads what `run --save` wrote (.npz, .4dgs, .ply, .splat, or numbered files such as "
        "scene_%%04d.ply) and writes .4dgs, .ply or .splat.",
    )
    parser.add_argument("source", metavar="IN", help="what to read")
    parser.add_argument(
        "target", metavar="OUT", help="what to write; with %%04d in its name, a file per moment"
    )
    moment = parser.add_mutually_exclusive_group()
    moment.add_argument("--at", type=_seconds, metavar="S", help="only the moment at S seconds")
    moment.add_argument(
        "--rate",
        type=_rate,
        metavar="FPS",
        help="moments per second (default: the times of the recorded frames; 24 where they are not known)",
    )
    parser.add_argument("--force", action="store_true", help="replace existing output files")
    parser.add_argument("--quiet", action="store_true", help="print only errors and warnings")
    parser.set_defaults(handler=_convert)


def _convert(args: argparse.Namespace) -> int:
    from .commands.convert import main

    return main(args)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12:  # refuses NaN as well
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return value


def _rate(text: str) -> float:
    value = _seconds(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 1000 per second")
    return value
