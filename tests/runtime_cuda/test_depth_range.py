"""The running range of depth on the device, against `preprocess.DepthRange`."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_rasterizer import fetch, to_device
from on_cpu_device import OnCpuDevice

from streamsplat_edge.runtime.cuda import layout
from streamsplat_edge.runtime.cuda.depth import DeviceDepthRange
from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.preprocess import DepthRange


class Both:
    """The same planes on both sides; key frame `number` uses pair `number % 2`, as in a stream."""

    def __init__(self, device: Device, shape: tuple[int, int]) -> None:
        self.device, self.shape = device, (1, 1, *shape)
        self.depth = device.zeros(self.shape, np.float32)
        self.ours = DeviceDepthRange(device, [self.depth] * 2)
        self.host = DepthRange()
        self.number = 0

    def frame(self, plane: np.ndarray, time: float, *, fresh: bool = False, fails: bool = False) -> None:
        plane = plane.astype(np.float32).reshape(self.shape)
        self.device.copy(self.depth, to_device(self.device, plane))
        self.ours.begin(time, fresh=fresh)
        self.ours.enqueue(self.number % 2)
        expected = plane.copy()
        after = (DepthRange() if fresh else self.host).normalise(expected, time)
        found = fetch(self.device, self.depth)
        if isinstance(self.device, OnCpuDevice):
            np.testing.assert_array_equal(found, expected)
        else:  # the exponential of the GPU may differ in the last bit
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        if not fails:
            self.host, self.number = after, self.number + 1


def planes(count: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """Whose range grows, shrinks and moves, below zero as well."""
    rng = np.random.default_rng(5)
    return [rng.uniform(-1, 1, shape) * rng.uniform(0.1, 4) + rng.uniform(-3, 3) for _ in range(count)]


@pytest.mark.parametrize("schedule", [0, 1, 2])
def test_a_stream_of_frames(device: OnCpuDevice, schedule: int) -> None:
    device.schedule(schedule)
    both, time = Both(device, (37, 61)), 10.0
    for number, plane in enumerate(planes(12, (37, 61))):
        both.frame(plane, time, fresh=number in (0, 7), fails=number in (4, 5, 8))
        time += 0.13 * (1 + number % 3)


def test_frames_that_are_not_finite_or_flat(any_device: Device) -> None:
    both = Both(any_device, (8, 12))
    good = planes(6, (8, 12))
    for time, (number, value) in enumerate(((0, np.nan), (1, None), (2, np.inf), (3, None), (4, -np.inf))):
        plane = good[number].copy()
        if value is not None:
            plane[3, 5] = value
        both.frame(plane, float(time), fresh=time == 0)
    both.frame(np.full((8, 12), 0.7), 9.0, fresh=True)
    both.frame(np.full((8, 12), 0.7), 10.0)
    both.frame(good[5], 11.0)


def test_more_blocks_than_threads(any_device: Device) -> None:
    shape = 513, 520
    assert shape[0] * shape[1] > layout.DEPTH_BLOCK * layout.THREADS
    both = Both(any_device, shape)
    plane = planes(1, shape)[0]
    plane[-1, -1], plane[-1, -2] = 40.0, -40.0  # in the last block
    both.frame(plane, 0.0, fresh=True)
