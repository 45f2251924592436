"""Which pixels make one pixel of a resized picture, per direction: the tables of `cuda/prepare_cuda.cuh`.

The filters are those that `preprocess.Resizer` asks of swscale: areas where neither side grows, bilinear
otherwise (widened where a side shrinks all the same). swscale rounds weights to 14 bits and colours to 15;
here they are exact. Levels of both differ by at most one, with two exceptions: where one side grows and the
other shrinks to more than two thirds, swscale's first row (or column) leaves out what hangs over the edge;
and it does not interpolate between two or three pixels that are a whole side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..scene_cut import sampled

Size = tuple[int, int]


@dataclass(frozen=True)
class Table:
    """Which source pixels make each target pixel, along one direction.

    Attributes:
        spans: int32 [target, 2], first pixel and number of pixels. weights: float32 [target, taps], 0 where a
            span is shorter; each row sums to 1.
    """

    spans: np.ndarray
    weights: np.ndarray


def resizing(source: Size, target: Size) -> tuple[Table, Table]:
    """Tables of rows and of columns for a picture of height and width `source`."""
    grows = source[0] < target[0] or source[1] < target[1]
    make = _bilinear if grows else _areas
    return make(source[0], target[0]), make(source[1], target[1])


def sampling(source: Size, target: Size) -> tuple[Table, Table]:
    """Tables that take single pixels, those of `scene_cut.SceneCutDetector`."""
    down, across = (
        _table(sampled(length, count)[:, None], np.ones((count, 1)))
        for length, count in zip(source, target, strict=True)
    )
    return down, across


def _areas(source: int, target: int) -> Table:
    """Every target pixel is the mean of the interval of source pixels that it covers."""
    edges = np.arange(target + 1) * (source / target)
    low, high = edges[:-1, None], edges[1:, None]
    return _weighed(
        low[:, 0], source, source / target, lambda at: np.minimum(at + 1, high) - np.maximum(at, low)
    )


def _bilinear(source: int, target: int) -> Table:
    """A triangle around the centre, one source pixel wide to either side, or one target pixel if that is
    wider. What hangs over an edge counts for the pixel at the edge."""
    step = source / target
    radius = max(1.0, step)
    centre = (np.arange(target)[:, None] + 0.5) * step - 0.5
    return _weighed(centre[:, 0] - radius, source, 2 * radius, lambda at: 1 - np.abs(at - centre) / radius)


def _weighed(
    begin: np.ndarray, source: int, length: float, weigh: Callable[[np.ndarray], np.ndarray]
) -> Table:
    """Places from `begin` on over `length`, weighed where positive; those outside are moved to the edge."""
    places = np.floor(begin)[:, None] + np.arange(int(np.ceil(length)) + 2)
    weights = np.maximum(weigh(places), 0.0)
    weights[weights < 1e-9] = 0.0  # what rounding leaves of a pixel that only touches
    return _table(np.clip(places, 0, source - 1).astype(np.intp), weights)


def _table(places: np.ndarray, weights: np.ndarray) -> Table:
    """Sorted places [target, n], some of them repeated, as spans."""
    used = weights > 0
    first = np.where(used, places, places.max()).min(1)
    last = np.where(used, places, 0).max(1)
    count = last - first + 1
    dense = np.zeros((len(places), count.max()))
    rows = np.broadcast_to(np.arange(len(places))[:, None], places.shape)
    np.add.at(dense, (rows[used], (places - first[:, None])[used]), weights[used])
    spans = np.stack([first, count], 1).astype(np.int32)
    return Table(spans, (dense / dense.sum(1, keepdims=True)).astype(np.float32))
