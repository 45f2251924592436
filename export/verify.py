"""Does an exported stage compute what the PyTorch module does?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..runtime.bundle import Bundle
from ..runtime.engines import create
from .graphs import ExportError
from .stages import StageGraph

# REFERENCE.md section 10: the reference's own float32 is within 9.1e-7 of float64; 1e-5 leaves room for
# another order of sums.
FP32_BOUND = 1e-5


@dataclass(frozen=True)
class Comparison:
    """Agreement of one output tensor: relative L2 distance and the largest absolute difference."""

    stage: str
    output: str
    relative_l2: float
    max_abs: float


def verify_stages(
    bundle: Bundle, stages: list[StageGraph], *, engine: str = "onnxruntime", bound: float = FP32_BOUND
) -> list[Comparison]:
    """Run every stage in PyTorch and in `engine` on the stages' example inputs.

    Args:
        bundle: holds the files of the stages.
        stages: modules and example inputs.
        engine: what runs the files.
        bound: largest relative L2 distance of an output.

    Raises:
        ExportError: an output is not finite on either side, or too far off; the message lists all of them.
    """
    results: list[Comparison] = []
    failures: list[str] = []
    for stage in stages:
        with torch.no_grad():
            computed = stage.module(*stage.inputs.values())
            expected = dict(
                zip(stage.outputs, computed if isinstance(computed, tuple) else (computed,), strict=True)
            )
        variant = bundle.variant(stage.name, engine)
        with create(engine, variant, precision=variant.precision) as runner:
            outputs = {spec.name: np.empty(spec.shape, spec.dtype) for spec in runner.outputs}
            runner.run({k: v.numpy() for k, v in stage.inputs.items()}, outputs)
        for name, reference in expected.items():
            truth, got = reference.numpy().astype(np.float64), outputs[name].astype(np.float64)
            where = [
                place
                for place, values in (("PyTorch", truth), (engine, got))
                if not np.isfinite(values).all()
            ]
            if where:
                failures.append(f"{stage.name}.{name} holds NaN or infinity in {' and '.join(where)}")
                continue
            distance = float(np.linalg.norm(got - truth) / max(np.linalg.norm(truth), 1e-12))
            results.append(Comparison(stage.name, name, distance, float(np.abs(got - truth).max())))
            if distance > bound:
                failures.append(
                    f"{stage.name}.{name} differs by {distance:.2e} (relative L2, bound {bound:.0e})"
                )
    if failures:
        raise ExportError(
            "The exported graphs do not compute what the model does: " + "; ".join(failures) + ".",
            "If the weights are sound, report this with the versions `streamsplat-edge doctor` prints.",
        )
    return results
