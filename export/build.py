"""TensorRT plans of a bundle's stages: which there are, which are built (`plan_builder`), and their files.

Every stage is a plan of its own, entered in the manifest as soon as it is built, so that an interrupted build
goes on where it stopped. A plan that replaces another has a file of its own, and the older one goes when the
manifest no longer names it: at no moment does the manifest name a file that is not the one that it describes.
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
from ..runtime.errors import EngineError, InputError
from ..runtime.video import write_bytes
from ..runtime.video.output import output_error
from .contents import check_variant
from .plan_builder import BuildOptions, build_plan
from .plan_layers import Inspection

PLAN_FOLDER = "plans"


@dataclass(frozen=True)
class _Target:
    """What plans are built with and for.

    Attributes:
        module, version: `tensorrt` or `tensorrt_rtx`.
        device, capability: as in `PlanEntry`.
    """

    module: Any
    version: str
    device: str
    capability: str

    def stem(self, variant: StageVariant, runtime: str) -> str:
        """What the files of all plans of a stage file for this target begin with."""
        machine = _slug(f"{self.device}-{self.capability}")
        return f"{PLAN_FOLDER}/{variant.path.stem}.{runtime}-{self.version}.{machine}"


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
    target = _Target(module, str(module.__version__), *_device(module, options))
    plans = []
    for stage in bundle.stage_names:
        variant = bundle.variant(stage, options.runtime, options.precision or None)
        for number in target.capability.split(", "):
            trt_api.check_capability(variant.precision, number)
        plan = None if force else _existing(variant, options, target)
        if plan is None:
            check_variant(variant)
            plan = _built(bundle, variant, options, target, progress)
            bundle = _enter(bundle, plan.entry, target.stem(variant, options.runtime))
        plans.append(plan)
    return plans


def _device(module: Any, options: BuildOptions) -> tuple[str, str]:
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


def _existing(variant: StageVariant, options: BuildOptions, target: _Target) -> BuiltPlan | None:
    wanted = (options.runtime, target.version, target.device, target.capability, options.settings())
    for plan in variant.plans:
        entry = plan.entry
        found = (entry.runtime, entry.version, entry.device, entry.compute_capability, entry.settings)
        if found == wanted and not plan.problem():
            return BuiltPlan(entry, reused=True)
    return None


def _built(
    bundle: Bundle, variant: StageVariant, options: BuildOptions, target: _Target, progress: bool
) -> BuiltPlan:
    start = time.perf_counter()
    timing = timing_cache_path(options.runtime, target.module, target.device)
    content, inspection = build_plan(variant, target.module, options, progress=progress, timing=timing)
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(content).hexdigest()
    file = f"{target.stem(variant, options.runtime)}.{digest[:12]}.plan"
    path = check_inside(bundle.path, file, "plans")
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    write_bytes(path, content)
    entry = PlanEntry(
        stage=variant.stage,
        file=file,
        sha256=digest,
        bytes=len(content),
        runtime=options.runtime,
        version=target.version,
        device=target.device,
        compute_capability=target.capability,
        onnx_sha256=variant.sha256,
        settings=options.settings(),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return BuiltPlan(entry, False, seconds, peak, inspection)


def _enter(bundle: Bundle, entry: PlanEntry, stem: str) -> Bundle:
    """Name the plan in the manifest instead of those it replaces; their files go, also those of builds that
    were interrupted before they were entered."""
    others = [plan for plan in bundle.plans if not plan.file.startswith(f"{stem}.")]
    stored = store(bundle.path, {"plans": [asdict(plan) for plan in (*others, entry)]})
    kept = {stored.path / entry.file, (stored.path / entry.file).with_suffix(".cache")}
    start = f"{Path(stem).name}."
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
