"""Key frames by motion: displacement is measured, contrast does not matter, stillness costs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.key_frames import MotionGap


def texture(shift: float, contrast: float = 1.0, size: tuple[int, int] = (144, 256)) -> np.ndarray:
    """A smooth pattern moved right by `shift`, a share of the width."""
    height, width = size
    x = (np.arange(width) + 0.5) / width - shift
    y = (np.arange(height) + 0.5) / height
    waves = np.sin(2 * np.pi * 5 * x)[None] * np.cos(2 * np.pi * 3 * y)[:, None]
    waves = waves + 0.5 * np.sin(2 * np.pi * 2 * (x[None] + y[:, None]))
    return np.repeat((128 + 70 * contrast * waves)[..., None], 3, 2).clip(0, 255).astype(np.uint8)


def measured(shift: float, **kwargs: float) -> float:
    rule = MotionGap()
    rule.began(texture(0.0, **kwargs))  # type: ignore[arg-type]
    rule.due(texture(shift, **kwargs))  # type: ignore[arg-type]
    return rule.motion


@pytest.mark.parametrize("shift", [0.004, 0.01, 0.02, 0.03])
def test_motion_is_the_displacement(shift: float) -> None:
    """Only across the gradient, so that a motion along one axis counts for 0.5 to 1 of its length."""
    assert 0.5 * shift < measured(shift) < 1.1 * shift


def ramp(share: float = 1.0) -> np.ndarray:
    """64 x 36 cells of one pixel each; brightness rises by `share` of 4 levels per column."""
    levels = np.round(share * 4 * np.arange(64)).astype(np.uint8)
    return np.broadcast_to(levels[None, :, None], (36, 64, 3)).copy()


def test_motion_by_hand() -> None:
    """Difference over the mean gradient of both pictures, which 0.01 is added to, in columns of 64."""
    rule = MotionGap()
    assert rule.motion == 0.0
    rule.began(ramp())
    rule.due(ramp() + np.uint8(2))
    assert rule.motion == pytest.approx(2 / (4 + 2.55) / 64, rel=1e-3)
    rule.due(ramp(0.5))  # its levels are 0 to 126 lower, 63 in the mean
    assert rule.motion == pytest.approx(63 / (0.5 * (4 + 2) + 2.55) / 64, rel=1e-3)
    rule.began(ramp(0.5))
    rule.due(ramp(0.5) + np.uint8(2))
    assert rule.motion == pytest.approx(2 / (2 + 2.55) / 64, rel=1e-3)
    limit = rule.motion
    for given, due in ((limit, True), (limit * 1.001, False)):
        rule = MotionGap(given)
        rule.began(ramp(0.5))
        assert rule.due(ramp(0.5) + np.uint8(2)) == due


def test_images_may_be_views() -> None:
    rule = MotionGap()
    rule.began(texture(0.0)[:, ::-1])
    assert not rule.due(np.ascontiguousarray(texture(0.0)[:, ::-1])) and rule.motion == 0.0


def test_contrast_does_not_matter() -> None:
    assert measured(0.01, contrast=0.3) == pytest.approx(measured(0.01), rel=0.3)


def test_noise_and_flat_pictures_do_not_move() -> None:
    rng = np.random.default_rng(0)
    still = texture(0.0, size=(720, 1280))

    def noisy(image: np.ndarray) -> np.ndarray:
        return (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)

    rule = MotionGap()
    rule.began(noisy(still))
    assert not rule.due(noisy(still)) and rule.motion < 0.002
    rule.began(noisy(np.full_like(still, 90)))
    assert not rule.due(noisy(np.full_like(still, 90)))


def test_the_limit_decides() -> None:
    rule = MotionGap(limit=0.01)
    rule.began(texture(0.0))
    moved = [rule.due(texture(step * 0.002)) for step in range(1, 11)]
    assert moved == sorted(moved) and not moved[3] and moved[-1]
    rule.began(texture(10 * 0.002))
    assert not rule.due(texture(11 * 0.002)), "measured from the new key frame"


def test_other_sizes_are_ordinary() -> None:
    rule = MotionGap()
    rule.began(texture(0.0))
    assert not rule.due(texture(0.0, size=(1080, 1920)))


@pytest.mark.parametrize("limit", [0, -0.1, 1.0, float("nan")])
def test_impossible_limits(limit: float) -> None:
    with pytest.raises(InputError, match="motion limit"):
        MotionGap(limit)
