"""The wire format: what comes out is what went in, to the step of each column; poison is never drawn."""

from __future__ import annotations

import numpy as np
import pytest
from decoder import KeyFrameMessage, PairMessage, decode
from view_samples import random_key_frame, random_pair

from streamsplat_edge.runtime.view import packing


def key_frame(rows: np.ndarray) -> KeyFrameMessage:
    message = decode(packing.pack_key_frame(7, 3, 1.25, rows))
    assert isinstance(message, KeyFrameMessage)
    return message


def pair(motion: np.ndarray, fade: np.ndarray) -> PairMessage:
    message = decode(packing.pack_pair(8, (3, 4), (1.25, 1.5), motion, fade))
    assert isinstance(message, PairMessage)
    return message


def test_key_frame_round_trip() -> None:
    rows = random_key_frame(0)
    message = key_frame(rows)
    assert (message.number, message.index, message.time) == (7, 3, 1.25)
    assert message.drawn.all()
    error = np.abs(message.gaussians - rows)
    span = np.ptp(rows, axis=0)
    assert (error[:, :3].max(0) <= 0.51 * span[:3] / 65535 + 1e-6).all()
    assert (error[:, 3:6].max(0) <= 0.51 * span[3:6] / 255).all()
    assert error[:, 8].max() <= 0.51 * span[8] / 254
    ratio = np.abs(np.log(message.gaussians[:, 6:8] / rows[:, 6:8]))
    assert ratio.max() <= 0.51 * np.ptp(np.log(rows[:, 6:8]), axis=0).max() / 255


def test_pair_round_trip() -> None:
    arrays = random_pair(0)
    message = pair(**arrays)
    assert (message.number, message.indices, message.times) == (8, (3, 4), (1.25, 1.5))
    assert message.drawn.all()
    for i in range(3):
        span = np.ptp(arrays["motion"][..., i])
        assert np.abs(message.motion - arrays["motion"])[..., i].max() <= 0.51 * span / 65535 + 1e-6
    assert np.abs(message.fade - arrays["fade"])[..., 0].max() <= 0.51 * np.ptp(arrays["fade"][..., 0]) / 254
    assert np.abs(message.fade - arrays["fade"])[..., 1].max() <= 0.51 * np.ptp(arrays["fade"][..., 1]) / 255


def test_size_at_full_size() -> None:
    """A key frame and its pair of the published model, 73,728 Gaussians alive, take about a megabyte."""
    count = 36_864
    key = packing.pack_key_frame(1, 0, 0.0, random_key_frame(1, count))
    motion = packing.pack_pair(2, (0, 1), (0.0, 0.1), **random_pair(1, count))
    assert len(key) == 96 + 12 * count and len(motion) == 80 + 8 * 2 * count
    assert len(key) + len(motion) < 1.04e6


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(9))
def test_gaussians_that_are_not_finite_are_never_drawn(column: int, poison: float) -> None:
    rows = random_key_frame(2)
    clean = key_frame(rows)
    rows[5, column] = poison
    message = key_frame(rows)
    np.testing.assert_array_equal(np.flatnonzero(~message.drawn), [5])
    others = np.arange(len(rows)) != 5
    np.testing.assert_allclose(message.gaussians[others], clean.gaussians[others], atol=0.02)


@pytest.mark.parametrize(("name", "column"), [("motion", 0), ("motion", 2), ("fade", 0), ("fade", 1)])
def test_motion_that_is_not_finite_is_never_drawn(name: str, column: int) -> None:
    arrays = random_pair(3)
    arrays[name][1, 9, column] = np.nan
    message = pair(**arrays)
    np.testing.assert_array_equal(np.argwhere(~message.drawn), [[1, 9]])


def test_one_absurd_value_does_not_spoil_the_others() -> None:
    rows = random_key_frame(4)
    rows[0, 0], rows[1, 3], rows[2, 6] = 1e30, -1e30, 1e30
    message = key_frame(rows)
    assert message.drawn.all()
    assert np.abs(message.gaussians[3:, 0] - rows[3:, 0]).max() < 1e-3
    assert np.abs(message.gaussians[3:, 3] - rows[3:, 3]).max() < 0.02
    assert np.abs(message.gaussians[3:, 6] / rows[3:, 6] - 1).max() < 0.05


def test_nothing_is_valid_or_nothing_varies() -> None:
    assert not key_frame(np.full((4, 9), np.nan, np.float32)).drawn.any()
    rows = np.tile(random_key_frame(5, 1), (4, 1))
    message = key_frame(rows)
    assert message.drawn.all()
    np.testing.assert_allclose(message.gaussians, rows, rtol=1e-6)
    still = pair(np.zeros((2, 4, 3), np.float32), np.zeros((2, 4, 2), np.float32))
    assert still.drawn.all() and not still.motion.any() and not still.fade.any()


def test_the_arrays_are_left_alone() -> None:
    rows, arrays = random_key_frame(6), random_pair(6)
    copies = rows.copy(), arrays["motion"].copy(), arrays["fade"].copy()
    key_frame(rows)
    pair(**arrays)
    for array, copy in zip((rows, arrays["motion"], arrays["fade"]), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_zero_scale_and_zero_opacity() -> None:
    rows = random_key_frame(7)
    rows[0, 6] = 0.0
    rows[1, 8] = 0.0
    message = key_frame(rows)
    assert message.drawn.all() and message.gaussians[0, 6] < 1e-5 and message.gaussians[1, 8] < 1e-6
