"""The pixels of the runtime itself, from the buffer, at any of its times and from any side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..bundle_schema import ModelConfig
from ..interval import IntervalEvaluator
from ..rasterizer import Rasterizer, RenderBuffers, View
from ..scene import to_bytes
from .scenes import KeyFrame, Pair


class ExactRenderer:
    """Evaluates and rasterizes as `Stream.render` does, bit by bit. Not thread-safe.

    Args:
        model: of the bundle. threads: few, because the stream needs the others.
    """

    def __init__(self, model: ModelConfig, threads: int = 1) -> None:
        self._model = model
        self._rasterizer = Rasterizer(model.height, model.width, threads=threads)
        self._interval = IntervalEvaluator(model.gaussians, model.depth_mapping, threads)
        self._buffers = RenderBuffers.allocate(model.height, model.width)
        self._scratch = np.zeros((model.height, model.width, 3), np.float32)

    def render(self, scene: Pair | KeyFrame, time: float, view: View | None) -> npt.NDArray[np.uint8]:
        """RGB [H, W, 3] at a time in seconds, held within the scene's."""
        if isinstance(scene, KeyFrame):
            splats = self._interval.lone(scene.gaussians)
        else:
            first, last = scene.earlier.time, scene.later.time
            t = (min(max(time, first), last) - first) / (last - first)
            splats = self._interval.between(
                scene.earlier.gaussians, scene.later.gaussians, scene.motion, scene.fade, t
            )
        buffers = self._rasterizer.render(
            splats, background=self._model.background, view=view, out=self._buffers
        )
        image = np.empty(buffers.rgb.shape, np.uint8)
        to_bytes(buffers.rgb, self._scratch, image)
        return image
