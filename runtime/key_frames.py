"""When the next key frame is due: at the latest after `gap` frames, and sooner when enough has moved.

A key frame costs an `encode` and a `deform`; the frames in between cost a render only. Where nothing moves,
key frames are wasted; where much moves, frames in between suffer. `MotionGap` spends them by what it sees, at
a cost that hardly depends on the frame's size, and never looks ahead.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .errors import InputError
from .preprocess import Resizer

ROWS, COLS = 36, 64
MOTION_LIMIT = 0.006  # of the image's width; see docs/streams.md for how it was chosen
_FLAT = 0.01  # mean gradient per cell of a picture that shows next to nothing, colours in [0, 1]


class KeyFrameRule(Protocol):
    """Decides frame by frame whether a pair ends before its longest gap. Images: uint8 RGB [h, w, 3]."""

    def began(self, image: np.ndarray) -> None:
        """Told of every key frame, whoever decided it."""

    def due(self, image: np.ndarray) -> bool:
        """Whether this frame should be a key frame. Asked of every other frame, in order."""
        ...


class MotionGap:
    """When the picture has moved by `limit` since the last key frame.

    Motion is judged on 64 x 36 averaged cells. Where brightness is constant along the motion, the temporal
    difference is the spatial gradient times the displacement; hence sum |difference| / sum |gradient| is the
    displacement in cells, averaged with the weight of the gradient. It does not depend on contrast, and what
    appears or vanishes counts as well.

    Args:
        limit: displacement as a share of the image's width.
    """

    def __init__(self, limit: float = MOTION_LIMIT) -> None:
        if not 0 < limit < 1:
            raise InputError(f"The motion limit is {limit}.", "Use a share of the width, say 0.01.")
        self._limit = limit
        self._resizer = Resizer(ROWS, COLS)
        self._planes = np.zeros((3, ROWS, COLS), np.float32)
        self._key: np.ndarray = np.zeros((ROWS, COLS), np.float32)
        self._gradient = 0.0
        self.motion = 0.0  # of the last frame that was asked about, as a share of the width

    def began(self, image: np.ndarray) -> None:
        self._key = self._cells(image)
        self._gradient = _gradient(self._key)

    def due(self, image: np.ndarray) -> bool:
        cells = self._cells(image)
        gradient = 0.5 * (self._gradient + _gradient(cells))
        difference = float(np.abs(cells - self._key).mean())
        self.motion = difference / (gradient + _FLAT) / COLS
        return self.motion >= self._limit

    def _cells(self, image: np.ndarray) -> np.ndarray:
        self._resizer.into(np.ascontiguousarray(image), self._planes)
        return np.asarray(self._planes.mean(0))


def _gradient(cells: np.ndarray) -> float:
    """Mean length of the gradient, per cell."""
    across, down = np.diff(cells, axis=1)[:-1], np.diff(cells, axis=0)[:, :-1]
    return float(np.hypot(across, down).mean())
