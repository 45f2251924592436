"""The pixels of the runtime itself, from the buffer, at any of its times and from any side."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from ..bundle_schema import ModelConfig
from ..rasterizer import DepthMapping, Rasterizer, RenderBuffers, Splats, View, evaluate_at
from ..stream import to_bytes
from .scenes import KeyFrame, Pair


class ExactRenderer:
    """Evaluates and rasterizes as `Stream.render` does, bit by bit. Not thread-safe.

    Args:
        model: of the bundle. threads: few, because the stream needs the others.
    """

    def __init__(self, model: ModelConfig, threads: int = 1) -> None:
        self._model = model
        self._threads = threads
        self._rasterizer = Rasterizer(model.height, model.width, threads=threads)
        self._splats = Splats.allocate(2 * model.gaussians)
        self._buffers = RenderBuffers.allocate(model.height, model.width)
        self._scratch = np.zeros((model.height, model.width, 3), np.float32)
        self._still = np.zeros((model.gaussians, 3), np.float32), np.zeros((model.gaussians, 2), np.float32)

    def render(self, scene: Pair | KeyFrame, time: float, view: View | None) -> npt.NDArray[np.uint8]:
        """RGB [H, W, 3] at a time in seconds, held within the scene's."""
        splats, count = self._splats, self._model.gaussians
        mapping = cast(DepthMapping, self._model.depth_mapping)
        if isinstance(scene, KeyFrame):
            evaluate_at(scene.gaussians, *self._still, 0.0, mapping, splats, threads=self._threads)
            splats.count = count
        else:
            first, last = scene.earlier.time, scene.later.time
            t = (min(max(time, first), last) - first) / (last - first)
            for i, (key_frame, dt) in enumerate(((scene.earlier, t), (scene.later, t - 1.0))):
                arrays = key_frame.gaussians, scene.motion[i], scene.fade[i]
                evaluate_at(*arrays, dt, mapping, splats, i * count, threads=self._threads)
            splats.count = 2 * count
        buffers = self._rasterizer.render(
            splats, background=self._model.background, view=view, out=self._buffers
        )
        image = np.empty(buffers.rgb.shape, np.uint8)
        to_bytes(buffers.rgb, self._scratch, image)
        return image
