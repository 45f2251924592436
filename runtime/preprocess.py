"""From an image of any size to the model's input: direct resize (aspect ignored), float32 in [0, 1], CHW.

The resize is swscale's, through PyAV (15 or later): area-averaging where neither side is enlarged, which is
within one grey level of the area interpolation used in training, bilinear otherwise. 1920x1080 to 256x144
takes 1.1 ms on the two loaded cores it was measured on, against 5.7 ms for OpenCV's area interpolation.
"""

from __future__ import annotations

import math
from typing import Any, cast

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from .errors import InputError

# Without this flag swscale halves the horizontal resolution of packed RGB before scaling, as if it were
# chroma (errors of 45 levels on noise, and three times the time). PyAV has a name for it from version 18
# on, but takes the number.
_FULL_CHR_H_INP = 0x4000
_AREA: Any = int(Interpolation.AREA) | _FULL_CHR_H_INP
_BILINEAR: Any = int(Interpolation.BILINEAR) | _FULL_CHR_H_INP


def check_image(image: object) -> np.ndarray:
    """The image as a C-contiguous uint8 RGB array [h, w, 3] (copied only if it was not contiguous).

    Raises:
        InputError: another type, shape or dtype.
    """
    hint = "Pass a uint8 RGB array of shape [height, width, 3]."
    if not isinstance(image, np.ndarray):
        raise InputError(f"An image must be a numpy array, not {type(image).__name__}.", hint)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"The image has shape {list(image.shape)}.", hint)
    if image.dtype != np.uint8:
        raise InputError(f"The image has dtype {image.dtype}.", hint)
    return np.ascontiguousarray(image)


class Resizer:
    """Resizes uint8 RGB images to one size. Keeps swscale's tables between frames of the same size."""

    def __init__(self, height: int, width: int) -> None:
        self.height = height
        self.width = width
        self._reformatter = VideoReformatter()

    def into(self, image: np.ndarray, out: np.ndarray) -> None:
        """Write the resized image as float32 planes in [0, 1].

        Args:
            image: uint8 RGB [h, w, 3], C-contiguous, any size.
            out: float32 [3, H, W], overwritten.

        Raises:
            InputError: a side is too long, or too many times as long as the model's.
        """
        height, width = image.shape[:2]
        shrinks = height >= self.height and width >= self.width
        try:
            frame = self._reformatter.reformat(
                av.VideoFrame.from_numpy_buffer(image, "rgb24"),
                self.width,
                self.height,
                "gbrp",
                interpolation=_AREA if shrinks else _BILINEAR,
            )
        except av.error.FFmpegError:
            raise InputError(
                f"An image of {width}x{height} pixels cannot be resized to {self.width}x{self.height}.",
                "Crop or resize it first.",
            ) from None
        for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):  # the planes are green, blue, red
            rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(self.height, plane.line_size)
            np.multiply(rows[:, : self.width], np.float32(1 / 255), out=out[channel])


def normalise_depth(depth: np.ndarray) -> None:
    """Scale inverse depth [.., H, W] to [0, 1] in place by its own minimum and maximum, as training does
    (REFERENCE.md section 1). A constant frame becomes zeros.
    """
    _scale(depth, float(depth.min()), float(depth.max()))


def _scale(depth: np.ndarray, low: float, high: float) -> None:
    depth -= np.float32(low)
    if high > low:
        depth /= np.float32(high - low)


class DepthRange:
    """Scales inverse depth to [0, 1] by a range that runs with the stream and never looks ahead.

    With each frame's own range (`normalise_depth`), a thing that enters the view would change the depth of
    all others at once. The published script takes one range over the whole video, which a stream does not
    have. So the range widens at once, as a frame needs it (nothing is ever cut off), and narrows with a time
    constant of `RELAX_SECONDS`. A new scene starts with its own frame's range, as in training.

    Attributes:
        limits: low and high in use, None before the first frame of a scene.
    """

    RELAX_SECONDS = 2.0

    def __init__(self) -> None:
        self.limits: tuple[float, float] | None = None
        self._time = 0.0

    def normalise(self, depth: np.ndarray, time: float) -> DepthRange:
        """Scale depth [.., H, W] in place, to zeros where it is constant.

        Args:
            time: seconds; later than that of the frame before.

        Returns:
            The range after this frame. This one stays as it is, for a push that fails afterwards.
        """
        low, high = float(depth.min()), float(depth.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # a bad frame; the next ones are none the worse
            return self
        after = DepthRange()
        after.limits, after._time = self._widened(low, high, time), time
        _scale(depth, *after.limits)
        return after

    def _widened(self, low: float, high: float, time: float) -> tuple[float, float]:
        if self.limits is None:
            return low, high
        keep = math.exp((self._time - time) / self.RELAX_SECONDS)
        return (
            min(low, low + keep * (self.limits[0] - low)),
            max(high, high + keep * (self.limits[1] - high)),
        )
