"""A CUDA device through CuPy: memory, one stream, kernels; every refusal of CUDA in words that help."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from traceback import walk_tb
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import DeviceLostError, DeviceMemoryError, EngineError, InputError
from . import kernels, layout
from .driver import cuda_device

# cudaError_t and CUresult have the same numbers for these. In `LOST` is all after which the process must be
# started again, by CUDA's own headers, and what is as bad.
_OUT_OF_MEMORY = 2
_TIMED_OUT = 702
LOST = {
    214: "an uncorrectable memory error of the GPU",
    226: "an error of the hardware, which it has contained",
    700: "a kernel used memory that is not its own",
    702: "a kernel ran too long, and the system's watchdog ended it",
    709: "its context was destroyed",
    710: "a kernel failed an assertion",
    714: "an error in the stack of the hardware",
    715: "a kernel was damaged",
    716: "a kernel used a misaligned address",
    717: "a kernel used a wrong kind of address",
    718: "a kernel jumped to nowhere",
    719: "a kernel failed",
    721: "a kernel left memory of the tensor cores behind",
    810: "the MPS server has ended this program's part",
    911: "a device beside the GPU failed",
    999: "the driver does not say why",
}
# cudaDeviceAttr: integrated, can map host memory, has one address space with the host.
_SAME_MEMORY = (18, 19, 41)
_MAPPED = 2  # cudaHostAllocMapped
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


class CupyDevice:
    """See `device.Device`. Nothing of CUDA is touched before construction.

    Attributes:
        cupy: the module. stream: where everything is started; `with device.stream:` makes CuPy use it.
        lost: set once CUDA has failed in a way that this process cannot recover from.
        mapped: GPU and CPU have the same memory (Jetson), so that `shared` arrays need no copy.

    Raises:
        EngineError: CuPy is missing, the driver is missing or too old, there is no such device, or the
            kernels cannot be loaded.
    """

    def __init__(self, index: int = 0) -> None:
        self.kind = "cuda"
        self.lost = False
        self._open = False
        self.index = index
        self.cupy = _import_cupy()
        found = cuda_device(index)
        _check_driver(self.cupy, found is not None, index)
        assert found is not None
        self.name, self.capability = found.name, found.capability
        with self.translated("opening the device"):
            self._device = self.cupy.cuda.Device(index)
            self._device.use()
            ask = self.cupy.cuda.runtime.deviceGetAttribute
            self.mapped = all(ask(attribute, index) for attribute in _SAME_MEMORY)
            self.stream: Any = self.cupy.cuda.Stream(non_blocking=True)
            code, source = kernels.machine_code(self.capability)
            self._module: Any = self.cupy.cuda.function.Module()
            try:
                self._module.load(code)
            except Exception as error:
                if getattr(error, "status", 0) in (_OUT_OF_MEMORY, *LOST):
                    raise  # the kernels are not to blame
                raise EngineError(
                    f"The CUDA kernels ({source}) do not load on {self.name}, compute capability "
                    f"{self.capability}: {error}.",
                    f"Install again, or delete {kernels.cache_folder()}.",
                ) from error
        self._open = True
        self._functions: dict[str, Any] = {}
        memory = "mapped memory, " if self.mapped else ""
        self.description = f"{self.name}, {memory}kernels by {source}, CuPy {self.cupy.__version__}"

    def __del__(self) -> None:
        # The module goes with it, and CUDA does not promise to wait for kernels before it drops their code.
        if getattr(self, "_open", False) and not self.lost:
            with contextlib.suppress(Exception):
                self.synchronize()

    @property
    def queue(self) -> int:
        return int(self.stream.ptr)

    @contextlib.contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Turns errors of CUDA into `EngineError`; `what` completes "CUDA failed while ..."."""
        cuda = self.cupy.cuda
        try:
            yield
        except cuda.memory.OutOfMemoryError as error:
            raise self._memory_error(what, str(error)) from error
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            status = int(getattr(error, "status", 0))
            if status == _OUT_OF_MEMORY:
                raise self._memory_error(what, str(error)) from error
            if status not in LOST and not (self._open and self._is_silent()):
                raise EngineError(
                    f"CUDA failed while {what}: {error}.", "See `streamsplat-edge doctor`."
                ) from error
            self._lose()
            why = LOST.get(status, "it answers nothing any more")
            raise DeviceLostError(
                f"The GPU was lost while {what}: {why} ({error}).",
                "Use a smaller size or a shorter launch, or a GPU without a screen."
                if status == _TIMED_OUT
                else "Start the program again; if it comes back, look at `dmesg` for an Xid message.",
            ) from error

    def _is_silent(self) -> bool:
        """Whether the device refuses the most harmless of questions, too: it has fallen off the bus, say."""
        try:
            self.cupy.cuda.runtime.memGetInfo()
        except Exception:
            return True
        return False

    def _lose(self) -> None:
        """From now on whatever CuPy frees is refused, and a traceback would be printed for each: by Python as
        "unraisable", and before that by Cython, whose destructors print as if the program had ended."""
        if self.lost:
            return
        self.lost = True
        cuda, told, printed = self.cupy.cuda, sys.unraisablehook, sys.excepthook
        refused = cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError

        def hook(unraisable: Any) -> None:
            if not issubclass(unraisable.exc_type, refused):
                told(unraisable)

        def printing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            # What a program lets through begins in its own code, not in CuPy's.
            files = [frame.f_code.co_filename for frame, _ in walk_tb(trace)]
            if not (issubclass(kind, refused) and all(name.endswith(".pyx") for name in files)):
                printed(kind, error, trace)

        sys.unraisablehook, sys.excepthook = hook, printing

    def _memory_error(self, what: str, words: str) -> EngineError:
        available = None
        try:
            free, total = self.cupy.cuda.runtime.memGetInfo()
            available = int(free) + int(self.cupy.get_default_memory_pool().total_bytes())
            memory = f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB are free"
        except Exception:  # the device may be too far gone to ask
            memory = "how much is free cannot be read"
        return DeviceMemoryError(
            f"Out of memory on {getattr(self, 'name', 'the GPU')} while {what}: {memory} ({words}).",
            "Close what else uses the GPU, or use a smaller preset.",
            available,
        )

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        dtype = np.dtype(dtype)
        if dtype.fields is not None:  # CuPy has no structures; their bytes are all the same
            shape, dtype = (*shape, dtype.itemsize), np.dtype(np.uint8)
        with (
            self.translated(f"allocating {int(np.prod(shape)) * dtype.itemsize / 2**20:.1f} MiB"),
            self.stream,
        ):
            return self.cupy.zeros(shape, dtype)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        count = int(np.prod(shape))
        with self.translated("allocating pinned memory"):
            memory = self.cupy.cuda.alloc_pinned_memory(max(1, count * dtype.itemsize))
        return _zeroed(memory, shape, dtype)

    def shared(self, shape: tuple[int, ...], dtype: Any) -> tuple[Any, np.ndarray]:
        if not self.mapped:
            return self.zeros(shape, dtype), self.pinned(shape, dtype)
        cuda, dtype = self.cupy.cuda, np.dtype(dtype)
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        with self.translated("allocating mapped memory"):
            memory = cuda.PinnedMemory(size, _MAPPED)
            # With one address space the device's pointer is the host's.
            pointer = cuda.MemoryPointer(cuda.UnownedMemory(memory.ptr, size, memory, self.index), 0)
            array = self.cupy.ndarray(shape, dtype, pointer)
        return array, _zeroed(cuda.PinnedMemoryPointer(memory, 0), shape, dtype)

    def adopt(self, array: Any) -> Any:
        cupy = self.cupy
        with self.translated("taking over an array"), self.stream:
            if not isinstance(array, cupy.ndarray):
                # DLPack first: it is told this stream, and makes it wait for the array's. The other interface
                # leaves the stream out in torch (its version 2), and nothing would be in order.
                if hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] in _DLPACK_CUDA:
                    try:
                        array = cupy.from_dlpack(array)
                    except BufferError as error:  # the library's: a tensor that requires gradients, say
                        raise InputError(
                            f"{type(array).__name__} cannot be taken over: {error}.",
                            "Pass a plain array; of torch, tensor.detach().",
                        ) from error
                elif hasattr(array, "__cuda_array_interface__"):
                    array = cupy.asarray(array)
                else:
                    raise InputError(
                        f"{type(array).__name__} is no array on a GPU.",
                        "Pass a device array that has DLPack or __cuda_array_interface__.",
                    )
        if array.device.id != self.index:
            raise InputError(
                f"The array is on GPU {array.device.id}, not on {self.index}.", "Copy it to this GPU first."
            )
        return array

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: np.ndarray) -> None:
        with self.translated(f"starting {kernel}"):
            function = self._functions.get(kernel)
            if function is None:
                function = self._functions[kernel] = self._module.get_function(kernel)
            function(grid, (layout.THREADS,), arguments, stream=self.stream)

    def copy(self, target: Any, source: Any) -> None:
        if target.nbytes != source.nbytes:
            raise InputError(f"{source.nbytes} bytes do not fit into {target.nbytes}.")
        if target.nbytes == 0:
            return
        runtime = self.cupy.cuda.runtime
        with self.translated("copying"):
            ends = [a.ctypes.data if isinstance(a, np.ndarray) else a.data.ptr for a in (target, source)]
            if ends[0] == ends[1]:
                return
            runtime.memcpyAsync(*ends, target.nbytes, runtime.memcpyDefault, self.stream.ptr)

    def capture(self, enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        if warm_up:
            enqueue()
        self.synchronize()
        with self.translated("capturing a graph"), self.stream:
            self.stream.begin_capture()
            try:
                enqueue()
            except BaseException:
                # The stream must not stay in capture, and the first error is the one to tell.
                with contextlib.suppress(Exception):
                    self.stream.end_capture()
                raise
            graph = self.stream.end_capture()
            graph.upload(self.stream)

        def replay() -> None:
            with self.translated("starting a graph"):
                graph.launch(self.stream)

        return replay

    def follow_default(self) -> None:
        cuda = self.cupy.cuda
        with self.translated("ordering streams"):
            self.stream.wait_event(cuda.Stream.null.record(cuda.Event(disable_timing=True)))

    def milliseconds(self, run: Callable[[], None]) -> float:
        cuda = self.cupy.cuda
        with self.translated("measuring"):
            begin = self.stream.record(cuda.Event())
            run()
            end = self.stream.record(cuda.Event())
            end.synchronize()
            return float(cuda.get_elapsed_time(begin, end))

    def record(self) -> Any:
        with self.translated("recording an event"):
            return _Point(self, self.stream.record(self.cupy.cuda.Event(disable_timing=True)))

    def synchronize(self) -> None:
        with self.translated("waiting for the device"):
            self.stream.synchronize()


class _Point:
    """See `device.Event`."""

    def __init__(self, device: CupyDevice, event: Any) -> None:
        self._device, self._event = device, event

    @property
    def done(self) -> bool:
        with self._device.translated("asking the device"):
            return bool(self._event.done)

    def synchronize(self) -> None:
        with self._device.translated("waiting for the device"):
            self._event.synchronize()


def _zeroed(memory: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A zeroed array over a buffer, which it keeps alive."""
    array = np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
    array[...] = np.zeros((), dtype)
    return array


def _import_cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise EngineError(
            f"CuPy cannot be imported: {error}.",
            f"pip install 'streamsplat-edge[gpu]'; where the driver is of CUDA 12, {_install(12)}.",
        ) from error


def _install(cuda: int) -> str:
    """The command for a driver of this major version. CuPy finds that package of NVRTC from 14 on."""
    return f"pip install 'cupy-cuda{cuda}x>=14' nvidia-cuda-nvrtc{'' if cuda > 12 else f'-cu{cuda}'}"


def _check_driver(cupy: Any, found: bool, index: int) -> None:
    """Raise `EngineError` unless the driver has this device and is new enough for this CuPy."""
    runtime = cupy.cuda.runtime
    driver, wanted = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    if driver == 0:
        raise EngineError(
            "There is no NVIDIA driver here.", "Install one (`nvidia-smi` must work), or use --device cpu."
        )
    if driver // 1000 < wanted // 1000:  # within a major version any driver will do
        have, need = (f"{v // 1000}.{v % 1000 // 10}" for v in (driver, wanted))
        raise EngineError(
            f"The NVIDIA driver supports CUDA {have}, but this CuPy is built for CUDA {need}.",
            f"Update the driver, or replace CuPy: pip uninstall -y cupy-cuda{wanted // 1000}x, then "
            f"{_install(driver // 1000)}.",
        )
    if not found:
        raise EngineError(
            f"There is no CUDA device {index} here.", "See `nvidia-smi` and CUDA_VISIBLE_DEVICES."
        )
