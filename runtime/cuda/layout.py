"""The arguments of the kernels as NumPy sees them: cuda/raster_cuda.h, cuda/lifecycle_cuda.h,
cuda/depth_range_cuda.cuh and cuda/prepare_cuda.cuh, field by field.

A test compares sizes and offsets with those of the C++ compiler.
"""

from __future__ import annotations

import numpy as np

TILE = 16
"""Pixels per side of a tile (`kTile`)."""

THREADS = 256
"""Threads of every block (`kThreads`)."""

SORT_CAPACITY = 1024
"""Keys that a tile sorts at a time (`kSortCapacity`)."""

SPLAT_BYTES = 48
"""Size of a projected Gaussian (`CudaSplat`)."""

TALLIES = 8
"""Counts per time stamp: those of `RenderStats` in their order, then tiles with more keys than slots."""

_POINTER = np.uint64

RASTER_PARAMS = np.dtype(
    [(name, np.int32) for name in ("width", "height", "times", "count", "slots", "extent")]
    + [
        (name, _POINTER)
        for name in (
            *("means", "scales", "opacity", "rgb", "quats"),
            *("frames", "splats", "filled", "keys", "tally", "stats"),
            *("rgb_out", "bytes_out", "depth_out", "expected_out", "alpha_out"),
        )
    ]
)

RASTER_FRAME = np.dtype(
    [
        ("rotation", np.float32, (3, 3)),
        ("translation", np.float32, 3),
        ("background", np.float32, 3),
        ("dt", np.float32, 2),
    ]
)

RING_STATE = np.dtype(
    [(name, np.int32) for name in ("earlier", "later", "pair", "unused")] + [("first_id", np.int64, 2)]
)

RING_TOTALS = np.dtype(
    [(name, np.int32) for name in ("living", "listed", "culled_invalid", "culled_transparent")]
)

BLOCK_COUNTS_BYTES = 12
"""Size of the counts of a block of `lifecycle_judge` (`BlockCounts`)."""

RING_PARAMS = np.dtype(
    [("per_frame", np.int32), ("mapping", np.int32)]
    + [
        (name, _POINTER)
        for name in (
            *("state", "gaussians", "motion", "fade"),
            *("fates", "counts", "rows", "ids", "totals"),
        )
    ]
)

DEPTH_BLOCK = 1024
"""Values of depth per block (`kDepthBlock`)."""

DEPTH_PART_BYTES = 12
"""Size of what a block of `depth_extent` found (`DepthPart`)."""

DEPTH_MOMENT = np.dtype([("time", np.float64), ("fresh", np.int32), ("unused", np.int32)])

DEPTH_STATE = np.dtype(
    [(name, np.float64) for name in ("low", "high", "time")]
    + [(name, np.int32) for name in ("known", "unused")]
)

DEPTH_PARAMS = np.dtype(
    [(name, np.int32) for name in ("count", "blocks")]
    + [(name, _POINTER) for name in ("depth", "parts", "moment", "before", "after")]
)

COLOUR_BITS = 13
"""Bits behind the point of the numbers of `COLOUR_MATRIX` (`kColourBits`)."""

COLOUR_MATRIX = np.dtype(
    [(name, np.int32) for name in ("offset", "luma", "red_v", "green_u", "green_v", "blue_u")]
)

PREPARE_PARAMS = np.dtype(
    [
        (name, np.int32)
        for name in ("height", "width", "stored_height", "stored_width", "taps_down", "taps_across")
    ]
    + [("column", np.int32, 3), ("row", np.int32, 3), ("matrix", COLOUR_MATRIX)]
    + [("pitch", np.int64), ("chroma_pitch", np.int64)]
    + [
        (name, _POINTER)
        for name in (
            *("pixels", "chroma", "down", "across"),
            *("weights_down", "weights_across", "out"),
        )
    ]
)


def tiles(height: int, width: int) -> int:
    """Tiles of an image."""
    return -(-height // TILE) * -(-width // TILE)


def blocks(rows: int) -> int:
    """Blocks of `THREADS` threads that cover `rows`; at least one, because a launch needs one."""
    return max(1, -(-rows // THREADS))
