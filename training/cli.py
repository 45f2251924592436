"""`streamsplat-edge train` and `eval`. Torch is imported when a command runs, not when help is printed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from ..extras import require


def add_parser(subparsers: Any) -> None:
    """Register the commands."""
    _add_train(subparsers)
    _add_eval(subparsers)


def _add_train(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a stage (needs the extra [train])",
        description="Trains one stage from a recipe. A run that was stopped is resumed by the same command.",
        epilog="Ctrl-C saves the run after the step at hand. Several GPUs: accelerate launch --multi_gpu "
        "-m streamsplat_edge train ... --device cuda.",
    )
    parser.add_argument(
        "stage",
        choices=("depth", "static", "motion", "dynamic"),
        help="depth: depth network alone; static: encoder (stage 1); motion: matching alone; "
        "dynamic: decoder (stage 2)",
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
        "--init-depth", metavar="FILE", help="weights of stage depth to start from (default: the recipe's)"
    )
    parser.add_argument(
        "--init-motion", metavar="FILE", help="weights of stage motion to start from (default: the recipe's)"
    )
    parser.add_argument(
        "--dino", metavar="PATH", help="DINOv2 weights, file or folder (default: the recipe's)"
    )
    parser.add_argument("--lpips", metavar="FILE", help="LPIPS weights (default: the recipe's)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)"
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="processes that make batches (default: the recipe's)"
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        default=None,  # not False, which would overrule the recipe
        help="log numbers and pictures to DIR/tensorboard",
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
        description="PSNR, SSIM and LPIPS of key frames and of frames in between, beside repetition, blend "
        "and optical-flow interpolation of the key frames.",
        epilog="docs/evaluation.md says what exactly is measured.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="bundle folder")
    parser.add_argument("--data", metavar="DIR", required=True, help="media cache with an eval split")
    parser.add_argument(
        "--gap", type=_positive, metavar="N", help="source frames per pair (default: what the bundle says)"
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="measure four and eight frames in between as well, as the paper does",
    )
    parser.add_argument("--lpips", metavar="FILE", type=Path, help="LPIPS weights (safetensors)")
    parser.add_argument(
        "--picture",
        metavar="FILE.png",
        type=Path,
        help="contact sheet: a typical frame and the worst one of each clip, beside truth and baselines",
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
    parser.add_argument("--force", action="store_true", help="replace existing outputs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(handler=_eval)


def _minutes(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _positive(text: str) -> int:
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
        arguments.config,
        data=arguments.data,
        init=arguments.init,
        init_depth=arguments.init_depth,
        init_motion=arguments.init_motion,
        dino=arguments.dino,
        lpips_weights=arguments.lpips,
        workers=arguments.workers,
        tensorboard=arguments.tensorboard,
    )
    if recipe.stage != arguments.stage:
        raise InputError(
            f"{arguments.config} is a recipe for stage {recipe.stage!r}, not {arguments.stage!r}.",
            f"Run `streamsplat-edge train {recipe.stage} --config {arguments.config}`.",
        )
    seconds = None if arguments.max_minutes is None else 60 * arguments.max_minutes
    outcome = train(
        recipe,
        arguments.out,
        device=arguments.device,
        max_seconds=seconds,
        progress=not arguments.quiet,
    )
    if not outcome.main:
        return 0
    if outcome.skipped:
        print(f"{outcome.skipped} steps changed nothing: not finite (see log.jsonl)", file=sys.stderr)
    if outcome.step < outcome.steps:
        print(
            f"stopped after step {outcome.step} of {outcome.steps}; the same command goes on", file=sys.stderr
        )
    print(outcome.weights)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    require("train", "torch", "safetensors", "cv2")
    from ..runtime.bundle_writing import store_quality
    from ..runtime.errors import InputError
    from ..runtime.video import check_output, write_bytes
    from .data.cache import Cache
    from .evaluate import evaluate, format_table

    outputs = [path for path in (arguments.output, arguments.picture) if path]
    for path in outputs:
        check_output(path, force=arguments.force)
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise InputError(f"{arguments.output} is named for the JSON and for the picture.", "Give two names.")
    if arguments.store and arguments.bundle.is_dir():
        check_output(arguments.bundle / "bundle.json", force=True)
    result = evaluate(
        arguments.bundle,
        Cache(arguments.data),
        gap=arguments.gap,
        engine=arguments.engine,
        lpips=arguments.lpips,
        paper=arguments.paper,
        picture=arguments.picture,
        progress=not arguments.quiet,
    )
    text = json.dumps(result, indent=1, allow_nan=False)
    # Shown before it is stored: where the disk is full it is not lost.
    print(text if arguments.json else format_table(result))
    if arguments.output:
        write_bytes(arguments.output, (text + "\n").encode())
    if arguments.store:
        store_quality(arguments.bundle, result)
    return 0
