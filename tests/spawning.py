"""Key frames for a lifecycle without stages: arrays go where those would have written theirs."""

from __future__ import annotations

import numpy as np

from streamsplat_edge.runtime.key_frame_ring import LifecycleStats
from streamsplat_edge.runtime.lifecycle import Lifecycle


def spawn(
    lifecycle: Lifecycle,
    time: float,
    *,
    gaussians: np.ndarray,
    motion: np.ndarray | None = None,
    fade: np.ndarray | None = None,
    cut: bool = False,
) -> LifecycleStats:
    """`Lifecycle.spawn` of gaussians [G, 9] or [1, G, 9], motion [2, G, 3] and fade [2, G, 2]."""
    slot, pair = lifecycle.spare, lifecycle.spare_pair
    slot.gaussians[...] = gaussians
    if motion is not None:
        pair.motion[...] = motion
    if fade is not None:
        pair.fade[...] = fade
    return lifecycle.spawn(time, cut=cut)
