"""Masks and inverse depth from files, at the size of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.preprocess import normalise_depth

from .arrays import read
from .sample import F16, F32, Bool


def read_mask(path: Path, height: int, width: int) -> Bool:
    """An instance annotation as bool [H, W]: True where the larger part of a pixel has an instance > 0.

    Palette images count by colour, of which the data sets keep black for the background.

    Raises:
        ValueError: not a readable image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("not a readable image")
    colours = image[..., :3] if image.ndim == 3 else image[..., None]
    instance = np.asarray((colours > 0).any(axis=2), np.float32)
    covered = cv2.resize(instance, (width, height), interpolation=cv2.INTER_AREA)
    mask: Bool = np.asarray(covered) >= 0.5
    return mask


def read_inverse_depth(path: Path, height: int, width: int) -> F16:
    """A map of relative inverse depth (larger = nearer) as float16 [H, W] in [0, 1].

    .npy of any real type, or .png of 8 or 16 bits with one channel. Another size is resized bilinearly in
    float32, as published; then every frame is scaled by its own minimum and maximum, as published for
    training. A constant map becomes zeros, where the published code divides by zero.

    Raises:
        InputError: not one number per pixel.
        ValueError: unreadable, or with values that are not finite (they are counted).
    """
    if path.suffix.lower() == ".npy":
        values: NDArray[Any] | None = read(path)
    else:
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("not a readable image")
    if values.dtype.kind not in "fiu":
        raise InputError(f"{path} holds {values.dtype}, not depth.", "Store one real number per pixel.")
    shape, values = values.shape, np.squeeze(values)
    if values.ndim != 2 or not values.size:
        raise InputError(
            f"{path} has shape {list(shape)}, not one value per pixel.",
            "A coloured picture of depth cannot be used: store the values, [height, width].",
        )
    depth: F32 = values.astype(np.float32)
    wrong = depth.size - int(np.isfinite(depth).sum())
    if wrong:
        raise ValueError(f"{wrong} of {depth.size} depth values are not finite")
    return scale_inverse_depth(np.asarray(cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR)))


def scale_inverse_depth(depth: NDArray[np.float32]) -> F16:
    """Inverse depth [H, W] scaled by its own minimum and maximum, float16 in [0, 1]; overwrites its input."""
    normalise_depth(depth)
    return depth.astype(np.float16)
