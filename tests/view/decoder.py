"""Reads the messages of a view as docs/viewer.md describes them, apart from the code that writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np


@dataclass
class KeyFrameMessage:
    number: int
    time: float
    index: int
    gaussians: np.ndarray  # float64 [G, 9]
    drawn: np.ndarray  # bool [G]


@dataclass
class PairMessage:
    number: int
    times: tuple[float, float]
    indices: tuple[int, int]
    motion: np.ndarray  # float64 [2, G, 3]
    fade: np.ndarray  # float64 [2, G, 2]
    drawn: np.ndarray  # bool [2, G]


@dataclass
class PictureMessage:
    number: int
    time: float
    frame: int
    jpeg: bytes


@dataclass
class ExactMessage:
    time: float
    request: int
    rgb: np.ndarray


Message = KeyFrameMessage | PairMessage | PictureMessage | ExactMessage


def decode(data: bytes) -> Message:
    kind, version, zero, number = struct.unpack_from("<BBHI", data)
    assert (version, zero) == (1, 0)
    if kind == 1:
        time, index, count = struct.unpack_from("<dII", data, 8)
        ranges = np.frombuffer(data, "<f4", 18, 24).reshape(9, 2).astype(np.float64)
        words = np.frombuffer(data, "<u4", offset=96).reshape(count, 3)
        codes = np.stack(
            [
                *(words[:, 0] & 0xFFFF, words[:, 0] >> 16, words[:, 1] & 0xFFFF),
                *(words[:, 1] >> 16 & 0xFF, words[:, 1] >> 24, words[:, 2] & 0xFF),
                *(words[:, 2] >> 8 & 0xFF, words[:, 2] >> 16 & 0xFF, words[:, 2] >> 24),
            ],
            1,
        )
        values = ranges[:, 0] + codes * ranges[:, 1]
        values[:, 6:8] = np.exp(values[:, 6:8])
        return KeyFrameMessage(number, time, index, values, codes[:, 8] > 0)
    if kind == 2:
        *times, first, second, count, _ = struct.unpack_from("<ddIIII", data, 8)
        ranges = np.frombuffer(data, "<f4", 10, 40).reshape(5, 2).astype(np.float64)
        words = np.frombuffer(data, "<u4", offset=80).reshape(2, count, 2)
        low, high = words[..., 0], words[..., 1]
        codes = np.stack([low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16 & 0xFF, high >> 24], -1)
        values = ranges[:, 0] + codes * ranges[:, 1]
        drawn = codes[..., 3] < 255
        return PairMessage(
            number, (times[0], times[1]), (first, second), values[..., :3], values[..., 3:], drawn
        )
    if kind == 3:
        time, frame, _ = struct.unpack_from("<dII", data, 8)
        return PictureMessage(number, time, frame, data[24:])
    assert kind == 4
    time, request, width, height = struct.unpack_from("<dIHH", data, 8)
    return ExactMessage(time, request, np.frombuffer(data, np.uint8, offset=24).reshape(height, width, 3))
