"""Scene cuts, detected on every decoded frame at a cost that does not depend on the frame's size.

A frame is compared with the one before it on a grid of 64 x 36 sampled pixels. A cut changes the picture
everywhere (mean difference of pixels), changes its colours (histogram distance) and stands out from the
motion before it. Motion fails the second test, a slow fade the third.
"""

from __future__ import annotations

import numpy as np

ROWS, COLS = 36, 64
PIXEL_DIFFERENCE = 0.09  # mean absolute difference over pixels and channels, colours in [0, 1]
COLOUR_DISTANCE = 0.25  # half the L1 distance of 8x8x8 colour histograms, in [0, 1]
STANDS_OUT = 2.5  # times the recent pixel difference
MEMORY = 0.8  # weight of the past in that mean, per frame


def sampled(length: int, count: int) -> np.ndarray:
    """Which of `length` pixels of a row or column are looked at, in order."""
    return (np.arange(count) * length + length // 2) // count


class SceneCutDetector:
    """Feed frames in order; `is_cut` says whether a frame begins a new scene."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._index: tuple[np.ndarray, np.ndarray] = (np.zeros(0, np.intp), np.zeros(0, np.intp))
        self._previous: np.ndarray | None = None
        self._histogram = np.zeros(512, np.intp)
        self._recent = 0.0

    def is_cut(self, image: np.ndarray) -> bool:
        """Compare a uint8 RGB image [h, w, 3] with the previous one. The first frame is no cut.

        A changed frame size alone is no cut: the sampling grid is relative.
        """
        return self.is_cut_of(self._sample(image))

    def is_cut_of(self, pixels: np.ndarray) -> bool:
        """As `is_cut`, of the pixels alone that it looks at: uint8 [ROWS, COLS, 3], at `sampled` places."""
        pixels = pixels.astype(np.int32)
        bins = pixels >> 5
        codes = (bins[..., 0] << 6) | (bins[..., 1] << 3) | bins[..., 2]
        histogram = np.bincount(codes.ravel(), minlength=512)
        before, histogram_before = self._previous, self._histogram
        self._previous, self._histogram = pixels, histogram
        if before is None:
            return False
        difference = float(np.abs(pixels - before).mean()) / 255
        distance = float(np.abs(histogram - histogram_before).sum()) / (2 * ROWS * COLS)
        cut = (
            difference > PIXEL_DIFFERENCE
            and distance > COLOUR_DISTANCE
            and difference > STANDS_OUT * self._recent
        )
        # The jump at a cut says nothing about the motion of the new scene.
        self._recent = 0.0 if cut else MEMORY * self._recent + (1 - MEMORY) * difference
        return cut

    def reset(self) -> None:
        """Forget the previous frame."""
        self._previous = None
        self._recent = 0.0

    def _sample(self, image: np.ndarray) -> np.ndarray:
        if image.shape != self._shape:
            height, width = image.shape[:2]
            self._index = (sampled(height, ROWS)[:, None], sampled(width, COLS)[None, :])
            self._shape = image.shape
        return np.asarray(image[self._index])
