"""`CupyDevice` without a GPU: what it refuses and in which words, and what it asks of CuPy."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cupy import CudaError, FakeArray, FakeCupy, FakeStream, OutOfMemoryError, cupy

from streamsplat_edge.runtime.cuda import cupy_device, layout
from streamsplat_edge.runtime.cuda.cupy_device import CupyDevice
from streamsplat_edge.runtime.cuda.ring import Ring
from streamsplat_edge.runtime.errors import DeviceLostError, DeviceMemoryError, EngineError, InputError
from streamsplat_edge.runtime.video.surface import Plane

__all__ = ["cupy"]


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(EngineError, match=r"CuPy cannot be imported.*streamsplat-edge\[gpu\].*cupy-cuda12x"):
        CupyDevice()


def test_no_driver(cupy: FakeCupy) -> None:
    cupy.driver_version = 0
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*--device cpu"):
        CupyDevice()


def test_cupy_for_another_cuda(cupy: FakeCupy) -> None:
    cupy.driver_version = 12060
    with pytest.raises(EngineError, match=r"supports CUDA 12\.6.*CuPy is built for CUDA 13\.2") as error:
        CupyDevice()
    # Both packages are called `cupy`, and the kernels need NVRTC as well.
    assert "uninstall -y cupy-cuda13x" in error.value.hint
    assert "install 'cupy-cuda12x>=14' nvidia-cuda-nvrtc-cu12." in error.value.hint
    cupy.driver_version = 13000  # an older minor version is enough
    assert "Test GPU" in CupyDevice().description


def test_no_such_device(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_device, "cuda_device", lambda index: None)
    with pytest.raises(EngineError, match=r"no CUDA device 3 here.*CUDA_VISIBLE_DEVICES"):
        CupyDevice(3)


def test_kernels_of_another_gpu(cupy: FakeCupy) -> None:
    cupy.fail(209)
    with pytest.raises(
        EngineError, match=r"kernels \(fatbin\) do not load on Test GPU, compute capability 8\.7"
    ):
        CupyDevice()


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (2, DeviceMemoryError, "Out of memory on Test GPU while opening"),
        (700, DeviceLostError, "GPU was lost"),
    ],
)
def test_kernels_are_not_to_blame(cupy: FakeCupy, status: int, kind: type[EngineError], words: str) -> None:
    """Where the GPU is full or gone when they are loaded."""
    cupy.fail(status)
    with pytest.raises(kind, match=words):
        CupyDevice()


@pytest.mark.parametrize("error", [2, OutOfMemoryError("Out of memory allocating 8 bytes")])
def test_out_of_memory_says_what_is_free(cupy: FakeCupy, error: int | Exception) -> None:
    device = CupyDevice()
    cupy.fail(error)
    with pytest.raises(EngineError, match=r"allocating 4\.0 MiB: 300 of 8000 MiB are free.*smaller preset"):
        device.zeros((1 << 20,), np.float32)
    assert not device.lost


def test_a_time_out_and_other_losses(cupy: FakeCupy) -> None:
    device = CupyDevice()
    cupy.fail(702)
    with pytest.raises(EngineError, match=r"lost while starting blend: .*too long.*smaller size"):
        device.launch("blend", (1, 1, 1))
    assert device.lost
    device = CupyDevice()
    point = device.record()
    cupy.fail(700)
    with pytest.raises(EngineError, match=r"lost while waiting.*not its own.*dmesg"):
        point.synchronize()
    assert device.lost
    device = CupyDevice()
    ends = device.zeros((2,), np.int8), device.pinned((2,), np.int8)
    cupy.fail(1)
    with pytest.raises(EngineError, match="CUDA failed while copying"):
        device.copy(*ends)
    assert not device.lost


def test_a_device_that_answers_nothing_is_lost(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number it gives: 46 and 100 were seen after a GPU had fallen off the bus."""
    told: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    device = CupyDevice()
    cupy.silent = True
    cupy.fail(100)
    with pytest.raises(DeviceLostError, match=r"lost while starting blend: it answers nothing.*dmesg"):
        device.launch("blend", (1, 1, 1))
    # What CuPy frees from now on is refused, in destructors; a page of tracebacks would follow the message.
    for error in (CudaError(700), ValueError("another's")):
        sys.unraisablehook(SimpleNamespace(exc_type=type(error)))  # type: ignore[arg-type]
    assert told == [ValueError]
    cupy.fail(100)
    with pytest.raises(DeviceLostError):
        device.launch("blend", (1, 1, 1))


