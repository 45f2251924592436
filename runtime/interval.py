"""The Gaussians of an interval at a time: for the lifecycle, a GPU's host copy, the live view and files."""

from __future__ import annotations

from typing import cast

import numpy as np

from .rasterizer import DepthMapping, Splats, evaluate_at


class IntervalEvaluator:
    """Moves and fades the Gaussians of an interval to a time. The result is one preallocated object that the
    next call overwrites. Not thread-safe.

    Args:
        count: Gaussians per key frame, G. depth_mapping, threads: as of `evaluate_at`.
    """

    def __init__(self, count: int, depth_mapping: str, threads: int = 0) -> None:
        self.splats = Splats.allocate(2 * count)
        self._count, self._threads = count, threads
        self._mapping = cast(DepthMapping, depth_mapping)  # whoever read it allows no other words
        # Zero motion and fade: a lone key frame stands still at full opacity.
        self._still = np.zeros((count, 3), np.float32), np.zeros((count, 2), np.float32)

    def lone(self, gaussians: np.ndarray) -> Splats:
        """gaussians [G, 9] of a key frame without a pair -> rows [0, G)."""
        evaluate_at(gaussians, *self._still, 0.0, self._mapping, self.splats, 0, threads=self._threads)
        self.splats.count = self._count
        return self.splats

    def between(
        self, earlier: np.ndarray, later: np.ndarray, motion: np.ndarray, fade: np.ndarray, t: float
    ) -> Splats:
        """Gaussians [G, 9] of both key frames, motion [2, G, 3] and fade [2, G, 2] of their pair, at t in
        [0, 1] -> rows [0, G) of the earlier, [G, 2G) of the later."""
        for i, (rows, dt) in enumerate(((earlier, t), (later, t - 1.0))):
            evaluate_at(
                rows,
                motion[i],
                fade[i],
                dt,
                self._mapping,
                self.splats,
                i * self._count,
                threads=self._threads,
            )
        self.splats.count = 2 * self._count
        return self.splats
