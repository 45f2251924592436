"""The ring of pinned buffers against a device that falls behind."""

from __future__ import annotations

import pytest

from streamsplat_edge.runtime.cuda.ring import Ring
from streamsplat_edge.runtime.errors import DeviceLostError, InputError


class SlowDevice:
    """Passes a point of its queue only when told, or when someone waits for it."""

    def __init__(self) -> None:
        self.passed = 0
        self.recorded = 0

    def record(self) -> _Point:
        self.recorded += 1
        return _Point(self, self.recorded)


class _Point:
    def __init__(self, device: SlowDevice, number: int) -> None:
        self.device, self.number = device, number

    @property
    def done(self) -> bool:
        return self.device.passed >= self.number

    def synchronize(self) -> None:
        self.device.passed = max(self.device.passed, self.number)


def test_a_slot_is_never_given_while_the_device_uses_it() -> None:
    device = SlowDevice()
    ring = Ring(3, list, device.record)
    uses: dict[int, int] = {}  # buffers -> the point after which they are free
    for step in range(50):
        with ring.use() as slot:
            assert uses.get(id(slot.buffers), 0) <= device.passed
        uses[id(slot.buffers)] = device.recorded
        if step % 4 == 0:
            device.passed = device.recorded  # the device catches up
    assert len(uses) == len(ring) == 3
    assert 0 < ring.waits < 50


def test_waits_only_where_the_ring_is_full() -> None:
    device = SlowDevice()
    ring = Ring(4, list, device.record)
    for expected in (0, 0, 0, 0, 1, 2):
        with ring.use():
            assert ring.waits == expected


def test_generations_tell_whether_contents_are_still_ones_own() -> None:
    ring = Ring(2, list, SlowDevice().record)
    with ring.use() as first:
        generation = first.generation
    with ring.use():
        pass
    assert first.generation == generation
    with ring.use() as again:
        assert again is first and first.generation == generation + 1


def test_a_use_that_fails_half_way_gives_the_slot_back() -> None:
    """What it had started may still be on its way."""
    device = SlowDevice()
    ring = Ring(1, list, device.record)
    with pytest.raises(RuntimeError), ring.use():
        raise RuntimeError
    with ring.use():
        assert (ring.waits, device.passed) == (1, 1)

    def lost() -> _Point:
        raise DeviceLostError("the GPU was lost")

    ring = Ring(1, list, lost)
    with pytest.raises(RuntimeError), ring.use():
        raise RuntimeError  # and not that nothing can be recorded
    with pytest.raises(DeviceLostError), ring.use():
        pass


def test_pinned_memory_is_not_given_up_while_the_device_reads_it() -> None:
    device = SlowDevice()
    ring = Ring(2, list, device.record)
    for _ in range(2):
        with ring.use():
            pass
    del ring
    assert device.passed == 2


def test_misuse_is_refused() -> None:
    ring = Ring(1, list, SlowDevice().record)
    with ring.use(), pytest.raises(InputError, match="in use"), ring.use():
        pass
    with pytest.raises(InputError, match="0 slots"):
        Ring(0, list, SlowDevice().record)
