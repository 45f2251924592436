"""From a histogram of magnitudes to the largest magnitude that a quantised tensor represents.

Everything is symmetric, as TensorRT wants it: zero stays zero, and a tensor has one scale per tensor
(activations) or per output channel (weights). A format is given by the values it rounds to.

| method | the clip is |
|---|---|
| `minmax` | the largest magnitude seen |
| `percentile` | the magnitude below which a share of all values lies |
| `entropy` | where the distribution of rounded values is nearest to the recorded one (Kullback-Leibler) |
| `mse` | where the mean squared error of rounding and clipping is least |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InputError

METHODS = ("entropy", "percentile", "mse", "minmax")
_CANDIDATES = 128  # clips that `entropy` and `mse` try, evenly spaced up to the maximum
_NARROWEST = 2.0**-120  # bin, so that its reciprocal is a float32
_SMALLEST = 1e-12  # below it a scale would vanish in float16 arithmetic or divide by zero

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """A format to quantise to: `name`, and the largest magnitude it holds at scale 1."""

    name: str
    top: float

    def round(self, values: np.ndarray) -> Floats:
        """Values at scale 1, rounded to the format: ties to even, beyond the ends clipped."""
        clipped = np.clip(np.asarray(values, np.float64), -self.top, self.top)
        if self.name == "int8":
            return np.rint(clipped)
        return clipped.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


FORMATS = {"int8": Format("int8", 127.0), "fp8": Format("fp8", 448.0)}
"""Precision -> format. INT8 uses -127 to 127, so that it is symmetric; FP8 is E4M3."""


class Histogram:
    """Magnitudes of a stream of arrays in bounded memory: equal bins from 0, as wide as the data need.

    Where a value lies beyond the last bin, neighbouring bins are merged until it does not. Widths are powers
    of two, the least that hold the largest magnitude, so that at least half of the bins are in use and
    neither the order of the arrays nor how they are shared among histograms that are merged makes a
    difference. Zero is counted by itself.

    Attributes:
        counts: values per bin, zeros left out; each bin holds its lower edge and not its upper one.
        zeros, total: how many zeros, and values in all.
        width: of a bin; 0 before the first value that is not zero. top: the largest magnitude.
    """

    def __init__(self, bins: int = 4096) -> None:
        if bins < 2 or bins % 2:
            raise InputError(f"A histogram of {bins} bins cannot be merged.", "Use an even number.")
        self.counts = np.zeros(bins, np.int64)
        self.zeros = self.total = 0
        self.width = self.top = 0.0

    def add(self, values: np.ndarray) -> bool:
        """Count an array; False, and nothing counted, where a value is NaN or infinite."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        if magnitudes.size == 0:
            return True
        top = float(magnitudes.max())
        if not np.isfinite(top):  # NaN wins every max
            return False
        self.total += magnitudes.size
        zeros = magnitudes.size - int(np.count_nonzero(magnitudes))
        self.zeros += zeros
        if top == 0:
            return True
        bins = len(self.counts)
        width = max(2.0 ** math.frexp(top / bins)[1], _NARROWEST)
        self.counts = _widened(self.counts, self.width, width)
        self.width = max(self.width, width)
        self.top = max(self.top, top)
        found = np.bincount((magnitudes * np.float32(1 / self.width)).astype(np.int64), minlength=bins)
        found[0] -= zeros
        self.counts += found
        return True

    def merge(self, other: Histogram) -> None:
        """Count what `other`, of as many bins, has counted: the same as adding its arrays."""
        width = max(self.width, other.width)
        self.counts = _widened(self.counts, self.width, width) + _widened(other.counts, other.width, width)
        self.width, self.top = width, max(self.top, other.top)
        self.zeros += other.zeros
        self.total += other.total

    @property
    def centres(self) -> Floats:
        """The middle of every bin."""
        return np.asarray((np.arange(len(self.counts)) + 0.5) * self.width, np.float64)


def check_percentile(percentile: float) -> None:
    """Raise InputError for a percentile that is none."""
    if not 50 < percentile <= 100:
        raise InputError(f"The percentile is {percentile}.", "Use a number above 50, at most 100.")


