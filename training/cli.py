"""`streamsplat-edge train` and `streamsplat-edge eval`. Torch is imported when a command runs, not when help
is printed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from ..runtime.errors import EngineError, OutputError


def add_parser(subparsers: Any) -> None:
    """Register the commands."""
    train = subparsers.add_parser(
        "train",
        help="train a stage (needs the extra [train])",
        description="Trains one stage from a recipe. A run that was stopped is resumed by the same command.",
    )
    train.add_argument("stage", choices=("static", "dynamic"), help="stage 1 (encoder) or stage 2 (decoder)")
    train.add_argument(
        "--config", metavar="FILE", required=True, help="recipe, e.g. training/configs/tiny_static.toml"
    )
    train.add_argument("--data", metavar="DIR", help="media cache (default: the recipe's)")
    train.add_argument("--init", metavar="FILE", help="weights to start from (default: the recipe's)")
    train.add_argument("--out", metavar="DIR", required=True, help="folder of the run: log, state, weights")
    train.add_argument(
        "--max-minutes", type=float, metavar="M", help="stop after this long; run again to resume"
    )
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(handler=_train)

    evaluate = subparsers.add_parser(
        "eval",
        help="measure a bundle on held-out clips (needs the extra [train])",
        description="PSNR of key frames and of frames in between, beside blending and repeating key frames.",
    )
    evaluate.add_argument("bundle", metavar="BUNDLE", type=Path)
    evaluate.add_argument("--data", metavar="DIR", required=True, help="media cache with an eval split")
    evaluate.add_argument("--gap", type=int, default=4, help="source frames per pair (default: 4)")
    evaluate.add_argument("--engine", default="onnxruntime", choices=("onnxruntime", "openvino"))
    evaluate.add_argument("--json", action="store_true", help="print JSON only")
    evaluate.add_argument("-o", "--output", metavar="FILE", type=Path, help="also write the JSON here")
    evaluate.add_argument("--store", action="store_true", help="keep the result in the bundle's manifest")
    evaluate.set_defaults(handler=_eval)


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"This command needs {', '.join(missing)}, which is not installed.",
            "Install the extra: pip install 'streamsplat-edge[train]'.",
        )


def _train(arguments: argparse.Namespace) -> int:
    _need("torch", "safetensors", "cv2")
    from ..runtime.errors import InputError
    from .recipe import load_recipe
    from .trainer import train

    recipe = load_recipe(Path(arguments.config), data=arguments.data, init=arguments.init)
    if recipe.stage != arguments.stage:
        raise InputError(
            f"{arguments.config} is a recipe for stage {recipe.stage!r}, not {arguments.stage!r}.",
            f"Run `streamsplat-edge train {recipe.stage} --config {arguments.config}`.",
        )
    seconds = None if arguments.max_minutes is None else 60 * arguments.max_minutes
    weights = train(recipe, Path(arguments.out), max_seconds=seconds, progress=not arguments.quiet)
    print(weights)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    _need("torch", "cv2")
    from ..runtime.bundle import store_quality
    from .data.cache import Cache
    from .evaluate import evaluate, format_table

    result = evaluate(arguments.bundle, Cache(arguments.data), gap=arguments.gap, engine=arguments.engine)
    text = json.dumps(result, indent=1)
    if arguments.store:
        store_quality(arguments.bundle, result)
    if arguments.output:
        temporary = arguments.output.with_name(f".{arguments.output.name}.tmp")
        try:
            temporary.write_text(text + "\n")
            temporary.replace(arguments.output)
        except OSError as error:
            raise OutputError(
                f"{arguments.output} cannot be written: {error.strerror}.", "Choose another folder."
            ) from error
    sys.stdout.write((text if arguments.json else format_table(result)) + "\n")
    return 0
