"""Made-up videos, key frames and pairs for the viewer's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from video_samples import moving_square

from streamsplat_edge.runtime.video import VideoFrame


def make_video(count: int) -> list[VideoFrame]:
    return [VideoFrame(moving_square(4 * i), i / 25, i) for i in range(count)]


def random_key_frame(seed: int, count: int = 500) -> np.ndarray:
    """Plausible Gaussians [count, 9]."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0.05, 0.95, (count, 9))
    rows[:, [0, 2]] = rng.uniform(-1, 1, (count, 2))
    rows[:, 6:8] = np.exp(rng.uniform(np.log(0.002), np.log(0.1), (count, 2)))
    return rows.astype(np.float32)


def random_pair(seed: int, count: int = 500) -> dict[str, Any]:
    """Plausible motion [2, count, 3] and fade [2, count, 2]."""
    rng = np.random.default_rng(seed)
    fade = np.stack([rng.uniform(0, 12, (2, count)), rng.uniform(0, 1, (2, count))], -1)
    return {"motion": rng.normal(0, 0.05, (2, count, 3)).astype(np.float32), "fade": fade.astype(np.float32)}
