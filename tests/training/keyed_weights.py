"""Deterministic weights and inputs made from names, as the golden data of the published model were.

The rule, for a parameter called `name` (its dotted path inside `StreamSplat`; for DINOv2
"condition_encoder.model.<key>"): a Philox generator keyed by crc32(name) draws float32 standard normals z in
C order, and the last component of the name says how they are scaled: "embed"/"token" 0.02 z; "gamma"
0.1 + 0.02 z; two or more axes z / sqrt(fan in); "weight" 1 + 0.1 z; anything else 0.05 z. Buffers are not
keyed. The CRCs in tests/data/golden_pair.npz pin this implementation.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float32]
SIZE = (288, 512)


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))


def keyed_tensor(name: str, shape: tuple[int, ...]) -> Array:
    """The float32 values of parameter `name`."""
    offset, scale = np.float32(0), np.float32(0.05)
    leaf = name.split(".")[-1]
    if "embed" in leaf or "token" in leaf:
        scale = np.float32(0.02)
    elif leaf == "gamma":
        offset, scale = np.float32(0.1), np.float32(0.02)
    elif len(shape) >= 2:
        scale = np.float32(1.0 / math.sqrt(math.prod(shape[1:])))
    elif leaf == "weight":
        offset, scale = np.float32(1.0), np.float32(0.1)
    return np.asarray(offset + scale * _generator(name).standard_normal(shape, dtype=np.float32))


def apply_keyed_weights(model: nn.Module, prefix: str = "") -> None:
    """Give every parameter of `model` its keyed value."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(keyed_tensor(prefix + name, tuple(parameter.shape))))


def _waves(tag: str, shift: tuple[float, float], count: int, highest: float) -> NDArray[np.float64]:
    """A smooth field [H, W] of about unit range, moved by `shift` pixels.

    `count` plane waves of at most `highest` periods per width along either axis.
    """
    height, width = SIZE
    rows = np.arange(height, dtype=np.float64)[:, None] - shift[1]
    cols = np.arange(width, dtype=np.float64)[None, :] - shift[0]
    field, power = np.zeros(SIZE), 0.0
    for u, v, phase, size in _generator(tag).random((count, 4)):
        along_x = 2.0 * math.pi * (2.0 * u - 1.0) * highest / width
        along_y = 2.0 * math.pi * (2.0 * v - 1.0) * highest / width
        amplitude = 0.3 + 0.7 * size
        field += amplitude * np.sin(along_x * cols + along_y * rows + 2.0 * math.pi * phase)
        power += amplitude * amplitude
    return field / math.sqrt(2.0 * power)


def _noise(tag: str) -> NDArray[np.float64]:
    return _generator(tag).standard_normal(SIZE)


def _quantised(values: NDArray[np.float64], levels: int) -> Array:
    # Quantising hides the last bits of sin(), which differ between C libraries.
    return np.rint(np.clip(values, 0.0, 1.0) * levels).astype(np.float32) / np.float32(levels)


def keyed_frames(seed: str) -> tuple[Array, Array]:
    """Two frames of a moving pattern: rgb [2, 288, 512, 3] (k / 255) and depth [2, 288, 512] (k / 65535)."""
    rgb, depth = np.empty((2, *SIZE, 3), np.float32), np.empty((2, *SIZE), np.float32)
    for t in range(2):
        shift = (9.0 * t, -4.0 * t)
        for c in range(3):
            tag = f"frames/{seed}/rgb{c}"
            colour = 0.5 + 0.22 * _waves(f"{tag}/low", shift, 6, 5.0)
            colour = (colour + 0.10 * _waves(f"{tag}/high", shift, 6, 40.0)) * (1.0 - 0.05 * t)
            rgb[t, :, :, c] = _quantised(colour + 0.02 * _noise(f"{tag}/noise{t}"), 255)
        tag = f"frames/{seed}/depth"
        relief = 0.5 + 0.25 * _waves(f"{tag}/low", shift, 5, 3.0)
        relief = relief + 0.05 * _waves(f"{tag}/mid", shift, 5, 16.0) + 0.03 * t
        relief = relief + 0.005 * _noise(f"{tag}/noise{t}")
        depth[t] = _quantised(relief, 65535)
    return rgb, depth


def normalise_depth(depth: Array) -> Array:
    """Joint minimum and maximum over all frames, as the published inference script does it."""
    low, high = depth.min(), depth.max()
    return ((depth - low) / (high - low + np.float32(1e-8))).astype(np.float32)
