"""TensorRT plans of a bundle's stages: one builder for `tensorrt` and `tensorrt_rtx`.

Types come from the strongly typed graph alone. Every stage is a plan of its own, entered in the manifest as
soon as it is built, so that an interrupted build goes on where it stopped. A plan that replaces another has a
file of its own, and the older one goes when the manifest no longer names it: at no moment does the manifest
name a file that is not the one that it describes. What is decided by capability of
the installed TensorRT is in `runtime/engines/trt_api.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.bundle import Bundle, PlanEntry, StageVariant, check_inside
from ..runtime.bundle_writing import store
from ..runtime.cuda import driver
from ..runtime.engines import trt_api
from ..runtime.engines.base import check_specs
from ..runtime.errors import EngineError, InputError, OutputError
from ..runtime.video import write_bytes
from ..runtime.video.output import output_error
from .build_errors import BuildError, build_error, parse_error
from .builder_log import BuildLog, garbage_kept, progress_monitor
from .contents import check_variant
from .plan_layers import Inspection, from_inspector, from_log, inspect, product_types

PLAN_FOLDER = "plans"
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


@dataclass(frozen=True)
class BuiltPlan:
    """A stage's plan: its entry, whether it was there already, and what building it took."""

    entry: PlanEntry
    reused: bool
    seconds: float = 0.0
    peak_bytes: int = 0
    inspection: Inspection | None = None

    def to_json(self) -> dict[str, Any]:
        found = self.inspection.to_json() if self.inspection else {}
        measured = {"reused": self.reused, "seconds": self.seconds, "peak_bytes": self.peak_bytes}
        return {**asdict(self.entry), **measured, **found}


def build_bundle(
    path: Path, options: BuildOptions, *, force: bool = False, progress: bool = False
) -> list[BuiltPlan]:
    """Build the plan of every stage that has none for these settings yet, or whose file is missing or was
    changed, and enter it in the manifest.

    Args:
        path: the bundle's folder.
        options: see `BuildOptions`.
        force: build again what is there already.
        progress: show the builder's progress on stderr.

    Raises:
        InputError: the largest batch is less than 1.
        BundleError: not a bundle, or a stage has no file for this runtime and precision.
        EngineError: the runtime is not installed, or the device, capability or option is not supported;
            `MismatchError`: a file is of another precision than the manifest says.
        BuildError: a stage failed; the stages before it are kept.
        OutputError: the disk refuses.
    """
    if options.max_batch < 1:
        raise InputError(f"The largest batch is {options.max_batch}.", "Use --max-batch 1 or more.")
    bundle = Bundle.load(path)
    module = trt_api.load(options.runtime)
    device, capability = _target(module, options)
    plans = []
    for stage in bundle.stage_names:
        variant = bundle.variant(stage, options.runtime, options.precision or None)
        for number in capability.split(", "):
            trt_api.check_capability(variant.precision, number)
        plan = None if force else _existing(variant, options, str(module.__version__), device, capability)
        if plan is None:
            check_variant(variant)
            name = _name(variant, options.runtime, module, f"{device}-{capability}")
            plan = _built(bundle, variant, module, options, device, capability, name, progress)
            bundle = _enter(bundle, plan.entry, name)
        plans.append(plan)
    return plans


def _target(module: Any, options: BuildOptions) -> tuple[str, str]:
    """Device name and compute capabilities of the plans."""
    if options.runtime == "tensorrt_rtx" and (options.version_compatible or options.hardware_compatible):
        raise EngineError(
            "Plans of TensorRT-RTX run with the version that built them, on the GPUs they name.",
            "Name several: --device-capability 8.6,8.9; or use --runtime tensorrt.",
        )
    known = trt_api.supported_capabilities(module)
    if options.capabilities:
        unknown = [c for c in options.capabilities if c not in known]
        if unknown and known:
            raise EngineError(
                f"{options.runtime} {module.__version__} cannot build for compute capability "
                f"{', '.join(unknown)}.",
                f"It knows {', '.join(known)}. For Jetson and data centre GPUs use --runtime tensorrt there.",
            )
        if not known:
            raise EngineError(
                f"{options.runtime} builds for the GPU that is present, not for others.",
                "Leave --device-capability out and build on the device, or use --runtime tensorrt_rtx.",
            )
        return "any", ", ".join(sorted(options.capabilities, key=lambda c: [int(n) for n in c.split(".")]))
    device = driver.cuda_device()
    if device is None:
        hint = "Build on the machine that will run it"
        if known:
            hint += f", or name its compute capability: --device-capability, one of {', '.join(known)}"
        raise EngineError("There is no CUDA device here to build for.", f"{hint}.")
    return device.name, device.capability


def _existing(
    variant: StageVariant, options: BuildOptions, version: str, device: str, capability: str
) -> BuiltPlan | None:
    wanted = (options.runtime, version, device, capability, options.settings())
    for plan in variant.plans:
        entry = plan.entry
        found = (entry.runtime, entry.version, entry.device, entry.compute_capability, entry.settings)
        if found == wanted and not plan.problem():
            return BuiltPlan(entry, reused=True)
    return None


def _built(
    bundle: Bundle,
    variant: StageVariant,
    module: Any,
    options: BuildOptions,
    device: str,
    capability: str,
    name: str,
    progress: bool,
) -> BuiltPlan:
    start = time.perf_counter()
    content, inspection = build_plan(
        variant, module, options, progress=progress, timing=timing_cache_path(options.runtime, module, device)
    )
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(content).hexdigest()
    file = f"{name}.{digest[:12]}.plan"
    target = check_inside(bundle.path, file, "plans")
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(target, error) from error
    write_bytes(target, content)
    entry = PlanEntry(
        stage=variant.stage,
        file=file,
        sha256=digest,
        bytes=len(content),
        runtime=options.runtime,
        version=str(module.__version__),
        device=device,
        compute_capability=capability,
        onnx_sha256=variant.sha256,
        settings=options.settings(),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return BuiltPlan(entry, False, seconds, peak, inspection)


def _name(variant: StageVariant, runtime: str, module: Any, device: str) -> str:
    """What the files of all plans for one machine begin with."""
    return f"{PLAN_FOLDER}/{variant.path.stem}.{runtime}-{module.__version__}.{_slug(device)}"


def _enter(bundle: Bundle, entry: PlanEntry, name: str) -> Bundle:
    """Name the plan in the manifest instead of those it replaces; their files go, also those of builds that
    were interrupted before they were entered."""
    others = [plan for plan in bundle.plans if not plan.file.startswith(f"{name}.")]
    stored = store(bundle.path, {"plans": [asdict(plan) for plan in (*others, entry)]})
    kept = {stored.path / entry.file, (stored.path / entry.file).with_suffix(".cache")}
    start = f"{Path(name).name}."
    for path in (stored.path / PLAN_FOLDER).iterdir():
        if path.name.startswith(start) and path.suffix in (".plan", ".cache") and path not in kept:
            with contextlib.suppress(OSError):  # in use on Windows, say: the next build removes it
                path.unlink()
    return stored


def timing_cache_path(runtime: str, module: Any, device: str) -> Path:
    """Where measurements of kernels are kept from build to build: they belong to version and device."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "streamsplat-edge" / f"{runtime}-{module.__version__}.{_slug(device)}.timing"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


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
