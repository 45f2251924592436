"""OpenVINO engine for CPUs: reads the same ONNX files, and runs them in bf16 where the processor can."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..bundle import StageVariant
from ..errors import EngineError
from .base import BoundEngine, check_specs, thread_count

# Execution precision asked for -> (OpenVINO element type, capability the CPU must report).
_PRECISIONS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}


@functools.cache
def process_core(kind: Callable[[], Any]) -> Any:
    """The one `openvino.Core` (`kind`) of the process, for all its life.

    On a processor with AMX, OpenVINO 2026.4 gives the thread that makes a core a stack for signal handlers,
    and frees it with the core but does not take it back: the next signal that Python handles there (Ctrl-C,
    the end of a child process) would end the process with a segmentation fault.
    """
    return kind()


class OpenVinoEngine(BoundEngine):
    """A stage in OpenVINO on the CPU.

    Precision: floating-point work runs in `precision` (fp32, bf16 or fp16), which the CPU must support; None
    chooses bf16 where the CPU has it and fp32 otherwise. A file that is itself quantised may also be asked
    for by its own precision; what it leaves in floating point then runs in that same default.
    """

    def __init__(
        self, variant: StageVariant, *, device: str = "cpu", threads: int = 0, precision: str | None = None
    ) -> None:
        super().__init__(variant)
        try:
            openvino: Any = importlib.import_module("openvino")
        except ImportError as error:
            raise EngineError(
                f"OpenVINO is not installed ({error}).", "Run `pip install 'streamsplat-edge[openvino]'`."
            ) from error
        require_device("openvino", device)
        try:
            core = process_core(openvino.Core)
            capabilities = list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot use this CPU: {error}", "Use --engine onnxruntime, or reinstall openvino."
            ) from error
        execution = choose_precision(precision, variant.precision, capabilities)
        element = getattr(openvino.Type, _PRECISIONS[execution][0])
        count = thread_count(threads)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": count,
            "INFERENCE_PRECISION_HINT": element,
            # Pinned workers would share their cores with the rasterizer's threads even where others are idle.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = core.read_model(variant.path)
            if model.is_dynamic():
                _fix_batch(variant, model)
            _check(variant, model)
            self._compiled: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot load {variant.path}: {error}",
                "Export the bundle again, or update openvino.",
            ) from error
        obtained = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        if obtained != element:
            raise EngineError(
                f"OpenVINO was asked for {execution} and chose {obtained}.", "Use --precision fp32."
            )
        self._request: Any = self._compiled.create_infer_request()
        self._openvino = openvino
        self.precision = execution
        version = openvino.__version__.split("-")[0]
        self.description = f"OpenVINO {version} CPU {execution} ({variant.precision} file), {count} threads"

    def _bind(self, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Callable[[], None]:
        share = self._openvino.Tensor
        pairs = [
            (spec.name, share(array, shared_memory=True))
            for spec, array in zip(self.inputs + self.outputs, inputs + outputs, strict=True)
        ]

        def run() -> None:
            try:
                for name, tensor in pairs:
                    self._request.set_tensor(name, tensor)
                self._request.infer()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed in stage `{self.stage}`: {error}") from error

        return run

    def close(self) -> None:
        super().close()
        self._request = None
        self._compiled = None


def require_device(engine: str, device: str) -> None:
    """Raise EngineError for a device that OpenVINO does not run on here."""
    if device != "cpu":
        raise EngineError(f"The OpenVINO engine runs on the CPU, not on {device!r}.", "Use --device cpu.")


def choose_precision(asked: str | None, file: str, capabilities: list[str]) -> str:
    """The execution precision: what was asked for if the CPU has it, else `EngineError`; None means the best.

    Args:
        asked: fp32, bf16, fp16, the file's own precision, or None.
        file: the file's precision recipe.
        capabilities: OpenVINO's OPTIMIZATION_CAPABILITIES of the CPU.
    """
    if asked is None or (asked == file and asked not in _PRECISIONS):
        return "bf16" if "BF16" in capabilities else "fp32"
    if asked not in _PRECISIONS:
        raise EngineError(
            f"Precision {asked!r} was asked for, but the file is {file}.",
            f"Use one of {', '.join(_PRECISIONS)}, or export a {asked} file.",
        )
    if _PRECISIONS[asked][1] not in capabilities:
        raise EngineError(
            f"This CPU does not run {asked} (OpenVINO reports {', '.join(capabilities)}).",
            "Use --precision fp32.",
        )
    return asked


def _fix_batch(variant: StageVariant, model: Any) -> None:
    """Give a first axis that the file leaves free the manifest's size."""
    batch = {spec.name: spec.shape[0] for spec in variant.inputs if spec.shape}
    shapes = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}
    for name, shape in shapes.items():
        if len(shape) and shape[0].is_dynamic and name in batch:
            shape[0] = batch[name]
    model.reshape(shapes)


def _check(variant: StageVariant, model: Any) -> None:
    for kind, declared, ports in (
        ("input", variant.inputs, model.inputs),
        ("output", variant.outputs, model.outputs),
    ):
        found: dict[str, tuple[str, tuple[object, ...]]] = {}
        wanted = {spec.name for spec in declared}
        for port in ports:
            # A port may carry several names (an output that is also an intermediate tensor).
            name = next((n for n in port.get_names() if n in wanted), port.get_any_name())
            dtype = {"f32": "float32"}.get(
                port.get_element_type().get_type_name(), port.get_element_type().to_string()
            )
            shape = port.get_partial_shape()
            found[name] = (dtype, tuple(shape.to_shape()) if shape.is_static else (str(shape),))
        check_specs(variant, kind, declared, found)
