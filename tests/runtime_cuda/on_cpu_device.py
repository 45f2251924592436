"""A device whose kernels run on the CPU: their own source, compiled with cuda_on_cpu.h."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from compile_on_cpu import CUDA, compile_program

from streamsplat_edge.runtime.cuda import layout
from streamsplat_edge.runtime.errors import EngineError

HERE = Path(__file__).parent
GUARD, FILL = 256, 0xA5  # bytes


def build(folder: Path, sources: Path = CUDA) -> Path:
    # -O1: compiling takes longer than the tests run.
    return compile_program(HERE / "runtime_on_cpu.cpp", folder / "runtime_on_cpu.so", sources, "-O1")


class Passed:
    """An event of a device that does everything at once."""

    done = True

    def synchronize(self) -> None:
        pass


class OnCpuDevice:
    """See `runtime.cuda.device.Device`. Arrays lie between bytes that nobody may write (`check_guards`)."""

    description = "kernels on the CPU"
    kind, index, queue = "cpu", 0, 0

    def __init__(self, library: Path) -> None:
        self.native = ctypes.CDLL(str(library))
        self.native.on_cpu_launch.restype = ctypes.c_char_p
        self.launched: list[tuple[str, tuple[int, int, int]]] = []
        self.replayed: list[list[str]] = []
        """What each graph that was started held, in order."""
        self._capturing: list[tuple[str, Callable[[], None]]] | None = None
        self.allocations = self.followed = 0
        self._memory: list[np.ndarray] = []

    def schedule(self, number: int) -> None:
        """Order of warps and lanes: 0 in order, 1 in reverse, from 2 on a seed."""
        self.native.on_cpu_schedule(ctypes.c_uint64(number))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        if dtype.fields is not None:  # as CuPy, which has no structures
            shape, dtype = (*shape, dtype.itemsize), np.dtype(np.uint8)
        return self._allocated(shape, dtype)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._allocated(shape, np.dtype(dtype))

    def _allocated(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if self._capturing is not None:
            raise EngineError("Memory was allocated during a capture.")
        self.allocations += 1
        size = int(np.prod(shape)) * dtype.itemsize
        memory = np.full(size + 2 * GUARD + 16, FILL, np.uint8)
        start = GUARD + (-(memory.ctypes.data + GUARD)) % 16  # as aligned as the widest load needs
        memory[start : start + size] = 0
        self._memory.append(memory)
        array = memory[start : start + size].view(dtype).reshape(shape)
        assert array.ctypes.data % 16 == 0
        return array

    def check_guards(self) -> None:
        for memory in self._memory:
            assert (memory[:GUARD] == FILL).all() and (memory[-GUARD:] == FILL).all()

    mapped = False

    def shared(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        array = self.zeros(shape, dtype)
        return array, array if self.mapped else self.pinned(shape, dtype)

    def adopt(self, array: Any) -> np.ndarray:
        return np.from_dlpack(array) if hasattr(array, "__dlpack__") else np.asarray(array)

    def follow_default(self) -> None:
        self.followed += 1

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: np.ndarray) -> None:
        given = [a.copy() for a in arguments]  # by value, as CUDA takes them
        self.run_as(kernel, lambda: self._launch(kernel, grid, given))

    def run_as(self, name: str, run: Callable[[], None]) -> None:
        """Work in the device's order, which a capture keeps instead of doing it."""
        if self._capturing is not None:
            self._capturing.append((name, run))
        else:
            run()

    def _launch(self, kernel: str, grid: tuple[int, int, int], arguments: list[np.ndarray]) -> None:
        self.launched.append((kernel, grid))
        addresses = (ctypes.c_void_p * len(arguments))(*(a.ctypes.data for a in arguments))
        problem = self.native.on_cpu_launch(
            kernel.encode(), (ctypes.c_uint * 3)(*grid), layout.THREADS, addresses
        )
        if problem:
            raise EngineError(f"{kernel}: {problem.decode()}")

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        """Bytes, whatever their shapes: `cudaMemcpyAsync` knows none."""
        assert target.nbytes == source.nbytes
        assert target.flags.c_contiguous and source.flags.c_contiguous
        if target.nbytes and target.ctypes.data != source.ctypes.data:
            to, there, size = target.ctypes.data, source.ctypes.data, target.nbytes
            self.run_as("copy", lambda: ctypes.memmove(to, there, size) and None)

    def capture(self, enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        if warm_up:
            enqueue()
        steps = self._capturing = []
        try:
            enqueue()
        finally:
            self._capturing = None

        def replay() -> None:
            self.replayed.append([name for name, _ in steps])
            before = len(self.launched)
            for _, run in steps:
                run()
            del self.launched[before:]

        return replay

    def milliseconds(self, run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    def record(self) -> Passed:
        return Passed()

    def synchronize(self) -> None:
        if self._capturing is not None:
            raise EngineError("The device was waited for during a capture.")
