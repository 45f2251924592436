"""Decoded pictures without a decoder: random samples in the formats of decoders on CPUs and on GPUs."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

# Bits that a sample of a format is shifted up by, and whether chroma lies in one plane.
_FORMATS = {"yuv420p": (0, False), "nv12": (0, True), "yuv420p10le": (2, False), "p010le": (8, True)}

BT601, BT709 = 5, 1


def samples(height: int, width: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """8-bit luma [h, w] and chroma [h/2, w/2, 2] (sides rounded up), of every value."""
    rng = np.random.default_rng(seed)
    chroma = (-(-height // 2), -(-width // 2), 2)
    return rng.integers(0, 256, (height, width), np.uint8), rng.integers(0, 256, chroma, np.uint8)


def yuv_frame(
    name: str, luma: np.ndarray, chroma: np.ndarray, *, space: int = BT709, full: bool = False
) -> av.VideoFrame:
    """A frame of this format with these samples; rows are padded with what nobody should read."""
    shift, together = _FORMATS[name]
    dtype = np.uint16 if shift else np.uint8
    planes = [luma, chroma] if together else [luma, chroma[..., 0], chroma[..., 1]]
    frame = av.VideoFrame(luma.shape[1], luma.shape[0], name)
    frame.colorspace, frame.color_range = space, 2 if full else 1
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.ascontiguousarray(values.astype(dtype) << shift).reshape(len(values), -1).view(np.uint8)
        padded = np.full((plane.height, plane.line_size), 0x5A, np.uint8)
        padded[:, : rows.shape[1]] = rows
        target: Any = plane
        target.update(padded)
    return frame
