"""A device that does nothing before it is waited for, so that whoever reads too early, or writes over what is
still to be read, gets wrong pictures every time instead of once in a long run on a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from on_cpu_device import OnCpuDevice


class Point:
    """An event: reached when the work before it was done."""

    def __init__(self, device: LateDevice, number: int) -> None:
        self._device, self._number = device, number

    @property
    def done(self) -> bool:
        return self._device.finished >= self._number

    def synchronize(self) -> None:
        self._device.finish(self._number)


class LateDevice(OnCpuDevice):
    """As `OnCpuDevice`, with a queue.

    Args:
        seed: at every start the device does some of what is queued; None is the latest device possible, which
            does nothing by itself.
    """

    def __init__(self, library: Path, seed: int | None = None) -> None:
        super().__init__(library)
        self._queue: deque[Callable[[], None]] = deque()
        self.started = self.finished = 0
        self._staged: list[np.ndarray] = []
        self._chance = None if seed is None else np.random.default_rng(seed)

    def run_as(self, name: str, run: Callable[[], None]) -> None:
        if self._capturing is not None:
            self._capturing.append((name, run))
            return
        self._queue.append(run)
        self.started += 1
        if self._chance is not None:
            self.finish(int(self._chance.integers(self.finished, self.started + 1)))

    def finish(self, number: int) -> None:
        """Do what was started, up to the work of this number."""
        while self.finished < number:
            self.finished += 1
            self._queue.popleft()()

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = super().zeros(shape, dtype)
        array.view(np.uint8)[...] = 0x7F  # as a float, 3.4e38
        self.run_as("zeros", lambda: array.fill(0))
        return array

    def shared(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        if self.mapped:  # zeroed by the host
            array = self.pinned(shape, dtype)
            return array, array
        return super().shared(shape, dtype)

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        if not self._owns(source):  # CUDA, too, takes a copy of memory that is not pinned
            source = source.copy()
            self._staged.append(source)
        super().copy(target, source)

    def _owns(self, array: np.ndarray) -> bool:
        start = array.ctypes.data
        return any(0 <= start - memory.ctypes.data < memory.nbytes for memory in self._memory)

    def capture(self, enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        replay = super().capture(enqueue, warm_up=warm_up)
        return lambda: self.run_as("graph", replay)

    def milliseconds(self, run: Callable[[], None]) -> float:
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return (time.perf_counter() - start) * 1e3

    def record(self) -> Point:  # type: ignore[override]
        return Point(self, self.started)

    def synchronize(self) -> None:
        super().synchronize()
        self.finish(self.started)
