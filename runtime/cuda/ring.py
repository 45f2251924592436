"""Buffers that host and device pass back and forth: the host fills one while the device still reads others.

with ring.use() as slot:   # waits only where the device is `len(ring)` uses behind
    slot.buffers["frames"][...] = ...
    device.copy(...); ...
# busy until the device has passed this point
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..errors import InputError, StreamSplatError
from .device import Event

T = TypeVar("T")


@dataclass
class Slot(Generic[T]):
    """One buffer set of a ring.

    Attributes:
        buffers: what `make` gave. generation: counts its uses, so that a holder can tell whether the contents
            are still its own. keeps: what else the device is reading in this use, and must not be freed
            before.
    """

    buffers: T
    generation: int = 0
    event: Event | None = field(default=None, repr=False)
    held: bool = False
    keeps: object = field(default=None, repr=False)


class Ring(Generic[T]):
    """Slots used in turn. Nothing is allocated after construction. Not thread-safe.

    Args:
        size: slots, 1 or more; so many uses may be on their way at a time.
        make: gives the buffers of one slot.
        record: marks the device's queue of work, see `Device.record`.
    """

    def __init__(self, size: int, make: Callable[[], T], record: Callable[[], Event]) -> None:
        if size < 1:
            raise InputError(f"A ring of {size} slots cannot be used.", "Use 1 or more.")
        self._slots = [Slot(make()) for _ in range(size)]
        self._record = record
        self._next = 0
        self.waits = 0
        """How often `use` had to wait for the device."""

    def __len__(self) -> int:
        return len(self._slots)

    @contextlib.contextmanager
    def use(self) -> Iterator[Slot[T]]:
        """The slot used longest ago, free to be written. The device uses it up to the end of the block in its
        queue, also where the block fails half-way.

        Raises:
            InputError: all slots are within such a block.
        """
        slot = self._slots[self._next]
        if slot.held:
            raise InputError("All slots of the ring are in use.", "Use fewer at a time.")
        if slot.event is not None and not slot.event.done:
            self.waits += 1
            slot.event.synchronize()
        slot.event = slot.keeps = None
        slot.held = True
        slot.generation += 1
        self._next = (self._next + 1) % len(self._slots)
        try:
            yield slot
        except BaseException:
            slot.held = False
            with contextlib.suppress(StreamSplatError):  # a lost device uses nothing any more
                slot.event = self._record()
            raise
        slot.held = False
        slot.event = self._record()

    def __del__(self) -> None:
        # Pinned memory goes back to a pool that does not know what the device still reads of it.
        for slot in getattr(self, "_slots", ()):
            with contextlib.suppress(Exception):
                if slot.event is not None and not slot.event.done:
                    slot.event.synchronize()
