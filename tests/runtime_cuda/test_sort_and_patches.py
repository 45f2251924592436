"""Parts of the blend kernel that pictures show by chance only: the network of the sort, masks of patches."""

from __future__ import annotations

import ctypes
from itertools import pairwise, product

import numpy as np
import pytest
from on_cpu_device import OnCpuDevice

from streamsplat_edge.runtime.cuda import layout

TILE, THREADS, CAPACITY = layout.TILE, layout.THREADS, layout.SORT_CAPACITY


def in_order(device: OnCpuDevice, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys as they are blended, and where the rounds begin."""
    out, begins = np.zeros_like(keys), np.full(keys.size, -1, np.int32)
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (keys, out, begins)]
    device.native.on_cpu_sort.restype = ctypes.c_char_p
    assert device.native.on_cpu_sort(addresses[0], ctypes.c_int(keys.size), *addresses[1:]) is None
    return out, begins[begins >= 0]


def lists(count: int) -> list[np.ndarray]:
    """Orders that a wrong direction or distance of an exchange leaves unsorted; keys are depth and row."""
    rng = np.random.default_rng(count)
    rows = np.arange(count, dtype=np.uint64)
    depths = rng.integers(1, 0x7F7FFFFF, count, dtype=np.uint64) << np.uint64(32)
    return [
        rows,  # of one depth
        rows[::-1].copy(),
        np.concatenate([rows[::2], rows[1::2][::-1]]),
        rng.permutation(rows) << np.uint64(32),  # of one row: the low words are equal
        depths | rng.permutation(rows),
        (depths & np.uint64(3 << 60)) | rng.permutation(rows),  # few depths
    ]


# The three widths of the network, and what lies next to their ends.
@pytest.mark.parametrize(
    "count",
    [1, 2, 31, 33, *(w + d for w in (THREADS, 2 * THREADS) for d in (-1, 0, 1)), CAPACITY - 1, CAPACITY],
)
def test_keys_are_sorted(device: OnCpuDevice, count: int) -> None:
    for schedule in (0, 1, 5):
        device.schedule(schedule)
        for keys in lists(count):
            np.testing.assert_array_equal(in_order(device, keys)[0], np.sort(keys))


@pytest.mark.parametrize("width", [THREADS, 2 * THREADS, CAPACITY])
def test_a_key_finds_its_place_from_everywhere(device: OnCpuDevice, width: int) -> None:
    """A network that sorts zeros and ones sorts everything: here a run of ones, wherever it begins."""
    rows = np.arange(width, dtype=np.uint64)
    for begin, end in pairwise(range(0, width + 1, width // 8 - 1)):
        ones = ((rows >= begin) & (rows < end)).astype(np.uint64) << np.uint64(40)
        keys = ones | rows
        np.testing.assert_array_equal(in_order(device, keys)[0], np.sort(keys))


# From 1025 keys on in rounds, whose bounds lie between two bins of a digit or in the last one.
@pytest.mark.parametrize("count", [CAPACITY + 1, 2 * CAPACITY, 2 * CAPACITY + 1, 3000])
def test_rounds_take_every_key_once(device: OnCpuDevice, count: int) -> None:
    rows = np.arange(count, dtype=np.uint64)
    one_far_away = rows.copy()
    one_far_away[0] = 0x7F7FFFFF << 32
    for keys in (*lists(count), one_far_away):
        assert np.unique(keys).size == count
        found, begins = in_order(device, keys)
        np.testing.assert_array_equal(found, np.sort(keys))
        sizes = np.diff([*begins, count])
        assert (sizes <= CAPACITY).all() and (sizes[:-1] >= CAPACITY // 2).all(), sizes


def test_patches_are_those_with_pixels_of_the_box(device: OnCpuDevice) -> None:
    """Of every box that touches the tile and may go beyond; no patch more, which would be blended in vain."""
    native = device.native
    bits = np.array([[native.on_cpu_patch_of(column, row) for column in range(TILE)] for row in range(TILE)])
    assert sorted(np.unique(bits)) == [1 << warp for warp in range(8)]
    ends = [(a, b) for a in (-16384, *range(-1, TILE)) for b in (*range(1, TILE + 2), 16384) if a < b]
    spans = [slice(max(a, 0), b) for a, b in ends]
    across = [np.bitwise_or.reduce(bits[:, s], axis=1) for s in spans]
    for (x, columns), (y, rows) in product(zip(ends, across, strict=True), zip(ends, spans, strict=True)):
        assert native.on_cpu_patches(*x, *y) == np.bitwise_or.reduce(columns[rows]), (x, y)
