"""ONNX Runtime engine: CPU, or CUDA where the CUDA build of ONNX Runtime is installed, with IO binding."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import StageVariant
from ..errors import EngineError
from .base import BoundEngine, check_specs, thread_count
from .memory import failure
from .printing import overheard

if TYPE_CHECKING:
    from ..cuda.device import Device

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"tensor(float)": "float32"}
_LIBRARIES = (
    "The libraries of CUDA and cuDNN must be those that it was built for: "
    "pip install 'onnxruntime-gpu[cuda,cudnn]'; look at `streamsplat-edge doctor`."
)


class OnnxRuntimeEngine(BoundEngine):
    """A stage in ONNX Runtime. The provider asked for is the one that runs, or `EngineError` says why."""

    graph_refusal = "ONNX Runtime captures graphs of its own only, not as a part of others"

    def __init__(
        self,
        variant: StageVariant,
        *,
        device: str = "cpu",
        threads: int = 0,
        precision: str | None = None,
        memory: Device | None = None,
    ) -> None:
        super().__init__(variant, memory)
        ort = _import()
        if precision not in (None, variant.precision):
            raise EngineError(
                f"ONNX Runtime runs {variant.path.name} as it is ({variant.precision}), not at {precision}.",
                f"Ask for {variant.precision}, or export a {precision} file of stage `{variant.stage}`.",
            )
        provider = _provider(device, ort.get_available_providers())
        count = thread_count(threads)
        self._session: Any = _open_session(ort, variant, provider, count, memory)
        for kind, declared, found in (
            ("input", self.inputs, self._session.get_inputs()),
            ("output", self.outputs, self._session.get_outputs()),
        ):
            check_specs(
                variant,
                kind,
                declared,
                {t.name: (_DTYPES.get(t.type, t.type), tuple(t.shape)) for t in found},
            )
        self._ort = ort
        self._copies_inputs = device != "cpu"
        self.precision = variant.precision
        self.description = f"ONNX Runtime {ort.__version__} {provider} {variant.precision}, {count} threads"

    def _bind(self, inputs: list[Any], outputs: list[Any]) -> Callable[[], None]:
        if self._memory is not None:
            return self._bind_device(self._memory, inputs, outputs)
        binding = self._session.io_binding()
        values = [
            (spec.name, self._ort.OrtValue.ortvalue_from_numpy(array))
            for spec, array in zip(self.inputs, inputs, strict=True)
        ]
        for name, value in values:
            binding.bind_ortvalue_input(name, value)
        for spec, array in zip(self.outputs, outputs, strict=True):
            binding.bind_ortvalue_output(spec.name, self._ort.OrtValue.ortvalue_from_numpy(array))

        def run() -> None:
            try:
                if self._copies_inputs:  # which is what binding does, so it is done for every run
                    for name, value in values:
                        binding.bind_ortvalue_input(name, value)
                self._session.run_with_iobinding(binding)
            except Exception as error:
                raise EngineError(f"ONNX Runtime failed in stage `{self.stage}`: {error}") from error

        return run

    def _bind_device(self, memory: Device, inputs: list[Any], outputs: list[Any]) -> Callable[[], None]:
        binding = self._session.io_binding()
        for bind, specs, arrays in (
            (binding.bind_input, self.inputs, inputs),
            (binding.bind_output, self.outputs, outputs),
        ):
            for spec, array in zip(specs, arrays, strict=True):
                dtype = np.dtype(spec.dtype).type
                bind(spec.name, memory.kind, memory.index, dtype, spec.shape, memory.address(array))
        options = self._ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding, options)
            except Exception as error:
                memory.synchronize()  # where the device was lost, that is the error
                raise failure(f"ONNX Runtime failed in stage `{self.stage}`: {error}", "", memory) from error

        return run

    def close(self) -> None:
        super().close()
        self._session = None


def _import() -> Any:
    try:  # not at the top, so that `doctor` works where it is broken
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            f"ONNX Runtime cannot be imported ({error}).",
            "Look at `streamsplat-edge doctor`, then `pip install --force-reinstall onnxruntime`.",
        ) from error


def _open_session(ort: Any, variant: StageVariant, provider: str, threads: int, memory: Device | None) -> Any:
    """A session of the file that runs on this provider and no other.

    Raises:
        EngineError: the file cannot be loaded, or ONNX Runtime took another provider.
    """
    on_gpu = provider == _PROVIDERS["cuda"]
    chosen: Any = provider
    if on_gpu:
        _preload(ort)
        chosen = provider, _cuda_options(memory)
    try:
        # Not with its fallback, which loads the file on the CPU instead and says why on stdout. Releases up
        # to 1.19 do so all the same. The CPU has nothing to fall back to.
        with overheard() if on_gpu else nullcontext(io.StringIO()) as said:
            session = ort.InferenceSession(
                variant.path, _session_options(ort, threads), providers=[chosen], enable_fallback=0
            )
    except Exception as error:  # ONNX Runtime's exceptions have no common public base class
        raise failure(
            f"ONNX Runtime cannot load {variant.path}: {error}",
            _LIBRARIES if on_gpu else "Export the bundle again, or update onnxruntime.",
            memory,
        ) from error
    obtained = session.get_providers()
    if not obtained or obtained[0] != provider:
        reason = " ".join(line for line in said.getvalue().splitlines() if line.startswith("EP Error"))
        raise failure(
            f"{provider} was asked for, but ONNX Runtime chose {', '.join(obtained)}. {reason}".strip(),
            f"{_LIBRARIES} Or use --device cpu.",
            memory,
        )
    session.disable_fallback()
    return session


def _session_options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # A spinning worker keeps a core busy between operators and after each run, and the rasterizer's pool or
    # another program wants that core. Measured on two busy cores, tiny preset: spinning made deform 2 to 3
    # times slower (420 against 130 ms) and the renders after it up to 2 times.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _preload(ort: Any) -> None:
    """Load CUDA and cuDNN from NVIDIA's packages, where they are: the loader does not look there by itself.

    Releases from 1.21 on can. What is missing is printed, and then told again by the session's failure.
    """
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with overheard():
            preload()


def _cuda_options(memory: Device | None) -> dict[str, str]:
    """Of the CUDA provider: fp32 stays fp32, and with `memory` its stream, without waiting between."""
    options = {"use_tf32": "0"}  # since 1.18; else products round their inputs to 10 bits
    if memory is not None:
        options |= {"device_id": str(memory.index), "user_compute_stream": str(memory.queue)}
    return options


def require_device(engine: str, device: str) -> None:
    """Raise EngineError where this ONNX Runtime has no provider for the device."""
    _provider(device, _import().get_available_providers())


def _provider(device: str, available: list[str]) -> str:
    if device not in _PROVIDERS:
        raise EngineError(
            f"ONNX Runtime has no device {device!r} here.", f"Use one of {', '.join(_PROVIDERS)}."
        )
    provider = _PROVIDERS[device]
    if provider not in available:
        raise EngineError(
            f"device={device} needs {provider}; this ONNX Runtime has {', '.join(available)}.",
            "Replace the package onnxruntime by onnxruntime-gpu (CUDA build), or use --device cpu.",
        )
    return provider