def raised_in(file: str, error: Exception) -> Exception:
    """The error with a traceback of this file alone, as Cython gives its own."""
    with pytest.raises(type(error)) as caught:
        exec(compile("raise error", file, "exec"), {"error": error})
    assert caught.value.__traceback__ is not None
    return caught.value.with_traceback(caught.value.__traceback__.tb_next)


def test_what_destructors_print_after_a_loss(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with CuPy 14.2: Cython prints by `sys.excepthook`, before the other hook is asked."""
    told: list[type] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: told.append(kind))
    device = CupyDevice()
    cupy.fail(700)
    with pytest.raises(DeviceLostError):
        device.launch("blend", (1, 1, 1))
    freeing, program = "cupy_backends/cuda/api/driver.pyx", "program.py"
    for file, error in ((freeing, CudaError(700)), (freeing, ValueError()), (program, CudaError(700))):
        error = raised_in(file, error)
        sys.excepthook(type(error), error, error.__traceback__)
    assert told == [ValueError, CudaError], "what a program lets through is told"


def test_the_kernels_are_there_until_they_have_run(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(FakeStream, "synchronize", lambda self: events.append("waited"))

    class Module:
        def load(self, code: bytes) -> None: ...

        def __del__(self) -> None:
            events.append("unloaded")

    monkeypatch.setattr(cupy.cuda.function, "Module", Module)
    device = CupyDevice()
    del device
    assert events == ["waited", "unloaded"]


def test_a_device_in_use_by_others_is_not_lost(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise CudaError(46, "cudaErrorDevicesUnavailable")

    cupy.silent = True
    monkeypatch.setattr(cupy.cuda, "Device", lambda index: SimpleNamespace(use=refuse))
    with pytest.raises(EngineError, match="failed while opening the device: cudaErrorDevicesUn") as error:
        CupyDevice()
    assert not isinstance(error.value, DeviceLostError)


def test_all_errors_that_end_a_process_are_losses() -> None:
    """By CUDA's own header, where it is installed."""
    found = next(Path("/usr/local").glob("cuda*/include/driver_types.h"), None)
    if found is None:
        pytest.skip("CUDA's headers are not installed")
    entries = re.findall(r"/\*\*((?:(?!\*/).)*?)\*/\s*cudaError\w+\s*=\s*(\d+)", found.read_text(), re.S)
    final = {int(number) for words, number in entries if "relaunched" in words}
    assert len(final) > 8 and final <= cupy_device.LOST.keys()


def test_an_event_of_a_lost_device_is_waited_for(cupy: FakeCupy) -> None:
    """CuPy says "not done" instead of failing: the wait that follows tells."""
    device = CupyDevice()
    ring: Ring[int] = Ring(1, lambda: 0, device.record)
    with ring.use():
        pass
    cupy.fail(719)
    with pytest.raises(DeviceLostError, match="a kernel failed"), ring.use():
        pass


def test_what_is_asked_of_cupy(cupy: FakeCupy) -> None:
    device = CupyDevice()
    frames, pinned = device.zeros((3,), layout.RASTER_FRAME), device.pinned((3,), layout.RASTER_FRAME)
    assert frames.dtype == np.uint8 and frames.nbytes == pinned.nbytes == 3 * layout.RASTER_FRAME.itemsize
    assert pinned.flags.writeable and not pinned.tobytes().strip(b"\0")
    device.copy(frames, pinned)
    assert cupy.copies == [(frames.data.ptr, pinned.ctypes.data, pinned.nbytes, 4, 77)]
    params = np.zeros((), layout.RING_PARAMS)
    params["per_frame"] = 5
    device.launch("judge", (2, 1, 3), params)
    assert cupy.launches == [("judge", (2, 1, 3), (layout.THREADS,), [params.tobytes()], 77)]
    with pytest.raises(InputError, match="6 bytes do not fit into 2"):
        device.copy(device.zeros((2,), np.int8), device.pinned((6,), np.int8))
    device.synchronize()
    assert device.record().done


def test_memory_is_shared_where_gpu_and_cpu_have_the_same(cupy: FakeCupy) -> None:
    cupy.attributes = {18: 1, 19: 1, 41: 1}  # as on a Jetson
    device = CupyDevice()
    assert device.mapped and device.description.startswith("Test GPU, mapped memory, kernels by")
    array, host = device.shared((2, 3), np.float32)
    assert cupy.host_allocations == [2], "cudaHostAllocMapped"
    assert device.address(array) == host.ctypes.data and (array.shape, array.dtype) == ((2, 3), host.dtype)
    assert not host.any() and host.flags.writeable
    device.copy(array, host)
    device.copy(host, array)
    assert not cupy.copies, "both are the same memory"
    device.copy(array, device.pinned((2, 3), np.float32))
    assert len(cupy.copies) == 1
    cupy.fail(2)
    with pytest.raises(EngineError, match="allocating mapped memory: 300 of 8000 MiB"):
        device.shared((2, 3), np.float32)


@pytest.mark.parametrize("missing", [18, 19, 41])
def test_memory_is_copied_everywhere_else(cupy: FakeCupy, missing: int) -> None:
    cupy.attributes = {number: int(number != missing) for number in (18, 19, 41)}
    device = CupyDevice()
    assert not device.mapped and "mapped" not in device.description
    array, host = device.shared((2, 3), np.float32)
    assert device.address(array) != host.ctypes.data and not cupy.host_allocations
    device.copy(array, host)
    assert len(cupy.copies) == 1


def test_graphs_are_captured_after_a_warm_up(cupy: FakeCupy) -> None:
    device = CupyDevice()
    captured: list[bool] = []
    replay = device.capture(lambda: captured.append(device.stream.capturing))
    assert captured == [False, True] and not device.stream.capturing
    assert device.stream.graphs == [device.stream]  # uploaded
    assert device.milliseconds(lambda: (replay(), replay(), None)[-1]) == 1.5
    assert len(device.stream.graphs) == 3

    def broken() -> None:
        if device.stream.capturing:
            cupy.fail(900)
        device.launch("blend", (1, 1, 1))

    with pytest.raises(EngineError, match="CUDA failed while starting blend"):
        device.capture(broken)
    assert not device.stream.capturing, "the stream can be used again"
    # Waiting breaks a capture. Ending it says so, too, but not what has broken it.
    with pytest.raises(EngineError, match="CUDA failed while waiting for the device"):
        device.capture(device.synchronize, warm_up=False)
    assert not device.stream.capturing

    def silently() -> None:
        with contextlib.suppress(EngineError):
            device.synchronize()

    with pytest.raises(EngineError, match="capturing a graph: cudaErrorStreamCaptureInvalidated"):
        device.capture(silently, warm_up=False)
    assert not device.stream.capturing


def test_arrays_of_other_libraries(cupy: FakeCupy) -> None:
    device = CupyDevice()
    inner = np.zeros(4, np.float32)
    described = {"shape": (4,), "typestr": "<f4", "data": (inner.ctypes.data, False), "version": 3}
    interface = SimpleNamespace(__cuda_array_interface__=described)
    dlpack = SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=lambda **_: inner)
    # Of a decoder, which takes no stream: see `Plane`.
    chroma = Plane(SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=lambda: inner, line_size=64))
    for given in (interface, dlpack, chroma, FakeArray(inner)):
        assert device.address(device.adopt(given)) == inner.ctypes.data
    # As torch, whose array interface knows no stream: nothing would wait for what it has started.
    told: list[int] = []

    def give(*, stream: int, **_: object) -> np.ndarray:
        told.append(stream)
        return inner

    tensor = SimpleNamespace(
        __cuda_array_interface__={}, inner=np.ones(4), __dlpack_device__=lambda: (2, 0), __dlpack__=give
    )
    assert device.address(device.adopt(tensor)) == inner.ctypes.data and told == [FakeStream.ptr]

    def refuse(**_: object) -> None:
        raise BufferError("Can't export tensors that require gradient")

    leaf = SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=refuse)
    with pytest.raises(InputError, match=r"cannot be taken over: Can't export.*tensor\.detach\(\)"):
        device.adopt(leaf)
    on_host = SimpleNamespace(__dlpack_device__=lambda: (1, 0))
    for given in (on_host, [1.0], np.zeros(3)):
        with pytest.raises(InputError, match="no array on a GPU"):
            device.adopt(given)
    with pytest.raises(InputError, match="on GPU 1, not on 0"):
        device.adopt(FakeArray(inner, device=1))


