"""`streamsplat-edge train` and `eval`. Torch is imported when a command runs, not when help is printed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from .extras import require


def add_parser(subparsers: Any) -> None:
    """Register the commands."""
    _add_train(subparsers)
    _add_eval(subparsers)


def _add_train(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a stage (needs the extra [train])",
        description="Trains one stage from a recipe. A run that was stopped is resumed by the same command.",
        epilog="Ctrl-C saves the run after the step at hand.",
    )
    parser.add_argument(
        "stage",
        choices=("static", "motion", "dynamic"),
        help="static: encoder (stage 1); motion: matching alone; dynamic: decoder (stage 2)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        required=True,
        type=Path,
        help="recipe, e.g. training/configs/tiny_static.toml",
    )
    parser.add_argument(
        "--out", metavar="DIR", required=True, type=Path, help="folder of the run: log, state, weights"
    )
    parser.add_argument("--data", metavar="DIR", help="media cache (default: the recipe's)")
    parser.add_argument("--init", metavar="FILE", help="weights to start from (default: the recipe's)")
    parser.add_argument(
        "--init-motion", metavar="FILE", help="weights of stage motion to start from (default: the recipe's)"
    )
    parser.add_argument(
        "--max-minutes", type=_minutes, metavar="M", help="stop after this long; run again to resume"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(handler=_train)


def _add_eval(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="measure a bundle on held-out clips (needs the extra [train])",
        description="PSNR of key frames and of frames in between, beside blending and repeating key frames.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="bundle folder")
    parser.add_argument("--data", metavar="DIR", required=True, help="media cache with an eval split")
    parser.add_argument(
        "--gap", type=_gap, metavar="N", help="source frames per pair (default: what the bundle says)"
    )
    parser.add_argument(
        "--engine",
        default="onnxruntime",
        choices=("onnxruntime", "openvino"),
        help="runs the stages (default: onnxruntime)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="also write the JSON here")
    parser.add_argument("--store", action="store_true", help="keep the result in the bundle's manifest")
    parser.add_argument("--force", action="store_true", help="replace an existing FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(handler=_eval)


def _minutes(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _gap(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _train(arguments: argparse.Namespace) -> int:
    require("train", "torch", "safetensors", "cv2")
    from ..runtime.errors import InputError
    from .recipe import load_recipe
    from .trainer import train

    recipe = load_recipe(
        arguments.config, data=arguments.data, init=arguments.init, init_motion=arguments.init_motion
    )
    if recipe.stage != arguments.stage:
        raise InputError(
            f"{arguments.config} is a recipe for stage {recipe.stage!r}, not {arguments.stage!r}.",
            f"Run `streamsplat-edge train {recipe.stage} --config {arguments.config}`.",
        )
    seconds = None if arguments.max_minutes is None else 60 * arguments.max_minutes
    outcome = train(recipe, arguments.out, max_seconds=seconds, progress=not arguments.quiet)
    if outcome.step < outcome.steps:
        print(
            f"stopped after step {outcome.step} of {outcome.steps}; the same command goes on", file=sys.stderr
        )
    print(outcome.weights)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    require("train", "torch", "cv2")
    from ..runtime.bundle import store_quality
    from ..runtime.video import check_output, write_bytes
    from .data.cache import Cache
    from .evaluate import evaluate, format_table

    if arguments.output:
        check_output(arguments.output, force=arguments.force)
    result = evaluate(
        arguments.bundle,
        Cache(arguments.data),
        gap=arguments.gap,
        engine=arguments.engine,
        progress=not arguments.quiet,
    )
    text = json.dumps(result, indent=1, allow_nan=False)
    if arguments.store:
        store_quality(arguments.bundle, result)
    if arguments.output:
        write_bytes(arguments.output, (text + "\n").encode())
    print(text if arguments.json else format_table(result))
    return 0
