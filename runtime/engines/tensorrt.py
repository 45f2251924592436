"""TensorRT engine: runs the plan of a stage, with `tensorrt` or `tensorrt_rtx` (one class, two modules).

A plan belongs to a version of TensorRT, a kind of GPU and one ONNX file. All of that is compared before the
plan is deserialised (`plan_choice.py`), because TensorRT's own refusals do not say what to do.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..bundle import Plan, StageVariant
from ..cuda import driver
from ..errors import DeviceLostError, EngineError, OutputError
from ..video.output import write_bytes
from . import trt_api
from .base import BoundEngine, check_specs
from .memory import out_of_memory
from .plan_choice import choose_plan, host_code_allowed, rebuild_hint

if TYPE_CHECKING:
    from ..cuda.device import Device

_ALIGNMENT = 256  # of every address, by the header of `IExecutionContext::setTensorAddress`

_Tensors = dict[str, tuple[str, tuple[object, ...]]]
"""dtype and shape of a plan's tensors, by name; -1 in a shape is free."""


class TensorRtEngine(BoundEngine):
    """A stage's plan on a CUDA device.

    With `memory`, on its arrays and in its stream; else NumPy arrays are copied there and back on a stream of
    its own.
    """

    def __init__(
        self,
        variant: StageVariant,
        *,
        runtime: str,
        device: str = "cuda",
        precision: str | None = None,
        memory: Device | None = None,
    ) -> None:
        super().__init__(variant, memory)
        _check_device(runtime, device)
        if precision not in (None, variant.precision):
            raise EngineError(
                f"The plan of {variant.path.name} is {variant.precision}, not {precision}.",
                "Choose the file of that precision.",
            )
        module = trt_api.load(runtime)
        gpu = _present_gpu()
        plan = choose_plan(variant, runtime, str(module.__version__), gpu)
        self._cupy: Any = _import_cupy()
        self._logger = module.Logger(module.Logger.ERROR)
        self._runtime = trt_api.started(module, "Runtime", self._logger)
        if host_code_allowed(plan.entry):
            self._runtime.engine_host_code_allowed = True
        # Before anything is loaded: the run-time cache is taken only where a CUDA context is current.
        with self._translated("a stream was made"):
            self._stream: Any = None if memory is not None else self._cupy.cuda.Stream(non_blocking=True)
        self._engine: Any = _deserialised(self._runtime, variant, plan, gpu)
        self._cache_path = plan.path.with_suffix(".cache")
        self._cached = self._cache_path.read_bytes() if self._cache_path.is_file() else b""
        self._context, self._cache = trt_api.create_context(self._engine, self._cached)
        if self._context is None:
            raise out_of_memory(f"{runtime} cannot run {plan.path}: no execution context.")
        self._fit_tensors(variant, module)
        if memory is not None:
            self.graph_refusal = None
        self.precision = variant.precision
        self.description = f"{runtime} {module.__version__} {gpu.name} {variant.precision}"

    def _fit_tensors(self, variant: StageVariant, module: Any) -> None:
        """Compare the plan's tensors with the manifest, and set the batch where the plan leaves it free."""
        found: dict[str, _Tensors] = {"input": {}, "output": {}}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            kind = "input" if self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT else "output"
            dtype = trt_api.dtype_name(self._engine.get_tensor_dtype(name))
            found[kind][name] = (dtype, tuple(self._engine.get_tensor_shape(name)))
        check_specs(variant, "input", self.inputs, found["input"])
        check_specs(variant, "output", self.outputs, found["output"])
        for spec in self.inputs:
            if found["input"][spec.name][1] != spec.shape:  # its batch is free
                self._context.set_input_shape(spec.name, spec.shape)

    def _bind(self, inputs: list[Any], outputs: list[Any]) -> Callable[[], None]:
        if self._memory is not None:
            return self._bind_device(self._memory, inputs + outputs)
        cupy, context, stream = self._cupy, self._context, self._stream
        with self._translated("buffers were made"):
            pairs = [
                (spec.name, array, cupy.empty(spec.shape, spec.dtype))
                for spec, array in zip(self.inputs + self.outputs, inputs + outputs, strict=True)
            ]
        sources, targets = pairs[: len(inputs)], pairs[len(inputs) :]

        def run() -> None:
            with self._translated("it ran"):
                for name, _, buffer in pairs:
                    context.set_tensor_address(name, buffer.data.ptr)
                for _, array, buffer in sources:
                    buffer.set(array, stream=stream)
                if not context.execute_async_v3(stream.ptr):
                    raise EngineError(
                        f"TensorRT failed in stage `{self.stage}`.", "Look at its messages above."
                    )
                for _, array, buffer in targets:
                    buffer.get(stream=stream, out=array)
                stream.synchronize()

        return run

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """CuPy's errors as `EngineError`; `what` was done when they came. A device has its own such words."""
        try:
            yield
        except MemoryError as error:  # its OutOfMemoryError is one
            raise out_of_memory(f"The GPU is full: stage `{self.stage}`, when {what}: {error}") from error
        except RuntimeError as error:  # its errors of CUDA are
            raise EngineError(
                f"CUDA failed in stage `{self.stage}`, when {what}: {error}.",
                "See `streamsplat-edge doctor`.",
            ) from error

    def _bind_device(self, memory: Device, arrays: list[Any]) -> Callable[[], None]:
        context, queue = self._context, memory.queue
        addresses = [
            (spec.name, memory.address(array))
            for spec, array in zip(self.inputs + self.outputs, arrays, strict=True)
        ]

        for name, address in addresses:
            if address % _ALIGNMENT:
                raise EngineError(
                    f"TensorRT takes tensors at multiples of {_ALIGNMENT} bytes, and `{name}` of stage "
                    f"`{self.stage}` begins elsewhere at this size of the model.",
                    "Export it at a height and width that are multiples of 16, or use --engine onnxruntime.",
                )

        def run() -> None:
            for name, address in addresses:
                context.set_tensor_address(name, address)
            if not context.execute_async_v3(queue):
                try:
                    memory.synchronize()
                except DeviceLostError:  # that is the error
                    raise
                except EngineError:  # a capture, in which nothing can be waited for
                    pass
                raise EngineError(f"TensorRT failed in stage `{self.stage}`.", "Look at its messages above.")

        return run

    def close(self) -> None:
        super().close()
        compiled = None if self._cache is None else self._cache.serialize()
        if compiled is not None:  # it fails without an exception, where the GPU was lost, say
            self._keep(bytes(compiled))
        self._context = self._engine = self._cache = None

    def _keep(self, compiled: bytes) -> None:
        """Write the kernels that TensorRT-RTX has compiled while running, for the next start."""
        if compiled and compiled != self._cached:
            # In a folder that cannot be written to, every start compiles again and all else works.
            with contextlib.suppress(OutputError):
                write_bytes(self._cache_path, compiled)