def test_an_array_with_both_interfaces_is_waited_for(cupy: FakeCupy) -> None:
    """torch's `__cuda_array_interface__` (version 2) names no stream; its DLPack waits in the one told."""
    told: list[int] = []

    class Tensor:
        inner = np.zeros(4, np.float32)
        problem: Exception | None = None

        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            return {"shape": (4,), "typestr": "<f4", "data": (self.inner.ctypes.data, False), "version": 2}

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, *, stream: int, max_version: object = None, copy: object = None) -> np.ndarray:
            if self.problem is not None:
                raise self.problem
            told.append(stream)
            return self.inner

    device, tensor = CupyDevice(), Tensor()
    assert device.address(device.adopt(tensor)) == tensor.inner.ctypes.data
    assert told == [device.queue]
    tensor.problem = BufferError("Can't export tensors that require gradient, use tensor.detach()")
    with pytest.raises(InputError, match=r"Tensor cannot be taken over: .*use tensor\.detach"):
        device.adopt(tensor)


def test_the_default_stream_is_waited_for_on_the_device(cupy: FakeCupy) -> None:
    device = CupyDevice()
    device.follow_default()
    assert device.stream.waited_for is FakeStream.null  # type: ignore[attr-defined]


def test_the_real_cupy_has_these_calls() -> None:
    """What the stand-in imitates, where CuPy is installed; importing it needs no GPU."""
    real = pytest.importorskip("cupy", reason="CuPy (extra [gpu]) is not installed")
    cuda = real.cuda
    for place, names in (
        (real, ("ndarray", "zeros", "asarray", "from_dlpack")),
        (cuda, ("Device", "Stream", "Event", "alloc_pinned_memory", "get_elapsed_time", "nvrtc")),
        (cuda, ("PinnedMemory", "PinnedMemoryPointer", "UnownedMemory", "MemoryPointer")),
        (cuda.Stream, ("record", "synchronize", "begin_capture", "end_capture", "null", "wait_event")),
        (cuda.Event, ("done", "synchronize")),
        (cuda.Graph, ("launch", "upload")),
        (cuda.function.Module, ("load", "get_function")),
        (
            cuda.runtime,
            ("driverGetVersion", "runtimeGetVersion", "memGetInfo", "memcpyAsync", "memcpyDefault"),
        ),
        (cuda.runtime, ("deviceGetAttribute",)),
        (cuda.nvrtc, ("createProgram", "compileProgram", "getCUBIN", "getProgramLog", "getSupportedArchs")),
    ):
        assert all(hasattr(place, name) for name in names), (place, names)
    assert issubclass(cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cuda.driver.CUDADriverError, RuntimeError)  # made by the driver only
    assert cuda.runtime.CUDARuntimeError(700).status == 700


