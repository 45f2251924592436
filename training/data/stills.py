"""Photographs and sprites into the cache: the textures of the synthetic scenes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .arrays import save
from .layouts import Photo
from .sample import U8

MAX_SPRITE = 160


def save_photo(image: U8, target: Path, short_side: int) -> None:
    """Write a photograph, uint8 RGB [h, w, 3], resized so that its shorter side has `short_side` pixels."""
    h, w = image.shape[:2]
    scale = short_side / min(h, w)
    size = (max(short_side, round(w * scale)), max(short_side, round(h * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    save(target, np.ascontiguousarray(cv2.resize(image, size, interpolation=interpolation)))


def write_photos(
    photos: Iterable[Photo], root: Path, out: Path, index: dict[str, Any], short_side: int
) -> None:
    """Cache photographs of the folder `root`; unreadable ones are listed as skipped."""
    for photo in photos:
        image = cv2.imread(str(photo.path), cv2.IMREAD_COLOR)
        if image is None:
            name = photo.path.relative_to(root).as_posix()
            index["skipped"].append({"name": name, "reason": "not a readable image"})
            continue
        file = f"photos/{photo.name}.npy"
        save_photo(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), out / file, short_side)
        index["photos"].append({"name": photo.name, "file": file, "split": photo.split})


def write_sprites(folder: Path, out: Path, index: dict[str, Any]) -> None:
    """Cache the `.png` cut-outs of a folder (which may be missing); unusable ones are listed as skipped."""
    for path in sorted(folder.glob("*.png")):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
            index["skipped"].append({"name": path.name, "reason": "not an 8-bit RGBA image"})
            continue
        rows, columns = np.nonzero(image[..., 3] > 8)
        if len(rows) == 0:
            index["skipped"].append({"name": path.name, "reason": "fully transparent"})
            continue
        image = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        scale = min(1.0, MAX_SPRITE / max(image.shape[:2]))
        if scale < 1.0:
            # Averaged with premultiplied colour, or the hidden colour of transparent pixels bleeds into the
            # rim.
            alpha = image[..., 3:].astype(np.float32) / 255
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            packed = np.concatenate([image[..., :3] * alpha, alpha * 255], axis=2)
            packed = np.asarray(cv2.resize(packed, size, interpolation=cv2.INTER_AREA), np.float32)
            packed[..., :3] /= np.maximum(packed[..., 3:] / 255, 1e-3)
            image = np.clip(packed + 0.5, 0, 255).astype(np.uint8)
        save(out / "sprites" / f"{path.stem}.npy", np.ascontiguousarray(image[..., [2, 1, 0, 3]]))
        index["sprites"].append({"name": path.stem, "file": f"sprites/{path.stem}.npy"})
