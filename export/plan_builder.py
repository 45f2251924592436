"""One stage file to one TensorRT plan, by the builder of `tensorrt` or `tensorrt_rtx`.

Types come from the strongly typed graph alone. What is decided by capability of the installed TensorRT is in
`runtime/engines/trt_api.py`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.bundle import StageVariant
from ..runtime.cuda import driver
from ..runtime.engines import trt_api
from ..runtime.engines.base import check_specs
from ..runtime.errors import OutputError
from ..runtime.video import write_bytes
from .build_errors import BuildError, build_error, parse_error
from .builder_log import BuildLog, garbage_kept, progress_monitor
from .plan_layers import Inspection, from_inspector, from_log, inspect, product_types

_DISCARDED = "It was discarded. Report this with the versions `streamsplat-edge doctor` prints."
# Of the memory that is free when the build starts. On Jetson the GPU's memory is the system's, and the
# builder needs about as much again outside the workspace.
_WORKSPACE_SHARE = 0.5


@dataclass(frozen=True)
class BuildOptions:
    """How plans are built.

    Attributes:
        runtime: `tensorrt` or `tensorrt_rtx`.
        precision: of the stage files; empty takes each stage's first file for the runtime.
        capabilities: compute capabilities to build for without a GPU (RTX only); empty: the GPU here.
        workspace: bytes the builder may use for scratch; 0 is half of what is free.
        level: builder optimisation level, 0 (fast build) to 5.
        max_batch: largest batch, for stages with a free batch axis.
        version_compatible: also runs with later versions of the same major release (slower). Such a plan
            brings code for the host: where it runs, `plan_choice.TRUST_VARIABLE` must say so.
        hardware_compatible: also runs on other GPUs from Ampere on (slower; not on Jetson).
        tf32: lets fp32 products round their inputs to 10 bits.
    """

    runtime: str = "tensorrt"
    precision: str = ""
    capabilities: tuple[str, ...] = ()
    workspace: int = 0
    level: int = 3
    max_batch: int = 1
    version_compatible: bool = False
    hardware_compatible: bool = False
    tf32: bool = False

    def settings(self) -> dict[str, Any]:
        """The part that decides the plan beside runtime and device: what the manifest keeps."""
        names = ("level", "max_batch", "version_compatible", "hardware_compatible", "tf32")
        return {name: getattr(self, name) for name in names}


@garbage_kept()
def build_plan(
    variant: StageVariant,
    module: Any,
    options: BuildOptions,
    *,
    progress: bool = False,
    timing: Path | None = None,
) -> tuple[bytes, Inspection]:
    """Parse, build and inspect one stage.

    Args:
        variant: stage file.
        module: `tensorrt` or `tensorrt_rtx`.
        options: see `BuildOptions`.
        progress: show the builder's progress on stderr.
        timing: file of the timing cache, read and written where the module measures.

    Raises:
        EngineError: an option that this runtime does not have, or (`MismatchError`) the file has other inputs
            or outputs than the manifest says.
        BuildError: the parser or builder fails (with node and operator, or the memory it lacked), a batch
            size that is fixed was to be larger, or the plan multiplies in another type than the graph.
    """
    log = BuildLog(module)
    builder = trt_api.started(module, "Builder", log.logger, log.errors)
    network = trt_api.create_network(module, builder)
    config = builder.create_builder_config()
    _configure(module, config, options)
    parser = trt_api.make_parser(module, network, log.logger, config)
    if not parser.parse_from_file(str(variant.path)):
        raise parse_error(variant, parser, options.runtime)
    _check_tensors(variant, network)
    trt_api.allow_decomposition(network)
    _set_batch(variant.stage, builder, config, network, options)
    known = timing.read_bytes() if timing is not None and timing.is_file() else b""
    measures = timing is not None and trt_api.use_timing_cache(module, config, known)
    with progress_monitor(module, config, f"{variant.stage} {variant.precision}", progress):
        try:
            plan = builder.build_serialized_network(network, config)
        except MemoryError:
            plan = None
    if plan is None:
        raise build_error(variant, log, options.runtime)
    content = bytes(plan)
    if timing is not None and measures:
        # Where there is no room for it, the next build measures again and the plan is as good.
        with contextlib.suppress(OSError, OutputError):
            timing.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(timing, trt_api.timing_cache(config))
    layers = from_log(log.layer_lines) or _inspected(module, log, content, options)
    found = inspect(layers, product_types(variant.path))
    if found.wrong:
        listed = "\n  ".join(found.wrong[:20])
        raise BuildError(
            f"The plan of stage {variant.stage} computes in another precision than its graph:\n  {listed}\n",
            _DISCARDED,
        )
    if not found.products:
        raise BuildError(
            f"The plan of stage {variant.stage} cannot be inspected: {options.runtime} {module.__version__} "
            "lists no products that belong to the graph, so its precision is unknown.",
            _DISCARDED,
        )
    return content, found


def _configure(module: Any, config: Any, options: BuildOptions) -> None:
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # the layers are read back
    config.builder_optimization_level = options.level
    if not options.tf32:
        config.clear_flag(module.BuilderFlag.TF32)
    device = driver.cuda_device()
    limit = options.workspace or (int(device.free_bytes * _WORKSPACE_SHARE) if device else 0)
    if limit:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, limit)
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    known = trt_api.supported_capabilities(module)
    if options.capabilities:
        config.num_compute_capabilities = len(options.capabilities)
        for i, capability in enumerate(options.capabilities):
            config.set_compute_capability(known[capability], i)


def _check_tensors(variant: StageVariant, network: Any) -> None:
    """A plan of another file than the manifest describes would be refused where it runs, and is not built."""
    for kind, declared, count, get in (
        ("input", variant.inputs, network.num_inputs, network.get_input),
        ("output", variant.outputs, network.num_outputs, network.get_output),
    ):
        tensors = [get(i) for i in range(count)]
        found = {t.name: (trt_api.dtype_name(t.dtype), tuple(t.shape)) for t in tensors}
        check_specs(variant, kind, declared, found)


def _set_batch(stage: str, builder: Any, config: Any, network: Any, options: BuildOptions) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if all(-1 not in tuple(tensor.shape) for tensor in inputs):
        if options.max_batch > 1:
            raise BuildError(
                f"Stage {stage} has a fixed batch size: no plan of it takes up to {options.max_batch}.",
                "Export with --dynamic-batch, or leave --max-batch out.",
            )
        return
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *rest), (1, *rest), (options.max_batch, *rest))
    config.add_optimization_profile(profile)


def _inspected(module: Any, log: BuildLog, content: bytes, options: BuildOptions) -> list[Any]:
    runtime = trt_api.started(module, "Runtime", log.logger, log.errors)
    runtime.engine_host_code_allowed = options.version_compatible  # it was made here, a moment ago
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
    shapes = {name: tuple(engine.get_tensor_shape(name)) for name in inputs}
    if any(-1 in shape for shape in shapes.values()):  # formats are only known for one batch size
        context = engine.create_execution_context()
        if context is None:
            return []
        for name, shape in shapes.items():
            context.set_input_shape(name, (1, *shape[1:]))
        inspector.execution_context = context
    return from_inspector(inspector.get_engine_information(module.LayerInformationFormat.JSON))
