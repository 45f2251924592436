"""Time in recordings: strictly increasing seconds out of whatever a container stamps.

Unlike in a live stream (`sources.clock`), there is no moment of arrival to fall back on: a frame without a
usable stamp is taken to follow the one before at the nominal rate.
"""

from __future__ import annotations

JUMP_SECONDS = 1.0  # a larger step back is a discontinuity of the recording, a smaller one jitter
_STEP_MIN = 1e-3  # seconds between two frames whose stamps are equal or a little out of order


class RecordedTime:
    """Seconds since the first frame, over missing, repeated and jumping stamps.

    Args:
        period: seconds from frame to frame at the nominal rate.

    Attributes:
        last: seconds of the latest frame, -1 before the first. repaired: frames whose stamp was not usable.
    """

    def __init__(self, period: float) -> None:
        self.last = -1.0
        self.repaired = 0
        self._period = period
        self._origin: float | None = None

    def place(self, stamp: float | None) -> float:
        """Seconds of the next frame in order of presentation, later than that of the one before.

        Args:
            stamp: what the container says, in seconds; None where it says nothing.
        """
        if self._origin is None:
            self._origin = 0.0 if stamp is None else stamp
            self.last = 0.0
            return self.last
        if stamp is None:
            now = self.last + self._period
            self.repaired += 1
        else:
            now = stamp - self._origin
            if now <= self.last:
                self.repaired += 1
                if self.last - now > JUMP_SECONDS:  # from here on stamps count from another beginning
                    self._origin -= self.last + self._period - now
                    now = self.last + self._period
                else:
                    now = self.last + min(_STEP_MIN, 0.5 * self._period)
        self.last = now
        return now
