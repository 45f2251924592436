"""The wire format: Gaussians of a key frame once, motion and fade once per pair, quantised.

Every message is little-endian and starts with

    0  u8   kind: 1 key frame, 2 pair, 3 picture, 4 exact image
    1  u8   version of the format
    2  u16  zero
    4  u32  number in the buffer, rising (0 for exact images)

Key frame, 12 bytes per Gaussian:

    8  f64  time, s
    16 u32  key frame (id of its Gaussians)       20 u32  G
    24 f32  [9][2] lowest value and step of x, y, z, r, g, b, ln scale x, ln scale z, opacity
    96 u32  [G][3] x | y << 16,   z | r << 16 | g << 24,   b | scale x << 8 | scale z << 16 | opacity << 24

Pair, 8 bytes per Gaussian of either key frame:

    8  f64  time of the earlier key frame, s      16 f64  time of the later
    24 u32  earlier key frame                     28 u32  later key frame
    32 u32  G                                     36 u32  zero
    40 f32  [5][2] lowest value and step of motion x, y, z, gamma0, gamma1
    80 u32  [2][G][2] motion x | y << 16,   motion z | gamma0 << 16 | gamma1 << 24

Picture (the input at the time of a frame) and exact image (what the runtime renders, on request):

    8  f64  time, s
    16 u32  frame of the input                    16 u32  number of the request
    20 u32  zero                                  20 u16  width   22 u16  height
    24      JPEG                                  24      RGB, 8 bits each

A value is lowest + code * step. Opacity code 0 and gamma0 code 255 mean "never drawn": NaN or infinity, which
the rasterizer culls as well. Values far outside anything that can be seen (`_LIMITS`) are drawn at the limit.
At the size of the published model (G = 36,864, so 73,728 alive) a key frame and its pair take 1.03 MB.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt32 = npt.NDArray[np.uint32]

VERSION = 1
KEY_FRAME, PAIR, PICTURE, EXACT = 1, 2, 3, 4

_HEAD = struct.Struct("<BBHI")
_KEY_FRAME = struct.Struct("<dII")
_PAIR = struct.Struct("<ddIIII")
_PICTURE = struct.Struct("<dII")
_EXACT = struct.Struct("<dIHH")

_LN_SCALE = (float(np.log(1e-6)), float(np.log(16.0)))
_COLOUR = (-2.0, 3.0)
# Positions: the image spans 2, inverse depth 1. Beyond an opacity of 16 a Gaussian only grows.
_LIMITS_GAUSSIAN = ((-8.0, 8.0), (-2.0, 3.0), (-8.0, 8.0), *(_COLOUR,) * 3, _LN_SCALE, _LN_SCALE, (0.0, 16.0))
_LIMITS_PAIR = ((-8.0, 8.0), (-3.0, 3.0), (-8.0, 8.0), (-1e3, 1e3), (-10.0, 10.0))


def pack_key_frame(number: int, key_frame: int, time: float, gaussians: Float32) -> bytes:
    """Gaussians [G, 9] of a key frame (see `observers.KeyFrameGaussians`) as a message."""
    columns = np.array(gaussians.T, np.float32, order="C")  # a copy: scales become logarithms
    valid = np.asarray(np.isfinite(columns).all(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns[6:8] = np.log(np.abs(columns[6:8]))
    (x, y, z, r, g, b, sx, sz, opacity), ranges = _quantise(
        columns, valid, _LIMITS_GAUSSIAN, (65535,) * 3 + (255,) * 5 + (254,)
    )
    words = np.empty((len(gaussians), 3), "<u4")
    words[:, 0] = x | y << 16
    words[:, 1] = z | r << 16 | g << 24
    words[:, 2] = b | sx << 8 | sz << 16 | np.where(valid, opacity + 1, 0).astype(np.uint32) << 24
    ranges[8, 0] -= ranges[8, 1]  # code 0 is taken
    head = _HEAD.pack(KEY_FRAME, VERSION, 0, number) + _KEY_FRAME.pack(time, key_frame, len(gaussians))
    return b"".join((head, ranges.tobytes(), words.tobytes()))


def pack_pair(
    number: int, key_frames: tuple[int, int], times: tuple[float, float], motion: Float32, fade: Float32
) -> bytes:
    """Motion [2, G, 3] and fade [2, G, 2] of a pair as a message."""
    count = motion.shape[1]
    columns = np.concatenate([motion.reshape(-1, 3).T, fade.reshape(-1, 2).T]).astype(np.float32, order="C")
    valid = np.asarray(np.isfinite(columns).all(0))
    (x, y, z, gamma0, gamma1), ranges = _quantise(columns, valid, _LIMITS_PAIR, (65535,) * 3 + (254, 255))
    words = np.empty((2 * count, 2), "<u4")
    words[:, 0] = x | y << 16
    words[:, 1] = z | np.where(valid, gamma0, 255).astype(np.uint32) << 16 | gamma1 << 24
    head = _HEAD.pack(PAIR, VERSION, 0, number) + _PAIR.pack(*times, *key_frames, count, 0)
    return b"".join((head, ranges.tobytes(), words.tobytes()))


def pack_picture(number: int, time: float, frame: int, jpeg: bytes) -> bytes:
    """A JPEG of the input at the time of a frame, as a message."""
    return _HEAD.pack(PICTURE, VERSION, 0, number) + _PICTURE.pack(time, frame & 0xFFFFFFFF, 0) + jpeg


def pack_exact(request: int, time: float, rgb: npt.NDArray[np.uint8]) -> bytes:
    """An image uint8 [H, W, 3] that a client asked for, as a message."""
    height, width = rgb.shape[:2]
    return _HEAD.pack(EXACT, VERSION, 0, 0) + _EXACT.pack(time, request, width, height) + rgb.tobytes()


def _quantise(
    columns: Float32,
    valid: npt.NDArray[np.bool_],
    limits: Sequence[tuple[float, float]],
    codes: Sequence[int],
) -> tuple[list[UInt32], Float32]:
    """Codes 0 to `codes[c]` of every column [C, n], and lowest value and step [C, 2] over the valid ones."""
    ranges = np.zeros((len(columns), 2), "<f4")
    result = []
    for column, (lowest, highest), largest, row in zip(columns, limits, codes, ranges, strict=True):
        known = np.where(valid, np.clip(np.nan_to_num(column), lowest, highest), np.float32(0))
        low = float(known.min(where=valid, initial=np.inf))
        high = float(known.max(where=valid, initial=-np.inf))
        if not low <= high:  # not one is valid
            low = high = 0.0
        row[:] = low, (high - low) / largest
        step = row[1] if row[1] > 0 else np.float32(1)
        code = np.rint((known - row[0]) / step)
        result.append(np.clip(code, 0, largest).astype(np.uint32))
    return result, ranges
