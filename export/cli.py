"""`streamsplat-edge export`. Torch and onnx are imported when the command runs, not when help is printed."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from ..runtime.errors import EngineError, InputError


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="turn a checkpoint into a verified bundle (needs the extra [export])",
        description="Writes each stage as ONNX, compares it with PyTorch, and packs a bundle.",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", required=True, type=Path, help="weights (safetensors)"
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", required=True, type=Path, help="folder to write")
    parser.add_argument("--name", default="", help="the bundle's name (default: the preset's)")
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default: 20)")
    parser.add_argument(
        "--provenance", metavar="JSON", type=Path, help="data, licence, command: stored in the bundle"
    )
    parser.add_argument(
        "--quality", metavar="JSON", type=Path, help="measured quality (of `eval`): stored in the bundle"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.set_defaults(handler=_export)


def _read_object(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object.")
    return value


def _export(arguments: argparse.Namespace) -> int:
    missing = [
        name
        for name in ("torch", "onnx", "onnxscript", "safetensors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise EngineError(
            f"Exporting needs {', '.join(missing)}, which is not installed.",
            "Install the extra: pip install 'streamsplat-edge[export]'.",
        )
    if not arguments.checkpoint.is_file():
        raise InputError(f"There is no checkpoint at {arguments.checkpoint}.", "Give a .safetensors file.")
    from .export import export_bundle

    bundle, comparisons = export_bundle(
        arguments.checkpoint,
        arguments.output,
        name=arguments.name,
        opset=arguments.opset,
        provenance=_read_object(arguments.provenance),
        quality=_read_object(arguments.quality),
        force=arguments.force,
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
