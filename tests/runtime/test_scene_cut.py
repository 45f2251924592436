"""Scene cuts: found between scenes, not in motion, fades, noise or a change of size."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplat_edge.runtime.scene_cut import COLS, ROWS, SceneCutDetector, sampled


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


def grey(level: int, rows: int = 0, other: int = 0) -> np.ndarray:
    """What the detector looks at, of one grey level, with another in the uppermost rows."""
    pixels = np.full((ROWS, COLS, 3), level, np.uint8)
    pixels[:rows] = other
    return pixels


@pytest.mark.parametrize(
    ("rows", "rise", "cut"),
    [
        (9, 120, False),  # a quarter changes its colour: 0.25, no more
        (10, 120, True),  # and the pixels differ by 0.13
        (10, 80, False),  # 0.087
        (10, 84, True),  # 0.0915
        (36, 22, False),  # 0.086
        (36, 27, False),  # 0.106, but from 96 to 127 is one level of colour of eight
        (36, 28, True),
        (36, -4, False),
    ],
)
def test_how_much_must_change(rows: int, rise: int, cut: bool) -> None:
    detector = SceneCutDetector()
    assert not detector.is_cut_of(grey(100))
    assert detector.is_cut_of(grey(100, rows, 100 + rise)) == cut


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_every_channel_has_its_colours(channel: int) -> None:
    detector = SceneCutDetector()
    detector.is_cut_of(grey(100))
    pixels = grey(100)
    pixels[..., channel] = 200  # a difference of 0.13
    assert detector.is_cut_of(pixels)


@pytest.mark.parametrize(("jump", "cut"), [(45, False), (47, True)])
def test_a_cut_stands_out_from_the_motion_before_it(jump: int, cut: bool) -> None:
    """Stripes that move twice by their width differ by 0.2 in the mean and have the same colours. What is
    recent is then 0.8 * (0.2 * 0.2) + 0.2 * 0.2 = 0.072, and 2.5 times that 46 of 255 levels."""
    stripes = grey(40)
    stripes[:, ::2] = 91
    detector = SceneCutDetector()
    for step in range(3):
        assert not detector.is_cut_of(np.roll(stripes, step, axis=1))
    assert detector.is_cut_of(stripes + np.uint8(jump)) == cut
    assert detector.is_cut_of(stripes + np.uint8(jump + 30)) == cut, "a cut forgets the motion before it"


def test_pixels_are_the_middles_of_equal_parts() -> None:
    assert sampled(36, 36).tolist() == list(range(36))
    assert sampled(8, 4).tolist() == [1, 3, 5, 7]
    assert sampled(1080, 36).tolist() == [15 + 30 * i for i in range(36)]
    assert sampled(1, 4).tolist() == [0, 0, 0, 0]
    image = np.zeros((72, 128, 3), np.uint8)
    image[1::2, 1::2] = 200
    detector = SceneCutDetector()
    detector.is_cut(image)
    assert not detector.is_cut_of(grey(200)), "these are the ones that it has seen"


def test_small_images() -> None:
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert cuts([black, black, white, white]) == [2]


def test_reset_forgets_the_previous_frame() -> None:
    detector = SceneCutDetector()
    detector.is_cut(np.zeros((4, 4, 3), np.uint8))
    detector.reset()
    assert not detector.is_cut(np.full((4, 4, 3), 255, np.uint8))
