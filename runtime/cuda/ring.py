"""Buffers that host and device pass back and forth: the host fills one while the device still reads others.

slot = ring.acquire()      # waits only where the device is `len(ring)` uses behind
slot.buffers["frames"][...] = ...
device.copy(...); ...
ring.release(slot)         # busy until the device has passed this point
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..errors import InputError
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
        """How often `acquire` had to wait for the device."""

    def __len__(self) -> int:
        return len(self._slots)

    def acquire(self) -> Slot[T]:
        """The slot used longest ago, free to be written.

        Raises:
            InputError: it was acquired before and not released.
        """
        slot = self._slots[self._next]
        if slot.held:
            raise InputError("All slots of the ring are in use.", "Release one first.")
        if slot.event is not None and not slot.event.done:
            self.waits += 1
            slot.event.synchronize()
        slot.event = slot.keeps = None
        slot.held = True
        slot.generation += 1
        self._next = (self._next + 1) % len(self._slots)
        return slot

    def release(self, slot: Slot[T]) -> None:
        """The device uses the slot up to this point of its queue; afterwards `acquire` may give it again."""
        if not slot.held:
            raise InputError("The slot was not acquired.", "Acquire it first.")
        slot.event = self._record()
        slot.held = False