def test_real_arrays_are_as_the_code_takes_them() -> None:
    """CuPy's own arrays over host memory: nothing of this asks a driver."""
    real = pytest.importorskip("cupy", reason="CuPy (extra [gpu]) is not installed")
    cuda, memory = real.cuda, np.zeros(4096, np.uint8)
    owned = cuda.UnownedMemory(memory.ctypes.data, memory.nbytes, memory, 0)
    rgbd = real.ndarray((1, 4, 8, 8), np.float32, cuda.MemoryPointer(owned, 0))
    for planes, first, count in ((rgbd[:, :3], 0, 3), (rgbd[:, 3:], 3, 1)):
        assert planes.shape == (1, count, 8, 8) and planes.flags.c_contiguous
        assert planes.data.ptr == memory.ctypes.data + first * 256 and planes.nbytes == count * 256
        assert planes.device.id == 0 and planes.dtype == np.dtype("float32")
    slots = real.ndarray((3, 1, 5, 9), np.float32, cuda.MemoryPointer(owned, 0))
    assert slots[1].shape == (1, 5, 9) and slots[1].data.ptr == memory.ctypes.data + 180
    assert slots[1:2].flags.c_contiguous and not hasattr(slots.flags, "writeable")
    block = SimpleNamespace(ptr=memory.ctypes.data, size=512)
    host = np.frombuffer(cuda.PinnedMemoryPointer(block, 0), np.float32, 7)
    assert host.shape == (7,) and host.flags.writeable


def test_real_events_do_not_fail_when_asked() -> None:
    event = pytest.importorskip("cupy", reason="CuPy (extra [gpu]) is not installed").cuda.Event
    if cupy_device.cuda_device(0) is not None:
        pytest.skip("with a driver, this number is no event")
    made = event.__new__(event)
    made.ptr = 1
    assert not made.done
    made.ptr = 0


def test_the_real_cupy_passes_structures_by_value() -> None:
    """As far as a launch goes without a driver: an argument of an unknown type is refused before that."""
    function = pytest.importorskip("cupy.cuda.function", reason="CuPy (extra [gpu]) is not installed")
    kernel = function.Function.__new__(function.Function)
    stream = SimpleNamespace(ptr=0)
    with pytest.raises(TypeError):
        kernel((1, 1, 1), (32,), (object(),), stream=stream)
    if cupy_device.cuda_device(0) is None:
        with pytest.raises(RuntimeError, match="driver"):
            kernel((1, 1, 1), (32,), (np.zeros((), layout.RASTER_PARAMS),), stream=stream)
