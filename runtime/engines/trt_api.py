"""Everything in which TensorRT 10.3, TensorRT 11 and TensorRT-RTX differ, found by capability.

| call | who has it | else |
|---|---|---|
| `NetworkDefinitionCreationFlag.STRONGLY_TYPED` | 10, RTX (11 has no other mode) | no flag |
| `BuilderFlag.FP16`, `BF16`, `INT8`, ... | 10 only | never used: types come from the graph |
| `ComputeCapability`, `IBuilderConfig.num_compute_capabilities` | RTX | built for the GPU that is present |
| `BuilderFlag.VERSION_COMPATIBLE`, `HardwareCompatibilityLevel` | 10, 11; of no use in RTX | refused |
| `IBuilderConfig.create_timing_cache` | all; RTX measures nothing while building | run-time cache |
| `IRuntimeConfig.create_runtime_cache` | RTX (10 and 11 have the config, without it) | nothing to keep |
| `IAttention.decomposable` | 10.14 on, RTX | nothing to set |
| `OnnxParser.set_builder_config` | 11, RTX | nothing to set |
| layers of a plan in the builder's verbose log | RTX | `IEngineInspector` |
| `Format/Datatype` of the inspector | 10 | 11 and RTX: `Format`, `DataType` |

`IEngineInspector` is read in `export/plan_layers.py`. `make lint` type-checks this file against
`tensorrt-stubs` (TensorRT 10.13).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

RUNTIMES = {
    "tensorrt": "pip install 'streamsplat-edge[tensorrt]'; on Jetson it comes with JetPack "
    "(apt install python3-libnvinfer, and an environment made with --system-site-packages)",
    "tensorrt_rtx": "pip install 'streamsplat-edge[tensorrt-rtx]'",
}
"""Module name -> how to install it."""

# Compute capabilities that TensorRT-RTX builds for ahead of time, and what each needs from the precision.
_FP8_FROM = (8, 9)
_BF16_FROM = (8, 0)


def load(runtime: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        EngineError: not installed, or its libraries do not load.
    """
    if runtime not in RUNTIMES:
        raise EngineError(f"There is no runtime {runtime!r}.", f"Use one of {', '.join(RUNTIMES)}.")
    try:
        module = importlib.import_module(runtime)
    except (ImportError, OSError, RuntimeError) as error:  # a library that it needs shows as any of them
        raise EngineError(f"{runtime} cannot be imported: {error}.", f"{RUNTIMES[runtime]}.") from error
    if not hasattr(module, "__version__"):  # a folder of type stubs, which imports as an empty namespace
        raise EngineError(f"{runtime} is not installed, only its type stubs.", f"{RUNTIMES[runtime]}.")
    return module


def started(module: Any, kind: str, logger: Any, said: Sequence[str] = ()) -> Any:
    """`module.Runtime` or `module.Builder`.

    Args:
        said: messages that the logger has kept; none where it prints them.

    Raises:
        EngineError: it does not start on this machine. The module's own words for that are a TypeError, which
            says that a factory returned nullptr; the reason goes to the logger.
    """
    try:
        return getattr(module, kind)(logger)
    except TypeError as error:
        reason = "; ".join(said) or "its messages above say why"
        raise EngineError(
            f"{module.__name__} {module.__version__} cannot start here: {reason}.",
            "The driver must be of the CUDA that it was built for, or newer (error 35 means: older). "
            "`nvidia-smi` shows the driver's: update the driver, or install TensorRT for that CUDA.",
        ) from error


def supported_capabilities(module: Any) -> dict[str, Any]:
    """Compute capability ("8.6") -> the module's value, for ahead-of-time builds; empty for `tensorrt`."""
    kinds = getattr(module, "ComputeCapability", None)
    values = {} if kinds is None else dict(kinds.__members__)
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in values.items() if name.startswith("SM")}


def check_capability(precision: str, capability: str) -> None:
    """Raise EngineError for a precision that a GPU of this compute capability does not compute in."""
    numbers = tuple(int(part) for part in capability.split("."))
    if precision.startswith("fp8") and numbers < _FP8_FROM:
        name = " (Orin)" if numbers == (8, 7) else ""
        raise EngineError(
            f"A GPU of compute capability {capability}{name} does not compute in FP8; 8.9 and later do.",
            "Use an int8 or fp16 bundle there.",
        )
    if precision.startswith("bf16") and numbers < _BF16_FROM:
        raise EngineError(
            f"A GPU of compute capability {capability} does not compute in bf16; 8.0 and later do.",
            "Use --precision fp16.",
        )


def dtype_name(dtype: Any) -> str:
    """NumPy's name of a `DataType` that stages have; the module's own of any other."""
    name = str(dtype.name)
    return {"FLOAT": "float32"}.get(name, name)


def create_network(module: Any, builder: trt.Builder) -> trt.INetworkDefinition:
    """An empty strongly typed network."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def make_parser(
    module: Any, network: trt.INetworkDefinition, logger: trt.ILogger, config: trt.IBuilderConfig
) -> trt.OnnxParser:
    """A parser that knows what it parses for, where it can be told."""
    parser: trt.OnnxParser = module.OnnxParser(network, logger)
    if hasattr(parser, "set_builder_config"):
        parser.set_builder_config(config)
    return parser


def allow_decomposition(network: trt.INetworkDefinition) -> int:
    """Let `Attention` without a dedicated kernel (fp32) run as products and softmax; returns how many."""
    count = 0
    for i in range(network.num_layers):
        attention: Any = getattr(network.get_layer(i), "attention", None)
        if attention is not None and hasattr(attention, "decomposable"):
            attention.decomposable = True
            count += 1
    return count


def use_timing_cache(module: Any, config: trt.IBuilderConfig, content: bytes) -> bool:
    """Start a build from an earlier one's measurements; False where the module measures nothing (RTX).

    Args:
        module, config: of the build.
        content: a serialised cache; one of another version or device, or a damaged one, counts as empty.
    """
    if supported_capabilities(module):  # builds without a GPU, so there is nothing to measure
        return False
    cache: trt.ITimingCache | None = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return True


def timing_cache(config: trt.IBuilderConfig) -> bytes:
    """What a build has measured, for the next one."""
    cache = config.get_timing_cache()
    return b"" if cache is None else bytes(cache.serialize())


def create_context(engine: Any, cache: bytes) -> tuple[Any, Any]:
    """An execution context, and where there is one its run-time cache (compiled kernels), from `cache`.

    A cache of another version or device, or a damaged one, counts as empty.
    """
    create_config = getattr(engine, "create_runtime_config", None)
    config: Any = create_config() if create_config else None
    if not hasattr(config, "create_runtime_cache"):
        return engine.create_execution_context(), None
    runtime_cache = config.create_runtime_cache()
    if cache:
        runtime_cache.deserialize(cache)
    config.set_runtime_cache(runtime_cache)
    return engine.create_execution_context(config), runtime_cache