def require_device(engine: str, device: str) -> None:
    """Raise EngineError where TensorRT or a GPU is missing."""
    _check_device(engine, device)
    trt_api.load(engine)
    _present_gpu()


def _check_device(runtime: str, device: str) -> None:
    if device != "cuda":
        raise EngineError(f"{runtime} runs on a GPU, not on {device!r}.", "Use --device cuda.")


def _import_cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise EngineError(
            f"CuPy cannot be imported: {error}.", "pip install 'streamsplat-edge[gpu]'."
        ) from error


def _present_gpu() -> driver.DeviceInfo:
    gpu = driver.cuda_device()
    if gpu is None:
        raise EngineError(
            "There is no CUDA device here.", "Look at `streamsplat-edge doctor`, or use --device cpu."
        )
    return gpu


def _deserialised(runtime: Any, variant: StageVariant, plan: Plan, gpu: driver.DeviceInfo) -> Any:
    """The engine of a plan that was chosen for this machine.

    Raises:
        DeviceMemoryError: fewer bytes were free than the plan has. EngineError: it does not load otherwise.
    """
    content, name = plan.path.read_bytes(), plan.entry.runtime
    engine = runtime.deserialize_cuda_engine(content)
    if engine is not None:
        return engine
    if gpu.free_bytes < len(content):
        raise out_of_memory(f"{name} cannot load {plan.path}, of {len(content) / 2**20:.0f} MiB.")
    raise EngineError(f"{name} cannot load {plan.path}.", rebuild_hint(variant, name))
