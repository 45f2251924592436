"""Is INT8 or FP8 worth it on the GPU that is here? TensorRT plans of both files of a stage, built and timed.

Where there is no CUDA device or no TensorRT nothing is timed, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..export.build import build_bundle
from ..export.plan_builder import BuildOptions
from ..runtime.bundle import Bundle, StageVariant
from ..runtime.bundle_writing import VariantSource, write_bundle
from ..runtime.cuda import driver
from ..runtime.engines import trt_api
from ..runtime.errors import EngineError, StreamSplatError
from .recording import Recording
from .timing import Timing, compare, fastest


@dataclass
class PlanTimings:
    """What was timed on a GPU.

    Attributes:
        runtime: module and version. device: name of the GPU.
        timings: per stage, of the file that was there and of the quantised one, by their precisions; with
            copies of inputs and outputs.
        reason: why nothing was timed, empty where it was.
    """

    runtime: str = ""
    device: str = ""
    timings: dict[str, dict[str, Timing]] = field(default_factory=dict)
    reason: str = ""

    @property
    def slower(self) -> list[str]:
        """Stages whose quantised plan is not the faster one."""
        return [s for s, found in self.timings.items() if fastest(found, margin=0.0) == next(iter(found))]

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "device": self.device,
            "timings": {
                s: {name: t.to_json() for name, t in found.items()} for s, found in self.timings.items()
            },
            "reason": self.reason,
        }


def time_plans(
    bundle: Bundle,
    targets: Mapping[str, StageVariant],
    quantised: Mapping[str, StageVariant],
    recording: Recording,
    scratch: Path,
    *,
    seconds: float = 4.0,
    progress: bool = False,
) -> PlanTimings:
    """Build and time the plans of every quantised stage, against those of the files that it was made from.

    A build that fails is a reason too: what was calibrated is not lost by it.

    Args:
        bundle: the model. targets: file per stage. quantised: of some of these stages, the quantised file.
        recording: inputs to time with. scratch: folder for the plans.
        seconds: per stage, after which no further turn begins.
    """
    device = driver.cuda_device()
    if device is None:
        return PlanTimings(reason="there is no CUDA device here")
    module = _module()
    if module is None:
        return PlanTimings(device=device.name, reason="TensorRT is not installed")
    runtime = module.__name__
    found = PlanTimings(f"{runtime} {module.__version__}", device.name)
    try:
        files = {"before": dict(targets), "after": {**targets, **quantised}}
        built = {
            name: _built(bundle, own, runtime, scratch / f"{name}.bundle", progress)
            for name, own in files.items()
        }
        for stage, variant in quantised.items():
            plans = {
                targets[stage].precision: built["before"].variant(stage, runtime),
                variant.precision: built["after"].variant(stage, runtime),
            }
            inputs = next(iter(recording.calls(stage, variant.inputs)))
            timings, refused = compare(plans, inputs, runtime, device="cuda", seconds=seconds)
            if refused:
                raise EngineError("; ".join(refused.values()))
            found.timings[stage] = timings
    except StreamSplatError as error:
        found.timings, found.reason = {}, error.message
    return found


def _module() -> Any:
    for runtime in ("tensorrt", "tensorrt_rtx"):
        try:
            return trt_api.load(runtime)
        except EngineError:
            continue
    return None


def _built(
    bundle: Bundle, files: Mapping[str, StageVariant], runtime: str, path: Path, progress: bool
) -> Bundle:
    """A bundle of these files alone, with a plan of each for the GPU here."""
    stages = {
        s: [VariantSource(v.path, v.inputs, v.outputs, v.precision, v.engines, f"{s}.onnx", v.weights)]
        for s, v in files.items()
    }
    write_bundle(path, bundle.name, bundle.model, stages, provenance={}, quality={})
    build_bundle(path, BuildOptions(runtime), progress=progress)
    return Bundle.load(path)
