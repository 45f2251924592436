"""A key frame with the pair that ends there: what files of a whole recording are made of."""

from __future__ import annotations

from dataclasses import dataclass

from ..observers import Spawned
from ..rasterizer import Float32


@dataclass(frozen=True)
class KeyFrame:
    """A key frame as the stages made it.

    Attributes:
        time: seconds.
        gaussians: float32 [G, 9] x, y, z, r, g, b, scale x, scale z, opacity.
        motion, fade: float32 [2, G, 3] and [2, G, 2] of the pair with the key frame before (index 0); None
            for the first key frame of a scene.
    """

    time: float
    gaussians: Float32
    motion: Float32 | None = None
    fade: Float32 | None = None

    @classmethod
    def of(cls, event: Spawned) -> KeyFrame:
        """The key frame of an event; its arrays belong to the stream, which overwrites them."""
        return cls(event.newest.time, event.newest.gaussians, event.motion, event.fade)
