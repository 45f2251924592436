"""As much of CuPy as `CupyDevice` touches before and around the GPU, with errors on demand."""

from __future__ import annotations

import ctypes
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
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self.flags = SimpleNamespace(c_contiguous=array.flags.c_contiguous)  # there is no `writeable`
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
        if self.capturing:  # cudaErrorStreamCaptureUnsupported, and the capture is of no use any more
            self.spoilt = True
            raise CudaError(900)

    capturing = spoilt = False

    def begin_capture(self) -> None:
        assert not self.capturing
        self.capturing, self.spoilt = True, False

    def end_capture(self) -> Any:
        assert self.capturing
        self.capturing = False
        if self.spoilt:
            raise CudaError(901, "cudaErrorStreamCaptureInvalidated")
        return SimpleNamespace(upload=self.graphs.append, launch=self.graphs.append)


class FakeEvent:
    """What is asked of the device through it fails where `touch` does."""

    def __init__(self, touch: Any) -> None:
        self._touch = touch
        self.stream: Any = None

    @property
    def done(self) -> bool:
        """False, not an error, where the device is lost: CuPy does not check `cudaEventQuery`."""
        try:
            self._touch()
        except CudaError as error:
            self._touch = _raising(error)
            return False
        return True

    def synchronize(self) -> None:
        self._touch()


def _raising(error: Exception) -> Any:
    def touch() -> None:
        raise error

    return touch


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
        self.silent = False  # the device answers nothing any more
        self.host_allocations: list[int] = []  # flags
        self.get_default_memory_pool = lambda: SimpleNamespace(total_bytes=lambda: 5 << 20)
        self.launches: list[tuple[Any, ...]] = []
        self.copies: list[tuple[Any, ...]] = []
        runtime = SimpleNamespace(
            CUDARuntimeError=CudaError,
            driverGetVersion=lambda: self.driver_version,
            runtimeGetVersion=lambda: self.runtime_version,
            memGetInfo=self._memory,
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
            Event=lambda **_: FakeEvent(self._touch),
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

    def _memory(self) -> tuple[int, int]:
        if self.silent:
            raise CudaError(100)
        return 300 << 20, 8000 << 20

    def load(self, code: bytes) -> None:
        assert type(code) is bytes  # nothing else is taken
        self._touch()
        self.code = code

    def get_function(self, name: str) -> Any:
        def start(grid: Any, block: Any, arguments: Any, *, stream: Any) -> None:
            assert type(grid) is type(block) is tuple and all(type(a) is np.ndarray for a in arguments)
            self._touch()
            self.launches.append((name, grid, block, [bytes(a.tobytes()) for a in arguments], stream.ptr))

        return start

    def zeros(self, shape: Any, dtype: Any) -> FakeArray:
        self._touch()
        return FakeArray(np.zeros(shape, dtype))

    def asarray(self, array: Any) -> FakeArray:
        interface = array.__cuda_array_interface__
        shape, dtype = interface["shape"], np.dtype(interface["typestr"])
        assert interface.get("strides") is None
        memory = (ctypes.c_uint8 * (int(np.prod(shape)) * dtype.itemsize)).from_address(interface["data"][0])
        return FakeArray(np.frombuffer(memory, dtype).reshape(shape))

    def from_dlpack(self, array: Any) -> FakeArray:
        assert array.__dlpack_device__()[0] in (2, 13)
        try:
            capsule = array.__dlpack__(stream=FakeStream.ptr, max_version=(1, 0), copy=None)
        except TypeError:
            capsule = array.__dlpack__(stream=FakeStream.ptr)
        return FakeArray(capsule)

    def _pinned(self, size: int) -> bytearray:
        self._touch()
        return bytearray(b"\xff" * (-(-size // 512) * 512))  # from a pool, whose blocks are that large

    def _mapped(self, size: int, flags: int) -> Any:
        self._touch()
        self.host_allocations.append(flags)
        buffer = bytearray(b"\xff" * size)
        return SimpleNamespace(buffer=buffer, ptr=np.frombuffer(buffer, np.uint8).ctypes.data)

    def _copy(self, *arguments: Any) -> None:
        assert all(type(argument) is int for argument in arguments)
        self._touch()
        self.copies.append(arguments)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    """CuPy that is not there, on a GPU that is not there."""
    from streamsplat_edge.runtime.cuda import cupy_device, kernels
    from streamsplat_edge.runtime.cuda.driver import DeviceInfo

    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for hook in ("unraisablehook", "excepthook"):  # a loss changes them
        monkeypatch.setattr(sys, hook, getattr(sys, hook))
    monkeypatch.setattr(cupy_device, "cuda_device", lambda index: DeviceInfo("Test GPU", "8.7", 1 << 30))
    monkeypatch.setattr(kernels, "machine_code", lambda capability: (b"code", "fatbin"))
    return fake
