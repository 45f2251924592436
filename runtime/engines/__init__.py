"""Engines: the small `Engine` interface and its backends, chosen by name and never silently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bundle import ENGINE_NAMES, Bundle, StageVariant
from ..errors import BundleError, EngineError
from .base import BoundEngine, Engine, ForwardingEngine, TensorSpec

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = [
    "ENGINES",
    "BoundEngine",
    "Engine",
    "ForwardingEngine",
    "TensorSpec",
    "create",
    "require",
    "select_variant",
]

ENGINES = ENGINE_NAMES
"""Names of the engines, as bundles and commands say them."""

_EXECUTION_PRECISIONS = ("fp32", "bf16", "fp16")  # floating-point precisions OpenVINO can run an fp32 file at


def create(
    engine: str,
    variant: StageVariant,
    *,
    device: str = "cpu",
    threads: int = 0,
    precision: str | None = None,
    memory: Device | None = None,
) -> Engine:
    """Load a stage file.

    Args:
        engine: one of `ENGINES`; TensorRT runs a plan that `streamsplat-edge build` made.
        device: `cpu`, or `cuda` with ONNX Runtime and TensorRT.
        threads: 0 for all cores.
        memory: the device whose arrays `run` gets; None is NumPy's, which are copied to a GPU and back.
        precision: the precision to run at; None is the file's own, or for OpenVINO bf16 where the CPU has it.

    Raises:
        EngineError: unknown engine, missing package, device or precision not available, file not loadable or
            (`MismatchError`) not what the manifest says.
        BundleError: the file is no ONNX file, or keeps tensors in other files.
    """
    _check_name(engine)
    if engine not in variant.engines:
        raise EngineError(
            f"{variant.path.name} is meant for {', '.join(variant.engines)}, not for {engine}.",
            "Choose the file with `select_variant`.",
        )
    if engine == "openvino":
        from .openvino import OpenVinoEngine

        return OpenVinoEngine(variant, device=device, threads=threads, precision=precision)
    if engine in ("tensorrt", "tensorrt_rtx"):
        from .tensorrt import TensorRtEngine

        return TensorRtEngine(variant, runtime=engine, device=device, precision=precision, memory=memory)
    from .onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(variant, device=device, threads=threads, precision=precision, memory=memory)


def require(engine: str, device: str) -> None:
    """Raise EngineError where the engine cannot run on the device, before anything is loaded.

    What can only be known with a file at hand is left to `create`.
    """
    _check_name(engine)
    if engine == "onnxruntime":
        from .onnxruntime import require_device
    elif engine == "openvino":
        from .openvino import require_device
    else:
        from .tensorrt import require_device
    require_device(engine, device)


def select_variant(
    bundle: Bundle, stage: str, engine: str, precision: str | None = None, device: str = "cpu"
) -> StageVariant:
    """The file of a stage to load for this engine, precision and device.

    A file of exactly that precision is preferred; otherwise OpenVINO takes the fp32 file and runs it at the
    (floating-point) precision asked for. Without a precision, files that are faster on other CPUs only are
    passed over.

    Raises:
        BundleError: no file fits.
        EngineError: unknown engine.
    """
    _check_name(engine)
    try:
        return bundle.variant(stage, engine, precision, device)
    except BundleError:
        if engine != "openvino" or precision not in _EXECUTION_PRECISIONS:
            raise
        return bundle.variant(stage, engine, "fp32")


def _check_name(engine: str) -> None:
    if engine not in ENGINES:
        raise EngineError(f"There is no engine {engine!r}.", f"Use one of {', '.join(ENGINES)}.")
