"""When a frame is to be shown: frames of an interval are rendered together, and would be seen as one.

Showing waits in the stream's thread, so it must not take the time that the next key frame needs: of a frame's
own duration, what computing costs is left out. A stream that computes slower than its source never waits, and
one that is faster waits until about the source's own pace.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..pipeline import Rendered

LONGEST = 1.0
"""Seconds that a frame waits at most, however far apart time stamps are."""


class Pacer:
    """Spreads the frames of an interval over its time; see the module's docstring. Not thread-safe.

    Args:
        gap: frames from key frame to key frame.
        clock: seconds.
    """

    def __init__(self, gap: int, clock: Callable[[], float]) -> None:
        self._gap, self._clock = gap, clock
        self._share = 0.0  # seconds of computing per frame of the current interval
        self._last: float | None = None  # time stamp
        self._shown = -math.inf

    def due(self, rendered: Rendered) -> float:
        """By the clock: when to show this frame; in the past where at once."""
        if rendered.pushes:
            self._share = sum(sum(push.latencies.values()) for push in rendered.pushes) / 1e3 / self._gap
        time, last = rendered.source.timestamp, self._last
        self._last = time
        if last is None or rendered.is_cut:
            return -math.inf
        return self._shown + min(max(time - last - self._share, 0.0), LONGEST)

    def shown(self) -> None:
        """The frame is on the screen now."""
        self._shown = self._clock()
