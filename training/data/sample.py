"""What every source of training data yields: one short sequence with its labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass
class Sample:
    """A sequence of T frames; the first and last are the key frames.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        times: float32 [T], 0 at the first and 1 at the last frame, strictly increasing.
        inv_depth: float16 [T, H, W] in [0, 1], larger = nearer; zeros where unknown (`depth_valid` False).
        depth_valid: whether `inv_depth` means anything.
        flow_fwd: float16 [H, W, 2] pixels (x right, y down): where a pixel of the first frame is in the last.
        flow_bwd: the same from the last frame to the first.
        valid_fwd, valid_bwd: bool [H, W], where the flow can be trusted.
        mask: bool [T, H, W], objects that move by themselves; all False where unknown.
        source: where it came from ("clip@row" or "synthetic").
    """

    frames: U8
    times: F32
    inv_depth: F16
    depth_valid: bool
    flow_fwd: F16
    flow_bwd: F16
    valid_fwd: Bool
    valid_bwd: Bool
    mask: Bool
    source: str


def colour_table(rng: np.random.Generator, strength: float = 1.0) -> U8:
    """A random light colour change as a table uint8 [256, 3]: brightness, contrast, gamma, tint."""
    x = np.linspace(0, 1, 256)[:, None]
    gamma = np.exp(rng.normal(0, 0.10 * strength))
    contrast = np.exp(rng.normal(0, 0.08 * strength))
    balance = np.exp(rng.normal(0, 0.03 * strength, 3))[None]
    brightness = rng.normal(0, 0.03 * strength)
    y = ((x**gamma - 0.5) * contrast + 0.5 + brightness) * balance
    table: U8 = (np.clip(y, 0, 1) * 255 + 0.5).astype(np.uint8)
    return table


def pick_times(rng: np.random.Generator, available: int, count: int) -> NDArray[np.int64]:
    """`count` of `available` positions, sorted, the first and last always among them."""
    inner = rng.permutation(np.arange(1, available - 1))[: count - 2]
    return np.concatenate([[0], np.sort(inner), [available - 1]]).astype(np.int64)
