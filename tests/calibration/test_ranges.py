"""Every formula against an independent computation: on the raw values, by brute force, or by a library."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from streamsplat_edge.calibration.observe import silent
from streamsplat_edge.calibration.ranges import (
    FORMATS,
    METHODS,
    Histogram,
    clip_of,
    scale_of,
    weight_scales,
)
from streamsplat_edge.runtime.errors import InputError

INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]


def values(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(60_000)
    if kind == "tailed":
        normal[:60] *= 12
    elif kind == "relu":
        normal = np.maximum(normal, 0)
    return normal.astype(np.float32)


def histogram_of(*arrays: np.ndarray, bins: int = 4096) -> Histogram:
    histogram = Histogram(bins)
    for array in arrays:
        assert histogram.add(array)
    return histogram


def test_a_histogram_that_grows_counts_what_a_histogram_of_everything_counts() -> None:
    parts = [values("tailed")[i::4] * 3**i for i in range(4)]  # each is wider than those before
    grown = histogram_of(*parts, bins=512)
    whole = np.abs(np.concatenate(parts))
    edges = np.arange(513) * grown.width
    expected, _ = np.histogram(whole[whole > 0], edges)
    # A value on an edge may be counted on either side of it.
    assert np.abs(np.cumsum(expected) - np.cumsum(grown.counts)).max() <= 3
    assert grown.counts.sum() + grown.zeros == grown.total == whole.size
    assert grown.top == whole.max() and grown.top > 0.5 * grown.width * 512


def test_histograms_that_are_merged_count_what_one_of_everything_counts() -> None:
    """Bin for bin, in any order, whichever is wider; one that saw nothing or only zeros adds no more."""
    parts = [values("relu")[i::4] * np.float32(0.3 * 5**i) for i in range(4)]
    whole = histogram_of(*parts)
    for order in (parts, parts[::-1]):
        merged = histogram_of(order[0], np.zeros(7))
        for part in order[1:]:
            merged.merge(histogram_of(part))
        merged.merge(Histogram())
        assert (
            np.array_equal(merged.counts, whole.counts) and merged.counts.sum() + merged.zeros == merged.total
        )
        assert (merged.width, merged.top) == (whole.width, whole.top)
        assert (merged.zeros, merged.total) == (whole.zeros + 7, whole.total + 7)
    empty = Histogram()
    empty.merge(whole)
    assert np.array_equal(empty.counts, whole.counts) and empty.width == whole.width


def test_zeros_are_counted_by_themselves() -> None:
    histogram = histogram_of(np.zeros(5), values("relu"), np.zeros((2, 3)))
    assert histogram.zeros == 11 + np.sum(values("relu") == 0)
    assert histogram.counts[0] < 100
    zeros = histogram_of(np.zeros(5))
    assert [clip_of(zeros, method, INT8) for method in METHODS] == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_counted(bad: float) -> None:
    histogram = histogram_of(np.ones(3))
    assert not histogram.add(np.array([1.0, bad])) and histogram.total == 3


def test_minmax_is_the_maximum_whatever_the_order() -> None:
    data = values("tailed")
    for parts in (np.array_split(data, 7), np.array_split(np.sort(np.abs(data)), 5)):
        assert clip_of(histogram_of(*parts), "minmax", INT8) == np.abs(data).max()


@pytest.mark.parametrize("share", [90.0, 99.0, 99.99])
def test_percentile(share: float) -> None:
    data = values("relu")
    histogram = histogram_of(*np.array_split(data, 3))
    exact = np.percentile(np.abs(data), share, method="inverted_cdf")
    assert clip_of(histogram, "percentile", INT8, percentile=share) == pytest.approx(
        exact, abs=histogram.width
    )


@pytest.mark.parametrize("kind", ["normal", "tailed", "relu"])
@pytest.mark.parametrize("form", [INT8, FP8], ids=["int8", "fp8"])
def test_mse_is_what_brute_force_on_the_values_finds(kind: str, form: object) -> None:
    data = np.abs(values(kind)).astype(np.float64)

    def error(clip: float) -> float:
        scaled = np.minimum(data, clip) * (form.top / clip)
        if form is INT8:
            low = np.floor(scaled + 0.5)
        else:
            low = scaled.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(float)
        return float(np.mean((low * clip / form.top - data) ** 2))

    found = clip_of(histogram_of(data), "mse", form)
    best = min(error(data.max() * (i + 1) / 128) for i in range(128))
    assert error(found) <= 1.02 * best + 1e-12


def test_mse_clips_a_tail_in_int8_and_hardly_in_fp8() -> None:
    """FP8 has small steps near zero whatever its range: a tail costs it next to nothing."""
    histogram = histogram_of(np.append(np.resize(values("normal"), 400_000), np.float32(40)))
    assert clip_of(histogram, "mse", INT8) < 0.5 * histogram.top
    assert clip_of(histogram, "mse", FP8) > 0.8 * histogram.top


@pytest.mark.parametrize("kind", ["normal", "tailed", "relu"])
def test_entropy_minimises_the_divergence_that_scipy_computes(kind: str) -> None:
    histogram = histogram_of(values(kind))
    counts, used = histogram.counts, int(np.ceil(histogram.top / histogram.width))

    def divergence(clip: float) -> float:
        n = max(1, int(np.ceil(clip / histogram.width)))
        p = counts[:n].astype(float)
        p[-1] += counts[n:].sum()
        levels = np.round((np.arange(n) + 0.5) * histogram.width * 127 / clip).clip(0, 127)
        q = np.zeros(n)
        for level in np.unique(levels):
            inside = levels == level
            cells = inside & (p > 0)
            if cells.any():
                q[cells] = counts[:n][inside].sum() / cells.sum()
        return float(stats.entropy(p, q))

    clips = [min(round(used * (i + 1) / 128) * histogram.width, histogram.top) for i in range(128)]
    losses = [divergence(clip) for clip in clips]
    found = clip_of(histogram, "entropy", INT8)
    assert divergence(found) == pytest.approx(min(losses), rel=1e-9)
    assert found < 0.6 * histogram.top if kind == "tailed" else found > 0.6 * histogram.top


def test_constant_activations_are_represented_exactly() -> None:
    for value in (0.3, 0.25, 1e-9, 1e-44):  # one of them on the edge of a bin, one that has no reciprocal
        histogram = histogram_of(np.full(100, value, np.float32))
        for method in METHODS:
            assert clip_of(histogram, method, INT8) == pytest.approx(float(np.float32(value)), rel=1e-6)


def test_rounding() -> None:
    assert INT8.round([0.5, 1.5, -2.5, 126.6, 127.4, 500, -500]).tolist() == [0, 2, -2, 127, 127, 127, -127]
    x = np.linspace(-500, 500, 4001)
    # 1.5 has steps of 1/8, 100 of 8, and below 2^-6 the steps are 2^-9.
    assert FP8.round([1.55, 100.0, 103.9, 0.001, 1e-4, 1e6]).tolist() == [1.5, 96.0, 104.0, 2**-9 * 1, 0, 448]
    assert np.abs(FP8.round(x) - np.clip(x, -448, 448)).max() <= 16


def test_weights_have_a_scale_per_output_channel() -> None:
    weight = np.array([[1.0, -4.0, 0.0], [0.5, 2.0, 0.0]], np.float32)
    assert weight_scales(weight, 1, INT8) == pytest.approx([1 / 127, 4 / 127, 1])
    assert weight_scales(weight, 0, FP8) == pytest.approx([4 / 448, 2 / 448])
    assert scale_of(12.7, INT8) == pytest.approx(0.1)


def test_refusals() -> None:
    histogram = histogram_of(np.ones(3))
    for method, percentile, message in (
        ("magic", 99, "no method 'magic'"),
        ("percentile", 100.1, "percentile is 100.1"),
        ("percentile", 50, "percentile is 50"),
    ):
        with pytest.raises(InputError, match=message):
            clip_of(histogram, method, INT8, percentile=percentile)
    with pytest.raises(InputError, match="cannot be merged"):
        Histogram(7)


def test_a_product_of_which_one_operand_is_zero_has_no_range() -> None:
    deform = {"both": (1.0, 2.0), "one": (1.0, 0.0), "weight": (3.0,), "zeros": (0.0,)}
    assert silent({"deform": deform, "encode": {}}) == [("deform", "one"), ("deform", "zeros")]
