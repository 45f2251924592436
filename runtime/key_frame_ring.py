"""Which key frames are alive, in which of three slots, and what time the current interval spans.

The bookkeeping of the Gaussian lifecycle without the arithmetic, shared by `lifecycle.Lifecycle` (host) and
`cuda.lifecycle.DeviceLifecycle`: `KeyFrameRing` counts, `RingLife` puts arrays to the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import InputError

SlotT = TypeVar("SlotT")
PairT = TypeVar("PairT")

SLOTS = 3
"""Two alive, one being filled."""

PAIRS = 2
"""Buffers of motion and fade: the current interval's, and the one being filled."""


@dataclass(frozen=True)
class LifecycleStats:
    """Counts of Gaussians after a key frame.

    spawned, retired: by this key frame. alive: now. spawned_total, retired_total: over the stream's life, so
    that alive = spawned_total - retired_total at all times. key_frame: its number, -1 before the first.
    """

    key_frame: int
    spawned: int
    alive: int
    retired: int
    spawned_total: int
    retired_total: int


class KeyFrameRing:
    """Numbers and times of the key frames alive, and which slots they are in. Not thread-safe.

    Args:
        gaussians: per key frame.

    Attributes:
        key_frames: spawned so far; the next one's number. alive: key frames alive, 0 to 2.
        spare: slot that the next key frame is written into.
    """

    def __init__(self, gaussians: int) -> None:
        self.gaussians = gaussians
        self.key_frames = 0
        self.alive = 0
        self.spare = 0
        self._retired = 0
        self._spawned_now = 0
        self._retired_now = 0
        self._times = [math.nan] * SLOTS
        self._numbers = [-1] * SLOTS

    @property
    def spare_pair(self) -> int:
        """Buffers of motion and fade that the next key frame's pair is written into."""
        return self.key_frames % PAIRS

    @property
    def pair(self) -> int:
        """Buffers of motion and fade of the current interval, where two key frames live."""
        return (self.key_frames - 1) % PAIRS

    @property
    def newest(self) -> int | None:
        """Slot of the latest key frame."""
        return (self.spare - 1) % SLOTS if self.alive else None

    @property
    def previous(self) -> int | None:
        """Slot of the key frame before the latest, while it lives."""
        return (self.spare - 2) % SLOTS if self.alive == 2 else None

    def number(self, slot: int) -> int:
        """Number of the key frame in a slot, counted over the life of the stream; -1 before the first."""
        return self._numbers[slot]

    def time(self, slot: int) -> float:
        """Time stamp of the key frame in a slot, in seconds."""
        return self._times[slot]

    @property
    def interval(self) -> tuple[float, float] | None:
        """First and last time that can be rendered; equal for a lone key frame, None before the first."""
        newest, previous = self.newest, self.previous
        if newest is None:
            return None
        return (self._times[newest if previous is None else previous], self._times[newest])

    @property
    def stats(self) -> LifecycleStats:
        """Counts after the latest key frame."""
        count = self.gaussians
        return LifecycleStats(
            key_frame=self.key_frames - 1,
            spawned=self._spawned_now * count,
            alive=self.alive * count,
            retired=self._retired_now * count,
            spawned_total=self.key_frames * count,
            retired_total=self._retired * count,
        )

    def spawn(self, time: float, *, cut: bool = False) -> None:
        """Make the spare slot the newest key frame and retire the oldest where two are alive already.

        Args:
            time: seconds, later than the newest key frame alive.
            cut: retire everything first; the key frame then stands alone.

        Raises:
            InputError: as `check_time`. Nothing has changed then.
        """
        self.check_time(time)
        self._retired_now = self.alive if cut else max(0, self.alive - 1)
        self._retired += self._retired_now
        self.alive += 1 - self._retired_now
        self._numbers[self.spare], self._times[self.spare] = self.key_frames, time
        self.key_frames += 1
        self._spawned_now = 1
        self.spare = (self.spare + 1) % SLOTS

    def check_time(self, time: float) -> None:
        """Raise `InputError` unless `time` may be the next key frame's."""
        if not math.isfinite(time):
            raise InputError(f"The time stamp is {time}.", "Use finite seconds.")
        latest = -math.inf if self.newest is None else self._times[self.newest]
        if time <= latest:
            raise InputError(
                f"The time stamp {time} s is not later than the previous key frame's {latest} s.",
                "Push frames in time order, or reset the stream first.",
            )

    def reset(self) -> None:
        """Retire all Gaussians. Key-frame numbers go on, so that an id never means two Gaussians."""
        self._spawned_now = 0
        self._retired_now = self.alive
        self._retired += self.alive
        self.alive = 0

    def normalised(self, time: float) -> float:
        """Position of a time in the current interval, 0 at the earlier key frame and 1 at the later.

        Raises:
            InputError: no key frame yet, or the time is not in the interval.
        """
        interval = self.interval
        if interval is None:
            raise InputError("Nothing was pushed yet, so there is nothing to render.", "Push a frame first.")
        first, last = interval
        if not first <= time <= last:  # also refuses NaN
            raise InputError(
                f"Time {time} s is outside the current interval [{first}, {last}] s.",
                "Render a time between the last two pushed frames.",
            )
        return 1.0 if first == last else (time - first) / (last - first)


class RingLife(Generic[SlotT, PairT]):
    """A ring with the arrays of its slots and pairs. Not thread-safe.

    Args:
        gaussians: per key frame. slots: arrays of `SLOTS` key frames. pairs: arrays of `PAIRS` pairs.
    """

    def __init__(self, gaussians: int, slots: Sequence[SlotT], pairs: Sequence[PairT]) -> None:
        self._ring = KeyFrameRing(gaussians)
        self._slots, self._pairs = tuple(slots), tuple(pairs)

    @property
    def spare(self) -> SlotT:
        """The slot that the next `spawn` makes a key frame of."""
        return self._slots[self._ring.spare]

    @property
    def spare_pair(self) -> PairT:
        """The buffers that the next `spawn` takes motion and fade from."""
        return self._pairs[self._ring.spare_pair]

    @property
    def newest(self) -> SlotT | None:
        """The latest key frame."""
        slot = self._ring.newest
        return None if slot is None else self._slots[slot]

    @property
    def previous(self) -> SlotT | None:
        """The key frame before the latest, while it lives."""
        slot = self._ring.previous
        return None if slot is None else self._slots[slot]

    @property
    def pair(self) -> PairT | None:
        """Motion and fade of the current interval, from `previous` to `newest`; None for a lone key frame."""
        return None if self._ring.previous is None else self._pairs[self._ring.pair]

    @property
    def interval(self) -> tuple[float, float] | None:
        """First and last time that can be rendered; equal for a lone key frame, None before the first."""
        return self._ring.interval

    @property
    def stats(self) -> LifecycleStats:
        """Counts after the latest key frame; on a GPU known without asking it."""
        return self._ring.stats

    def check_time(self, time: float) -> None:
        """Raise `InputError` unless `time` may be the next key frame's."""
        self._ring.check_time(time)

    def normalised(self, time: float) -> float:
        """Position of a time in the current interval, 0 at the earlier key frame and 1 at the later.

        Raises:
            InputError: no key frame yet, or the time is not in the interval.
        """
        return self._ring.normalised(time)

    def reset(self) -> None:
        """Retire all Gaussians. Key-frame numbers go on, so that an id never means two Gaussians."""
        self._ring.reset()
