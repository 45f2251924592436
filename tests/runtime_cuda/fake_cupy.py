"""As much of CuPy as `CupyDevice` touches before and around the GPU, with errors on demand."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


class CudaError(RuntimeError):
    """CUDARuntimeError and CUDADriverError."""

    def __init__(self, status: int, words: str = "cudaErrorOfATest") -> None:
        super().__init__(words)
        self.status = status


class OutOfMemoryError(MemoryError):
    pass


class FakeArray:
    """A device array in host memory."""

    def __init__(self, array: Any, dtype: Any = None, memptr: Any = None, device: int = 0) -> None:
        if memptr is not None:  # as `cupy.ndarray(shape, dtype, memptr)`
            array = np.frombuffer(memptr.mem.owner.buffer, dtype, int(np.prod(array))).reshape(array)
            assert array.ctypes.data == memptr.mem.ptr and array.nbytes <= memptr.mem.size
        self.array, self.device = array, SimpleNamespace(id=device)
        self.shape, self.dtype, self.nbytes, self.flags = array.shape, array.dtype, array.nbytes, array.flags
        self.data = SimpleNamespace(ptr=array.ctypes.data)
        self.ndim = array.ndim


class FakeStream:
    ptr = 77

    def __init__(self, **_: Any) -> None:
        self.graphs: list[Any] = []

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def record(self, event: Any) -> Any:
        event.stream = self
        return event

    def wait_event(self, event: Any) -> None:
        self.waited_for = event.stream

    def synchronize(self) -> None:
        pass

    capturing = False

    def begin_capture(self) -> None:
        assert not self.capturing
        self.capturing = True

    def end_capture(self) -> Any:
        assert self.capturing
        self.capturing = False
        return SimpleNamespace(upload=self.graphs.append, launch=self.graphs.append)


FakeStream.null = FakeStream()  # type: ignore[attr-defined]


class FakeCupy(ModuleType):
    """`fail(status)` makes the next call of CUDA fail; `launches` and `copies` keep what was asked for."""

    ndarray = FakeArray
    __version__ = "0.test"

    def __init__(self) -> None:
        super().__init__("cupy")
        self.error: Exception | None = None
        self.driver_version, self.runtime_version = 13000, 13020
        self.attributes: dict[int, int] = {}
        self.host_allocations: list[int] = []  # flags
        self.get_default_memory_pool = lambda: SimpleNamespace(total_bytes=lambda: 5 << 20)
        self.launches: list[tuple[Any, ...]] = []
        self.copies: list[tuple[Any, ...]] = []
        runtime = SimpleNamespace(
            CUDARuntimeError=CudaError,
            driverGetVersion=lambda: self.driver_version,
            runtimeGetVersion=lambda: self.runtime_version,
            memGetInfo=lambda: (300 << 20, 8000 << 20),
            memcpyAsync=self._copy,
            memcpyDefault=4,
            deviceGetAttribute=lambda attribute, index: self.attributes.get(attribute, 0),
        )
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            driver=SimpleNamespace(CUDADriverError=CudaError),
            runtime=runtime,
            Device=lambda index: SimpleNamespace(use=lambda: None),
            Stream=FakeStream,
            Event=lambda **_: SimpleNamespace(done=True, synchronize=self._touch),
            get_elapsed_time=lambda begin, end: 1.5,
            function=SimpleNamespace(Module=lambda: self),
            alloc_pinned_memory=self._pinned,
            PinnedMemory=self._mapped,
            PinnedMemoryPointer=lambda memory, offset: memory.buffer,
            UnownedMemory=lambda ptr, size, owner, device_id: SimpleNamespace(
                ptr=ptr, size=size, owner=owner
            ),
            MemoryPointer=lambda mem, offset: SimpleNamespace(mem=mem),
        )

    def fail(self, error: Exception | int) -> None:
        self.error = CudaError(error) if isinstance(error, int) else error

    def _touch(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    def load(self, code: bytes) -> None:
        self._touch()
        self.code = code

    def get_function(self, name: str) -> Any:
        def start(grid: Any, block: Any, arguments: Any, *, stream: Any) -> None:
            self._touch()
            self.launches.append((name, grid, block, [bytes(a.tobytes()) for a in arguments], stream.ptr))

        return start

    def zeros(self, shape: Any, dtype: Any) -> FakeArray:
        self._touch()
        return FakeArray(np.zeros(shape, dtype))

    def asarray(self, array: Any) -> FakeArray:
        return FakeArray(np.asarray(array.inner))

    def from_dlpack(self, array: Any) -> FakeArray:
        return FakeArray(array.__dlpack__(stream=FakeStream.ptr, max_version=(1, 0)))

    def _pinned(self, size: int) -> bytearray:
        self._touch()
        return bytearray(b"\xff" * size)

    def _mapped(self, size: int, flags: int) -> Any:
        self._touch()
        self.host_allocations.append(flags)
        buffer = bytearray(b"\xff" * size)
        return SimpleNamespace(buffer=buffer, ptr=np.frombuffer(buffer, np.uint8).ctypes.data)

    def _copy(self, *arguments: Any) -> None:
        self._touch()
        self.copies.append(arguments)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """CuPy that is not there, on a GPU that is not there."""
    from streamsplat_edge.runtime.cuda import cupy_device, kernels
    from streamsplat_edge.runtime.engines.trt_api import Device

    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(cupy_device, "cuda_device", lambda index: Device("Test GPU", "8.7", 1 << 30))
    monkeypatch.setattr(kernels, "machine_code", lambda capability: (b"code", "fatbin"))
    return fake
