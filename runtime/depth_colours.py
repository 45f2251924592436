"""Depth as a picture: near is bright, and the range follows the scene."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .compose import PAPER, Colour, Image

# Depth colours from far (dark) to near (bright): monotonic in lightness, so they read in grey as well.
_DEPTH_STOPS: tuple[Colour, ...] = (
    (10, 8, 38),
    (42, 18, 98),
    (98, 26, 124),
    (158, 44, 112),
    (212, 76, 80),
    (244, 132, 52),
    (253, 196, 84),
    (252, 246, 192),
)


def _colour_table() -> Image:
    stops = np.array(_DEPTH_STOPS, np.float64)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(np.linspace(0, 1, 256), at, stops[:, c]) for c in range(3)], 1).astype(
        np.uint8
    )


DEPTH_COLOURS = _colour_table()


@dataclass
class DepthColours:
    """Turns expected depth into colours, nearer = brighter; the range follows the scene slowly (no flicker).

    Inverse depth is shown: it is what the model predicts, and it separates near things from each other.

    Attributes:
        inertia: share of the old range kept per frame, 0 = every frame for itself.
    """

    inertia: float = 0.95
    _range: tuple[float, float] | None = field(default=None, repr=False)

    def reset(self) -> None:
        """Forgets the range (after a scene cut)."""
        self._range = None

    def __call__(self, expected_depth: npt.NDArray[np.float32], alpha: npt.NDArray[np.float32]) -> Image:
        """Colours [H, W, 3] for depth [H, W] (scene units); pixels that nothing covers stay dark."""
        covered = (alpha > 0.05) & (expected_depth > 1e-6)
        nearness = np.divide(1.0, expected_depth, out=np.zeros_like(expected_depth), where=covered)
        sample = nearness[::2, ::2][covered[::2, ::2]]
        if sample.size:
            low, high = (float(v) for v in np.percentile(sample, (2, 98)))
            if self._range is not None:
                keep = self.inertia
                low = keep * self._range[0] + (1 - keep) * low
                high = keep * self._range[1] + (1 - keep) * high
            self._range = (low, high)
        if self._range is None:
            return np.full((*expected_depth.shape, 3), PAPER, np.uint8)
        low, high = self._range
        # A floor for the width of the range keeps a flat wall from being shown as noise.
        level = (nearness - low) * (255.0 / max(high - low, 0.02 * max(high, 1e-6)))
        colours = DEPTH_COLOURS[np.clip(level, 0, 255).astype(np.uint8)]
        colours[~covered] = PAPER
        return colours
