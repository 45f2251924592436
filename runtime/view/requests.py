"""What a client may say: one kind of message, checked strictly. Anything else ends its connection."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

MAX_BYTES = 1024
"""Longest message that a client may send."""

_NUMBERS = {"time": 1e12, "yaw": math.pi / 2, "pitch": math.pi / 2, "pivot": 100.0}  # largest magnitudes


class BadRequest(Exception):
    """Not a message of a viewer; the text says why and may be sent back."""


@dataclass(frozen=True)
class RenderRequest:
    """Render exactly: id is given back with the image; seconds; radians; depth of the camera's pivot."""

    id: int
    time: float
    yaw: float
    pitch: float
    pivot: float

    @property
    def is_canonical(self) -> bool:
        return self.yaw == 0 and self.pitch == 0


def parse_request(message: str | bytes) -> RenderRequest:
    """Raises BadRequest for anything but {"type": "render", "id", "time", "yaw", "pitch", "pivot"}."""
    if not isinstance(message, str):
        raise BadRequest("text is expected, not binary data")
    try:
        data = json.loads(message, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BadRequest("not JSON") from None
    if not isinstance(data, dict) or data.pop("type", None) != "render":
        raise BadRequest("unknown type")
    if data.keys() != {"id", *_NUMBERS}:
        raise BadRequest("other fields than id, time, yaw, pitch, pivot")
    number = data["id"]
    if type(number) is not int or not 0 <= number < 2**32:
        raise BadRequest("id is no unsigned 32-bit number")
    values = {}
    for name, largest in _NUMBERS.items():
        value = data[name]
        if type(value) not in (int, float) or not abs(value) <= largest:
            raise BadRequest(f"{name} is no number, or out of range")
        values[name] = float(value)
    return RenderRequest(number, **values)


def _refuse(name: str) -> float:
    raise ValueError(name)
