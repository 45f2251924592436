"""Key frames to verify with: of a clip, or made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..runtime.errors import VideoError
from ..runtime.preprocess import Resizer
from ..runtime.video import open_video


def example_frames(height: int, width: int, count: int = 3) -> list[np.ndarray]:
    """Smooth pictures that move, uint8 RGB [H, W, 3], from a fixed seed."""
    rng = np.random.default_rng(0)
    coarse = (rng.random((9, 16, 3)) * 255).astype(np.uint8)
    planes = np.empty((3, height + 4 * count, width + 4 * count), np.float32)
    Resizer(*planes.shape[1:]).into(coarse, planes)
    whole = np.rint(planes.transpose(1, 2, 0) * 255).astype(np.uint8)
    return [np.ascontiguousarray(whole[4 * i : 4 * i + height, 4 * i : 4 * i + width]) for i in range(count)]


def key_frames(clip: Path, gap: int, count: int) -> list[np.ndarray]:
    """The first `count` frames of a clip that are `gap` apart, uint8 RGB.

    Raises:
        VideoError: not a video, or too short.
    """
    frames: list[np.ndarray] = []
    with open_video(str(clip)) as reader:
        for i, frame in enumerate(reader):
            if i % gap == 0:
                frames.append(np.array(frame.image))
            if len(frames) == count:
                return frames
    raise VideoError(
        f"{clip} has no {count} key frames {gap} frames apart.", "Use a longer clip, or fewer --frames."
    )
