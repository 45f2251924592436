"""The life of Gaussians in a stream: spawn, two intervals of life, fade, retire; in a ring of preallocated
slots.

Key frame k spawns G Gaussians at t_k. The set over (t_{k-1}, t_k] is frame k-1's Gaussians moved forward and
frame k's moved backward (REFERENCE.md section 2), so that each Gaussian lives across two intervals and then
retires. Nothing is allocated after construction: three slots go round, two alive and one to be filled. A key
frame takes effect only in `spawn`, so a stage that fails while filling the spare slot leaves the current
interval as it was.
"""

from __future__ import annotations

import math

import numpy as np

from .bundle_schema import ModelConfig
from .interval import IntervalEvaluator
from .key_frame_ring import PAIRS, SLOTS, LifecycleStats, RingLife
from .rasterizer import Splats
from .stage_tensors import GAUSSIAN_COLUMNS

__all__ = ["KeyFrameSlot", "Lifecycle", "LifecycleStats", "PairBuffers"]


class KeyFrameSlot:
    """Buffers for everything that is computed once per key frame and used by both of its pairs.

    Attributes:
        gaussians [1,G,9], tokens [1,N,D], features [1,G,F], condition [1,M,C] or None: float32, filled by the
        stages.
        index: number of the key frame, counted over the life of the stream. time: its time stamp in seconds.
    """

    def __init__(self, model: ModelConfig, condition_shape: tuple[int, ...] | None) -> None:
        self.gaussians = np.zeros((1, model.gaussians, GAUSSIAN_COLUMNS), np.float32)
        self.tokens = np.zeros((1, model.tokens, model.token_dim), np.float32)
        self.features = np.zeros((1, model.gaussians, model.feature_dim), np.float32)
        self.condition = None if condition_shape is None else np.zeros(condition_shape, np.float32)
        self.index = -1
        self.time = math.nan


class PairBuffers:
    """What `deform` gives: motion [2,G,3] and fade [2,G,2] (gamma0, gamma1); index 0 is the earlier frame."""

    def __init__(self, model: ModelConfig) -> None:
        self.motion = np.zeros((2, model.gaussians, 3), np.float32)
        self.fade = np.zeros((2, model.gaussians, 2), np.float32)


class Lifecycle(RingLife[KeyFrameSlot, PairBuffers]):
    """The key frames alive on the host, and their Gaussians at any time in between. Not thread-safe.

    Fill `spare` (and `spare_pair`, where `newest` exists), then `spawn`.
    """

    def __init__(
        self, model: ModelConfig, *, condition_shape: tuple[int, ...] | None = None, threads: int = 0
    ) -> None:
        self.model = model
        count = model.gaussians
        super().__init__(
            count,
            [KeyFrameSlot(model, condition_shape) for _ in range(SLOTS)],
            [PairBuffers(model) for _ in range(PAIRS)],
        )
        self._offsets = np.arange(count, dtype=np.int64)
        self._ids = np.empty(2 * count, np.int64)
        self._interval = IntervalEvaluator(model.gaussians, model.depth_mapping, threads)
        self._evaluated = math.nan

    @property
    def ids(self) -> np.ndarray:
        """Stable identity of every living Gaussian, int64, in the row order of `at`: key_frame * G + index.

        A view that the next `spawn` overwrites.
        """
        count = self.model.gaussians
        living = [slot for slot in (self.previous, self.newest) if slot is not None]
        for i, slot in enumerate(living):
            np.add(self._offsets, slot.index * count, out=self._ids[i * count : (i + 1) * count])
        return self._ids[: len(living) * count]

    def spawn(self, time: float, *, cut: bool = False) -> LifecycleStats:
        """Make the spare slot the newest key frame and retire the oldest where two are alive already.

        Args:
            time: seconds, later than the newest key frame alive.
            cut: retire everything first; the key frame then stands alone.

        Raises:
            InputError: the time is not finite or not later. Nothing has changed then.
        """
        self.check_time(time)
        slot = self.spare
        slot.index, slot.time = self._ring.key_frames, time
        self._ring.spawn(time, cut=cut)
        self._evaluated = math.nan
        return self.stats

    def reset(self) -> None:
        super().reset()
        self._evaluated = math.nan

    def at(self, time: float) -> Splats:
        """All living Gaussians at a time of the current interval, ready for the rasterizer.

        Rows [0, G) are the earlier key frame's, rows [G, 2G) the later's; a lone key frame has rows [0, G)
        only. The result is one preallocated object that the next call overwrites.

        Raises:
            InputError: as `normalised`.
        """
        t = self.normalised(time)
        if time == self._evaluated:  # several views of one moment
            return self._interval.splats
        newest, previous, pair = self.newest, self.previous, self.pair
        assert newest is not None
        self._evaluated = math.nan
        if previous is None or pair is None:
            self._interval.lone(newest.gaussians[0])
        else:
            self._interval.between(previous.gaussians[0], newest.gaussians[0], pair.motion, pair.fade, t)
        self._evaluated = time
        return self._interval.splats
