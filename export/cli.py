"""`streamsplat-edge export`. Torch and onnx are imported when the command runs, not when help is printed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..training.extras import require


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="turn a checkpoint into a verified bundle (needs the extra [export])",
        description="Writes each stage as ONNX, compares it with PyTorch, and packs a bundle.",
        epilog="`streamsplat-edge eval BUNDLE --data CACHE --store` adds the quality that is measured.",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", required=True, type=Path, help="weights (safetensors)"
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", required=True, type=Path, help="folder to write")
    parser.add_argument("--name", default="", help="the bundle's name (default: the preset's)")
    parser.add_argument(
        "--opset", type=int, default=20, metavar="N", help="ONNX operator set, 18 to 25 (default: 20)"
    )
    parser.add_argument(
        "--provenance", metavar="JSON", type=Path, help="data, licence, command: stored in the bundle"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(handler=_export)


def _read_object(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.", "Give a file with one object.") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path} holds a JSON {type(value).__name__}, not an object.", "Give a file with one object."
        )
    return value


def _export(arguments: argparse.Namespace) -> int:
    require("export", "torch", "onnx", "onnxscript", "safetensors")
    if not arguments.checkpoint.is_file():
        raise InputError(f"There is no checkpoint at {arguments.checkpoint}.", "Give a .safetensors file.")
    provenance = _read_object(arguments.provenance)
    from .export import export_bundle

    bundle, comparisons = export_bundle(
        arguments.checkpoint,
        arguments.output,
        name=arguments.name,
        opset=arguments.opset,
        provenance=provenance,
        force=arguments.force,
        progress=not arguments.quiet,
    )
    if arguments.json:
        print(
            json.dumps({"bundle": str(bundle.path), "comparisons": [vars(c) for c in comparisons]}, indent=1)
        )
        return 0
    print(f"{bundle.path}: every stage agrees with PyTorch in ONNX Runtime")
    for c in comparisons:
        print(f"  {c.stage + '.' + c.output:<20} relative L2 {c.relative_l2:.1e}   max {c.max_abs:.1e}")
    return 0
