"""What a stream gives: rendered frames, and what its pushes and renders did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .array import Array
from .errors import InputError
from .key_frame_ring import LifecycleStats
from .rasterizer import RenderStats
from .scene import Planes


@dataclass(frozen=True)
class PushStats:
    """What a push did.

    Attributes:
        key_frame: number of the key frame over the life of the stream. timestamp: seconds.
        latencies: milliseconds of each stage that ran, in order: preprocess, [depth, condition,] encode,
            [deform,] lifecycle. Where a pair was computed by a CUDA graph: preprocess (without the end of the
            upload) and graph; capture instead of graph where it was computed one by one and then captured.
        spawned, alive, retired: Gaussians; see `LifecycleStats`.
    """

    key_frame: int
    timestamp: float
    latencies: Mapping[str, float]
    spawned: int
    alive: int
    retired: int


@dataclass(frozen=True)
class FrameStats:
    """What a render did: milliseconds, and where the living Gaussians went (by reason, in `render`).

    Images that were rendered together share their time equally (`Stream.render_many`).
    """

    latency: float
    lifecycle: LifecycleStats
    render: RenderStats

    def to_json(self) -> dict[str, Any]:
        """Counts by name: key_frame, spawned, alive, retired, rendered, culled_invalid, culled_behind, ..."""
        return {"latency_ms": self.latency, **vars(self.lifecycle), **vars(self.render)}


@dataclass(frozen=True)
class Frame:
    """A rendered image.

    Attributes:
        rgb: uint8 [H, W, 3]. Values are rounded to the nearest level; the published script truncates, which
            darkens the image by half a level on average.
        planes: depth, expected depth and alpha; None where they were not asked for.
        timestamp: seconds. stats: latency and counts.
        on_device: rgb in the memory of the GPU that rendered it, or None. A later render may overwrite it,
            whatever `copy` says; of a series (`Stream.render_many`), not before the next frame is asked for.
    """

    rgb: np.ndarray
    planes: Planes | None
    timestamp: float
    stats: FrameStats
    on_device: Array | None = None

    @property
    def depth(self) -> np.ndarray:
        """float32 [H, W], accumulated (sum of depth * weight).

        Raises:
            InputError: the frame was rendered without depth.
        """
        return self._planes.depth

    @property
    def expected_depth(self) -> np.ndarray:
        """float32 [H, W]: depth / alpha, 0 where alpha is 0. Raises InputError as `depth`."""
        return self._planes.expected_depth

    @property
    def alpha(self) -> np.ndarray:
        """float32 [H, W]. Raises InputError as `depth`."""
        return self._planes.alpha

    @property
    def _planes(self) -> Planes:
        if self.planes is None:
            raise InputError("This frame was rendered without depth and alpha.", "Ask for depth=True.")
        return self.planes
