"""What the GPU runtime asks of a device; `cupy_device.CupyDevice` is the real one.

Tests give another: the same kernels compiled for the CPU, on NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..array import Array, Shape


class Event(Protocol):
    """A point in a device's queue of work."""

    @property
    def done(self) -> bool:
        """Whether the device has passed it."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed it."""
        ...


class Device(Protocol):
    """One CUDA device with one queue of work (a stream). Launches and copies return before they are done."""

    description: str
    kind: str
    """What ONNX Runtime calls this kind of memory: "cuda"."""
    index: int
    """Ordinal among the devices that this process sees."""

    @property
    def queue(self) -> int:
        """The stream, as a number for other libraries (`cudaStream_t`)."""
        ...

    def zeros(self, shape: Shape, dtype: npt.DTypeLike) -> Array:
        """A zeroed array on the device.

        Raises:
            EngineError: out of device memory.
        """
        ...

    def pinned(self, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
        """A zeroed array in host memory that the device reads and writes while the host goes on."""
        ...

    def shared(self, shape: Shape, dtype: npt.DTypeLike) -> tuple[Array, np.ndarray]:
        """A zeroed array on the device and one on the host, to be copied from one to the other.

        Where GPU and CPU have the same memory (`mapped`) both are one, and `copy` between them does nothing:
        the host must not write, and reads nothing new, before the device has come so far.

        Raises:
            EngineError: out of memory.
        """
        ...

    def adopt(self, array: Any) -> Array:
        """A device array of any library (DLPack or `__cuda_array_interface__`), without a copy.

        Raises:
            InputError: it is no array on this device.
        """
        ...

    def address(self, array: Array) -> int:
        """Where the array's first element is in device memory."""
        ...

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: np.ndarray) -> None:
        """Start a kernel in blocks of `layout.THREADS` threads.

        Args:
            kernel: its name in cuda/streamsplat.cu.
            grid: blocks along x, y and z.
            arguments: structures (zero-dimensional arrays) of `layout`, passed by value.

        Raises:
            EngineError: the launch was refused.
        """
        ...

    def copy(self, target: Array, source: Array) -> None:
        """Copy between device and pinned host memory; shapes and dtypes are equal. To itself: nothing."""
        ...

    def capture(self, enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        """A function that starts all that `enqueue` starts, as one graph.

        Args:
            enqueue: must only launch and copy.
            warm_up: run it once before, so that what is loaded or compiled at first use is there.

        Raises:
            EngineError: it did something that a graph cannot hold.
        """
        ...

    def follow_default(self) -> None:
        """What is started from now on comes after what CUDA's default stream has to do by now, in which
        libraries work that were given no stream. Waits on the device, not here."""
        ...

    def milliseconds(self, run: Callable[[], None]) -> float:
        """Time on the device from the beginning to the end of what `run` starts. Waits for it."""
        ...

    def record(self) -> Event:
        """The point after everything that was started so far."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was started is done.

        Raises:
            EngineError: something of it failed.
        """
        ...
