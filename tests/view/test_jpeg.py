"""The pictures of the page: their shape."""

from __future__ import annotations

import io

import av
import numpy as np

from streamsplat_edge.runtime.view.jpeg import JpegEncoder


def test_pixels_of_the_page_are_square() -> None:
    def size(jpeg: bytes) -> tuple[int, int]:
        with av.open(io.BytesIO(jpeg)) as container:
            frame = next(container.decode(video=0))
            return frame.height, frame.width

    image = np.zeros((48, 64, 3), np.uint8)
    assert size(JpegEncoder()(image)) == (48, 64)
    assert size(JpegEncoder(pixel_aspect=2.0)(image)) == (48, 128)
    assert size(JpegEncoder(64, pixel_aspect=2.0)(image)) == (24, 64)