def clip_of(histogram: Histogram, method: str, form: Format, *, percentile: float = 99.99) -> float:
    """The magnitude to clip at; 0 where only zeros were seen.

    Args:
        histogram: of all recorded values. method: one of `METHODS`. form: what is rounded to.
        percentile: for that method, in percent of all values, zeros included.

    Raises:
        InputError: unknown method, or a percentile that is none.
    """
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}.", f"Use one of {', '.join(METHODS)}.")
    check_percentile(percentile)
    if method == "minmax" or histogram.top == 0:
        return histogram.top
    if method == "percentile":
        return _percentile(histogram, percentile)
    losses = _divergences(histogram, form) if method == "entropy" else _errors(histogram, form)
    _, clips = _candidates(histogram)
    return float(clips[int(np.argmin(losses))])


def scale_of(clip: float | np.ndarray, form: Format) -> np.ndarray:
    """The scale that puts `clip` at the end of the format; that of an all-zero channel is 1."""
    clips = np.asarray(clip, np.float64)
    return np.where(clips > _SMALLEST, clips / form.top, 1.0).astype(np.float32)


def weight_scales(weight: np.ndarray, axis: int, form: Format) -> np.ndarray:
    """One scale per output channel, from its largest magnitude: float32 [channels]."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return scale_of(np.abs(weight.astype(np.float64)).max(axis=others), form)


def _widened(counts: NDArray[np.int64], width: float, wanted: float) -> NDArray[np.int64]:
    """Counts in bins of `wanted`, which is `width` times a power of two (or as it is, where all are 0)."""
    while 0 < width < wanted:
        merged = counts.reshape(-1, 2).sum(1)
        counts = np.concatenate([merged, np.zeros_like(merged)])
        width *= 2
    return counts


def _candidates(histogram: Histogram) -> tuple[NDArray[np.int64], Floats]:
    """How many bins each candidate keeps, and the clips: their upper edges, the last one the maximum."""
    used = int(histogram.top / histogram.width) + 1
    bins = np.unique(np.linspace(used / _CANDIDATES, used, _CANDIDATES).round().clip(1)).astype(np.int64)
    return bins, np.minimum(bins * histogram.width, histogram.top)


def _percentile(histogram: Histogram, percentile: float) -> float:
    """The upper edge of the bin in which the share is reached."""
    seen = histogram.zeros + np.cumsum(histogram.counts)
    at = int(np.searchsorted(seen, histogram.total * percentile / 100))
    return float(min((at + 1) * histogram.width, histogram.top))


def _errors(histogram: Histogram, form: Format) -> Floats:
    """Mean squared error of every candidate, over the values that are not zero."""
    values, counts = histogram.centres, histogram.counts
    losses = []
    for clip in _candidates(histogram)[1]:
        scale = clip / form.top
        losses.append(float(np.sum(counts * (form.round(values / scale) * scale - values) ** 2)))
    return np.array(losses)


def _divergences(histogram: Histogram, form: Format) -> Floats:
    """Kullback-Leibler divergence of every candidate.

    P is the histogram up to the clip with what is cut off put into its last bin. Q is what remains of the
    histogram when all bins that round to one value are averaged (over the bins that hold anything).
    Zeros are left out: they are exact in every candidate, and would drown all else behind a ReLU.
    """
    losses = []
    for used, clip in zip(*_candidates(histogram), strict=True):
        inside = histogram.counts[:used].astype(np.float64)
        reference = inside.copy()
        reference[-1] += histogram.counts[used:].sum()
        rounded = form.round(histogram.centres[:used] * (form.top / clip))
        _, level = np.unique(rounded, return_inverse=True)
        filled = reference > 0
        mass = np.bincount(level, weights=inside)
        cells = np.bincount(level, weights=filled)
        spread = np.divide(mass, cells, out=np.zeros_like(mass), where=cells > 0)
        model = np.where(filled, spread[level], 0.0)
        losses.append(_divergence(reference, model))
    return np.array(losses)


def _divergence(p: Floats, q: Floats) -> float:
    """KL(P || Q) in nats; infinite where Q lacks what P has."""
    if q.sum() == 0:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    seen = p > 0
    if np.any(q[seen] == 0):
        return np.inf
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))
