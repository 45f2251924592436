"""Scene cuts: found between scenes, not in motion, fades, noise or a change of size."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplat_edge.runtime.scene_cut import SceneCutDetector


def texture(
    seed: int, height: int = 288, width: int = 1200, base: tuple[int, int, int] = (90, 120, 60)
) -> np.ndarray:
    """Smooth coloured blobs, so that neighbouring pixels resemble each other as in a photograph."""
    coarse = np.random.default_rng(seed).normal(0, 50, (12, 50, 3)) + base
    rows = np.linspace(0, 11, height).round().astype(int)
    cols = np.linspace(0, 49, width).round().astype(int)
    return np.clip(coarse[rows][:, cols], 0, 255).astype(np.uint8)


def cuts(frames: list[np.ndarray]) -> list[int]:
    detector = SceneCutDetector()
    return [i for i, frame in enumerate(frames) if detector.is_cut(frame)]


def pan(seed: int, speed: int, count: int = 12, **options: tuple[int, int, int]) -> list[np.ndarray]:
    scene = texture(seed, **options)  # type: ignore[arg-type]
    return [scene[:, i * speed : i * speed + 512] for i in range(count)]


def test_cut_between_scenes() -> None:
    frames = pan(1, 4) + pan(2, 4, base=(200, 60, 60)) + pan(3, 4, base=(40, 60, 200))
    assert cuts(frames) == [12, 24]


@pytest.mark.parametrize("speed", [0, 2, 10, 40])
def test_motion_is_no_cut(speed: int) -> None:
    assert cuts(pan(1, speed)) == []


def test_fade_is_no_cut() -> None:
    scene = texture(1)[:, :512].astype(np.float32)
    frames = [(scene * level).astype(np.uint8) for level in np.linspace(1, 0, 30)]
    assert cuts(frames) == []


def test_noise_and_flat_frames_are_no_cuts() -> None:
    rng = np.random.default_rng(0)
    scene = texture(1)[:, :512].astype(np.int32)
    noisy = [np.clip(scene + rng.integers(-20, 21, scene.shape), 0, 255).astype(np.uint8) for _ in range(10)]
    assert cuts(noisy) == []
    assert cuts([np.zeros((9, 16, 3), np.uint8)] * 10) == []


def test_a_change_of_size_is_no_cut() -> None:
    large = texture(1)[:, :1024]
    assert cuts([large, large, np.ascontiguousarray(large[::2, ::2]), large]) == []


def test_small_images() -> None:
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert cuts([black, black, white, white]) == [2]


def test_reset_forgets_the_previous_frame() -> None:
    detector = SceneCutDetector()
    detector.is_cut(np.zeros((4, 4, 3), np.uint8))
    detector.reset()
    assert not detector.is_cut(np.full((4, 4, 3), 255, np.uint8))
