"""What is drawn, pixel by pixel, with Mesa's software OpenGL and no screen."""

from __future__ import annotations

import numpy as np
import pytest
from gl_surface import EglSurface

from streamsplat_edge.runtime.display.picture import Picture, letterbox


def image_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (7, 5), (1, 1), (33, 1)])
def test_an_image_of_the_window_s_size_is_shown_as_it_is(height: int, width: int) -> None:
    """Also where rows are no multiple of four bytes."""
    surface = EglSurface(width, height)
    picture = Picture(surface.context, height, width, width / height)
    for image in (image_of(height, width), 255 - image_of(height, width)):
        picture.buffer.write(image)
        picture.draw(surface.target, surface.size)
        np.testing.assert_array_equal(surface.read(), image)
    picture.close()


@pytest.mark.parametrize(
    ("window", "aspect", "wanted"),
    [
        ((200, 100), 1.0, (50, 0, 100, 100)),
        ((100, 200), 1.0, (0, 50, 100, 100)),
        ((1920, 1080), 16 / 9, (0, 0, 1920, 1080)),
        ((1000, 1000), 16 / 9, (0, 219, 1000, 562)),
        ((1, 500), 4.0, (0, 249, 1, 1)),
        ((500, 1), 0.001, (249, 0, 1, 1)),
    ],
)
def test_letterbox(window: tuple[int, int], aspect: float, wanted: tuple[int, ...]) -> None:
    x, y, width, height = letterbox(*window, aspect)
    assert (x, y, width, height) == wanted
    assert x >= 0 and y >= 0 and x + width <= window[0] and y + height <= window[1]


@pytest.mark.parametrize(("window", "aspect"), [((40, 20), 1.0), ((20, 40), 2.0), ((30, 30), 0.5)])
def test_bars_are_black_and_the_image_fills_the_rest(window: tuple[int, int], aspect: float) -> None:
    surface = EglSurface(*window)
    picture = Picture(surface.context, 3, 4, aspect)  # the image's own numbers do not matter
    picture.buffer.write(np.full((3, 4, 3), (10, 200, 30), np.uint8))
    picture.draw(surface.target, surface.size)
    x, y, width, height = letterbox(*window, aspect)
    shown, wanted = surface.read(), np.zeros((window[1], window[0], 3), np.uint8)
    wanted[y : y + height, x : x + width] = 10, 200, 30
    np.testing.assert_array_equal(shown, wanted)


def test_twice_the_size_keeps_corners_where_they_are() -> None:
    surface = EglSurface(8, 4)
    picture = Picture(surface.context, 2, 4, 2.0)
    image = image_of(2, 4)
    picture.buffer.write(image)
    picture.draw(surface.target, surface.size)
    shown = surface.read()
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # interpolated nowhere else than inside
        np.testing.assert_array_equal(shown[row, column], image[row, column])


def test_another_size_shows_the_same_image_again() -> None:
    surface = EglSurface(6, 6)
    picture = Picture(surface.context, 6, 6, 1.0)
    first, second = image_of(6, 6), 255 - image_of(6, 6)
    picture.buffer.write(first)
    picture.draw(surface.target, surface.size)
    surface.resize(12, 6)
    picture.buffer.write(second)
    picture.draw(surface.target, surface.size, changed=False)
    np.testing.assert_array_equal(surface.read()[:, 3:9], first)
    assert not surface.read()[:, :3].any() and not surface.read()[:, 9:].any()
    picture.draw(surface.target, surface.size)
    np.testing.assert_array_equal(surface.read()[:, 3:9], second)
    surface.resize(0, 0)
    picture.draw(None, surface.size)  # a window put away has no target to draw on
