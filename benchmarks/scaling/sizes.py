"""Bundles of one model at several sizes, exported for the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...extras import require
from ...runtime.bundle import Bundle
from ...runtime.errors import StreamSplatError
from ..bench.backends import find_checkpoint

Size = tuple[int, int]


def export_sizes(
    bundle: Bundle, sizes: Sequence[Size], checkpoint: Path | None, folder: Path
) -> dict[Size, Bundle | str]:
    """By (height, width) the bundle, or why there is none.

    The given bundle serves its own size. The others are exported with their weights from the checkpoint that
    it came from; those already in `folder` are taken as they are.
    """
    model = bundle.model
    found: dict[Size, Bundle | str] = {(model.height, model.width): bundle}
    for height, width in sizes:
        if (height, width) in found:
            continue
        path = folder / f"{bundle.path.resolve().stem}-{height}x{width}.bundle"
        try:
            found[height, width] = (
                Bundle.load(path) if path.exists() else _export(bundle, checkpoint, path, height, width)
            )
        except StreamSplatError as error:
            found[height, width] = str(error)
    return found


def _export(bundle: Bundle, given: Path | None, path: Path, height: int, width: int) -> Bundle:
    checkpoint = find_checkpoint(bundle, given)
    require("export", "torch", "safetensors", "onnx")
    from ...export.export import export_bundle
    from ...export.load import Source

    exported, _ = export_bundle(Source(checkpoint, size=(height, width)), path, name=bundle.name)
    return exported
