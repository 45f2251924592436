"""How far two tensors are apart: Polygraphy's comparators, in float64. Of frames: PSNR."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    IterationResult,
    L2CompareFunc,
    RunResults,
    SimpleCompareFunc,
)
from polygraphy.logger import G_LOGGER

_NAME = "tensor"
_COMPARATORS = (SimpleCompareFunc(check_error_stat="max"), L2CompareFunc(), CosineSimilarityCompareFunc())


@dataclass(frozen=True)
class Distance:
    """Of a tensor from the true one.

    Attributes:
        relative_l2: norm of the difference over the norm of the truth.
        max_abs: largest absolute difference.
        cosine: of the angle between both, as vectors; 1 where both are zero.
        finite: neither holds NaN or infinity; where one does, the numbers above are NaN.
    """

    relative_l2: float
    max_abs: float
    cosine: float
    finite: bool


def compare(got: np.ndarray, truth: np.ndarray) -> Distance:
    """Distance of `got` from `truth`, of one shape.

    Polygraphy's L2 is absolute, for tensors of unknown size; the published golden data is bounded relative to
    the truth's own norm, which the same comparator gives as the distance from zero.
    """
    pair = [IterationResult({_NAME: np.ascontiguousarray(array, np.float64)}) for array in (got, truth)]
    zero = IterationResult({_NAME: np.zeros(truth.shape)})
    # Verdicts are ours, by the bundle's thresholds: what Polygraphy says about its own is not shown. Nor are
    # NumPy's warnings about NaN, whose statistics it computes.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore"):
        runs = RunResults([("got", pair[:1]), ("truth", pair[1:])])
        if not Comparator.validate(runs, check_inf=True, check_nan=True):
            return Distance(math.nan, math.nan, math.nan, False)
        found: dict[str, float] = {}
        for comparator in _COMPARATORS:
            found.update(comparator(*pair)[_NAME].metric_values())
        norm = L2CompareFunc()(pair[1], zero)[_NAME].metric_values()["l2_norm"]
    relative = float(found["l2_norm"]) / max(float(norm), 1e-12)
    return Distance(relative, float(found["max_absdiff"]), float(found["cosine_similarity"]), True)


def frame_psnr(got: np.ndarray, truth: np.ndarray) -> float:
    """PSNR of float frames in [0, 1], in dB; infinite where equal.

    By the peak that a frame can have: Polygraphy's takes the largest value that it meets.
    """
    error = float(np.mean((got.astype(np.float64) - truth) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)
