"""Resizing of any image to the model's planes."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.preprocess import DepthRange, Resizer, check_image, normalise_depth


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.full((3, height, width), np.nan, np.float32)
    Resizer(height, width).into(image, out)
    return out


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def test_same_size_is_exact() -> None:
    image = noise(16, 32)
    np.testing.assert_allclose(resize(image, 16, 32), image.transpose(2, 0, 1) / 255, atol=1e-7)


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_shrinking_averages_areas(factor: int) -> None:
    image = noise(16 * factor, 32 * factor)
    wanted = image.reshape(16, factor, 32, factor, 3).mean((1, 3)).transpose(2, 0, 1) / 255
    assert np.abs(resize(image, 16, 32) - wanted).max() <= 1.01 / 255


def test_shrinking_by_a_fraction_averages_areas() -> None:
    """Against exact area weights, for a size that divides nothing."""

    def weights(source: int, target: int) -> np.ndarray:
        edges = np.linspace(0, source, target + 1)
        low, high = edges[:-1, None], edges[1:, None]
        pixel = np.arange(source)[None]
        overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
        return overlap / overlap.sum(1, keepdims=True)

    image = noise(53, 97)
    wanted = np.einsum("yi,xj,ijc->cyx", weights(53, 16), weights(97, 32), image) / 255
    difference = np.abs(resize(image, 16, 32) - wanted)
    assert difference.max() <= 1.01 / 255


def test_enlarging_interpolates() -> None:
    ramp = np.tile(np.linspace(0, 255, 8).astype(np.uint8)[None, :, None], (4, 1, 3))
    out = resize(ramp, 16, 32)
    assert (np.diff(out[0, 0]) >= 0).all() and np.diff(out[0, 0]).max() < 0.05
    assert np.abs(out - out[:, :1]).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 5), (33, 7), (8, 200), (1080, 1920)])
def test_any_size_keeps_a_flat_colour(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    image[:] = (10, 128, 250)
    out = resize(image, 16, 32)
    np.testing.assert_allclose(
        out, np.broadcast_to(np.array([10, 128, 250])[:, None, None] / 255, out.shape), atol=2e-3
    )


@pytest.mark.parametrize("size", [(40_000, 2), (1, 70_000), (20_000, 1)])
def test_sizes_that_swscale_refuses_are_an_error_in_words(size: tuple[int, int]) -> None:
    resizer, out = Resizer(144, 256), np.zeros((3, 144, 256), np.float32)
    try:
        resizer.into(np.zeros((*size, 3), np.uint8), out)
    except InputError as error:  # which sizes these are is a matter of swscale's release
        assert f"{size[1]}x{size[0]}" in error.message and error.hint
    resizer.into(np.full((20, 20, 3), 255, np.uint8), out)
    assert out.min() == 1, "the next image is none the worse"


def test_one_resizer_takes_changing_sizes() -> None:
    resizer = Resizer(16, 32)
    out = np.zeros((3, 16, 32), np.float32)
    for size in ((40, 60), (16, 32), (7, 300), (40, 60)):
        image = noise(*size)
        resizer.into(image, out)
        np.testing.assert_array_equal(out, resize(image, 16, 32))


def test_widths_that_swscale_pads() -> None:
    """Planes of an odd width have padding at the end of each row, which must not end up in the image."""
    image = noise(9, 13)
    np.testing.assert_allclose(resize(image, 9, 13), image.transpose(2, 0, 1) / 255, atol=1e-7)


def test_check_image() -> None:
    image = noise(4, 6)
    assert check_image(image) is image
    np.testing.assert_array_equal(check_image(image[::-1]), image[::-1])
    assert check_image(image[::-1]).flags.c_contiguous
    read_only = image.copy()
    read_only.flags.writeable = False
    resize(check_image(read_only), 16, 32)
    for bad, message in (
        (image.tolist(), "must be a numpy array, not list"),
        (image[..., 0], r"has shape \[4, 6\]"),
        (np.zeros((4, 6, 4), np.uint8), r"has shape \[4, 6, 4\]"),
        (np.zeros((0, 6, 3), np.uint8), r"has shape \[0, 6, 3\]"),
        (image.astype(np.float32), "has dtype float32"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            check_image(bad)
        assert "uint8 RGB" in caught.value.hint


def test_normalise_depth() -> None:
    depth = np.array([[2.0, 4.0], [3.0, 6.0]], np.float32)[None, None]
    normalise_depth(depth)
    np.testing.assert_allclose(depth[0, 0], [[0, 0.5], [0.25, 1]])
    flat = np.full((1, 1, 2, 2), 7.0, np.float32)
    normalise_depth(flat)
    assert (flat == 0).all()


def plane(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 12, dtype=np.float32).reshape(1, 1, 3, 4)


def test_the_range_of_depth_widens_at_once_and_narrows_slowly() -> None:
    first = DepthRange().normalise(plane(2, 4), 10.0)
    assert first.limits == (2, 4)
    depth = plane(1, 8)
    wide = first.normalise(depth, 10.1)
    assert wide.limits == (1, 8) and depth.min() == 0 and depth.max() == 1, "nothing is cut off"
    assert first.limits == (2, 4), "a push that fails leaves the range as it was"
    depth = plane(2, 4)
    narrower = wide.normalise(depth, 10.1 + DepthRange.RELAX_SECONDS)
    keep = np.exp(-1)
    assert narrower.limits == pytest.approx((2 - keep, 4 + 4 * keep))
    low, high = narrower.limits
    np.testing.assert_allclose(depth, (plane(2, 4) - low) / (high - low), atol=1e-6)
    for step in range(100):
        narrower = narrower.normalise(plane(2, 4), 13.0 + step)
    assert narrower.limits == pytest.approx((2, 4), abs=1e-6)


def test_the_range_of_depth_never_looks_ahead() -> None:
    """What a frame becomes depends on the frames before it only."""
    rng = np.random.default_rng(0)
    frames = [plane(*sorted(rng.uniform(0, 10, 2))) for _ in range(6)]

    def run(count: int) -> list[np.ndarray]:
        state, results = DepthRange(), []
        for i, frame in enumerate(frames[:count]):
            copy = frame.copy()
            state = state.normalise(copy, i * 0.2)
            results.append(copy)
        return results

    for shorter, longer in zip(run(4), run(6), strict=False):
        np.testing.assert_array_equal(shorter, longer)


def test_bad_and_flat_depth() -> None:
    state = DepthRange().normalise(plane(1, 2), 0.0)
    broken = plane(1, 2)
    broken[0, 0, 1, 1] = np.nan
    assert state.normalise(broken, 1.0) is state
    flat = np.full((1, 1, 3, 4), 7.0, np.float32)
    DepthRange().normalise(flat, 0.0)
    assert (flat == 0).all()
