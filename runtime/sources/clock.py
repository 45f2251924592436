"""Time in live streams: one increasing time line out of whatever a source stamps, and when a frame was made.

Two questions are kept apart. `Timeline`: at which second of the stream does a frame lie? `SourceClock`: at
which moment of this machine's clock was it captured? Both get the raw stamp in seconds (None where a packet
has none) and the moment its packet arrived (`time.perf_counter`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

JUMP_SECONDS = 1.0  # a stamp that is off by more than this is a new time base, not jitter
PAUSE_SECONDS = 2.0  # nothing is known about motion across a longer pause
STEP_MIN = 1e-3  # seconds; two frames are never closer, so that a pair always spans some time
_WINDOW_SECONDS = 30.0  # two of these are remembered: the drift of a bad crystal in a minute is 6 ms


@dataclass(frozen=True)
class Placed:
    """Where a frame lies.

    Attributes:
        timestamp: seconds since the first frame of the stream, strictly increasing.
        segment: grows where what came before says nothing about motion up to this frame.
        repaired: the stamp was missing or unusable, and the time of arrival took its place.
    """

    timestamp: float
    segment: int
    repaired: bool


class Timeline:
    """Seconds since the first frame, strictly increasing, over jumps, repeats, stalls and reconnections.

    A step of the stamps is believed if it goes forward and not further than the time that passed meanwhile
    (plus `JUMP_SECONDS`: frames may arrive in bursts, but nobody can deliver the future). Otherwise the frame
    is placed by its arrival, and the stamps after it count from there.
    """

    def __init__(self) -> None:
        self._raw: float | None = None  # last raw stamp, None: none since `reconnected`
        self._arrival = 0.0
        self._seconds: float | None = None
        self._segment = 0
        self._reconnected = False

    def reconnected(self) -> None:
        """The next frame comes from another connection, whose stamps have nothing to do with those before."""
        self._raw = None
        self._reconnected = True

    def place(self, raw: float | None, arrival: float) -> Placed:
        """The next frame, in the order of presentation."""
        if self._seconds is None:
            self._raw, self._arrival, self._seconds, self._reconnected = raw, arrival, 0.0, False
            return Placed(0.0, 0, raw is None)
        passed = max(STEP_MIN, arrival - self._arrival)
        step = math.nan if raw is None or self._raw is None else raw - self._raw
        usable = 0 < step <= passed + JUMP_SECONDS
        jumped = not (abs(step) <= JUMP_SECONDS or usable or math.isnan(step))
        step = max(STEP_MIN, step) if usable else passed
        self._segment += self._reconnected or jumped or step > PAUSE_SECONDS
        repaired = not usable and not self._reconnected
        self._seconds += step
        self._raw = self._raw if raw is None else raw
        self._arrival, self._reconnected = arrival, False
        return Placed(self._seconds, self._segment, repaired)


class SourceClock:
    """The moment of capture on this machine's clock, from the source's own stamps.

    The two clocks differ by an unknown constant. The smallest difference between arrival and stamp seen
    lately is the best estimate of it: a frame that arrives later than that was held up on the way. What every
    frame has in common (exposure, encoding, the shortest way through the network) cannot be seen from here.
    """

    def __init__(self) -> None:
        self._least = self._least_before = math.inf
        self._turn = -math.inf  # when the current window began
        self._newest = -math.inf
        self._arrival = 0.0
        self._lag = 0.0

    def observe(self, raw: float | None, arrival: float) -> float:
        """Takes note of a packet, in the order of arrival. Returns how late it is, in seconds.

        A stamp that does not advance says nothing about lateness; the result then is the last known one.
        """
        if raw is None:
            return self._lag
        step, passed = raw - self._newest, arrival - self._arrival
        if step < -JUMP_SECONDS or step > passed + JUMP_SECONDS:  # another time base (or the first packet)
            self._least = self._least_before = math.inf
            self._turn = arrival
        elif step <= 0:  # a B-frame, or a source whose stamps stall
            return self._lag
        if arrival - self._turn > _WINDOW_SECONDS:
            self._least_before, self._least, self._turn = self._least, math.inf, arrival
        self._least = min(self._least, arrival - raw)
        self._newest, self._arrival = raw, arrival
        self._lag = arrival - raw - min(self._least, self._least_before)
        return self._lag

    def captured(self, raw: float | None, arrival: float) -> float:
        """When a frame was captured (perf_counter seconds), never later than it arrived."""
        offset = min(self._least, self._least_before)
        if raw is None or not math.isfinite(offset) or abs(raw - self._newest) > JUMP_SECONDS:
            return arrival
        return min(arrival, raw + offset)
