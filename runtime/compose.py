"""What pictures for people have in common: their names and colours, scaling, labels. NumPy and swscale."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from .font import draw_text, text_size

Image = npt.NDArray[np.uint8]  # RGB [h, w, 3]
Colour = tuple[int, int, int]

PICTURES = ("input", "reconstruction", "depth", "novel")  # what can be shown of a frame
CAPTIONS = {"input": "INPUT", "reconstruction": "RECONSTRUCTION", "depth": "DEPTH", "novel": "NOVEL VIEW"}

INK: Colour = (232, 234, 237)
DIM: Colour = (150, 155, 163)
PAPER: Colour = (20, 21, 24)
AMBER: Colour = (255, 184, 56)
TEAL: Colour = (72, 190, 190)


class Scaler:
    """Scales uint8 RGB images with swscale, keeping its tables between images of one size."""

    def __init__(self, method: Interpolation = Interpolation.BICUBIC) -> None:
        self._method = method
        self._reformatter = VideoReformatter()

    def __call__(self, image: Image, width: int, height: int) -> Image:
        """The image [h, w, 3] as [height, width, 3]; the same array where the size is right already."""
        if image.shape[:2] == (height, width):
            return image
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), "rgb24")
        scaled = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=self._method)
        return np.asarray(scaled.to_ndarray(), np.uint8)


def resize(image: Image, width: int, height: int) -> Image:
    """Scales one uint8 RGB image [h, w, 3] (bicubic)."""
    return Scaler()(image, width, height)


def psnr(image: Image, truth: Image) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite when they are equal."""
    difference = image.astype(np.float32) - truth
    error = float(np.mean(np.square(difference), dtype=np.float64))
    return 10.0 * float(np.log10(255.0**2 / error)) if error > 0 else float("inf")


def fill(canvas: Image, x: int, y: int, width: int, height: int, colour: Colour) -> None:
    """Paints a rectangle; what lies outside is left out."""
    canvas[max(0, y) : y + height, max(0, x) : x + width] = colour


def chip(canvas: Image, right: int, y: int, text: str, colour: Colour, scale: int) -> None:
    """A label with coloured ground whose right edge is at `right`."""
    width, height = text_size(text, scale)
    fill(canvas, right - width - 4 * scale, y, width + 4 * scale, height + scale, colour)
    draw_text(canvas, right - width - 2 * scale, y + scale, text, PAPER, scale)


def panel_aspect(source_size: tuple[int, int], image_size: tuple[int, int]) -> Fraction | None:
    """Sample aspect ratio that gives an image of `image_size` (h, w) the source's shape; None when square."""
    ratio = Fraction(source_size[1] * image_size[0], source_size[0] * image_size[1]).limit_denominator(1000)
    return None if abs(ratio - 1) < Fraction(1, 200) else ratio
