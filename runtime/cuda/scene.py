"""A stream's Gaussians on a GPU: inputs through pinned memory, everything else there until the image is done.

Preparing the image (resize, swscale on the CPU) is the host's; so is the range of depth where a bundle has a
`depth` stage, whose one plane goes to the host and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle_schema import ModelConfig
from ..interval import IntervalEvaluator
from ..lifecycle import KeyFrameSlot, PairBuffers
from ..preprocess import DepthRange
from ..rasterizer import Extent, Splats, View
from ..scene import Image, ModelInputs, Shape
from .device import Device
from .lifecycle import DeviceLifecycle
from .rasterizer import CudaRasterizer, Output
from .ring import Ring

_UPLOADS = 2  # frames whose inputs may be on their way
_OUTPUTS: tuple[Output, ...] = ("bytes", "depth", "expected_depth", "alpha")


@dataclass
class HostCopy:
    """What observers see of an interval: copies on the host, overwritten by the next key frame's."""

    newest: KeyFrameSlot
    previous: KeyFrameSlot | None
    pair: PairBuffers | None


class CudaScene:
    """See `scene.Scene`.

    Raises:
        EngineError: the device has not enough memory.
    """

    def __init__(
        self,
        device: Device,
        model: ModelConfig,
        stage_shapes: Mapping[str, Shape],
        condition_shape: Shape | None,
    ) -> None:
        self._made_of = device, model, stage_shapes, condition_shape
        self.device, self.model = device, model
        self.life = DeviceLifecycle(device, model, condition_shape=condition_shape)
        self.rasterizer = CudaRasterizer(
            device, model.height, model.width, 2 * model.gaussians, outputs=_OUTPUTS
        )
        self._uploads: Ring[ModelInputs] = Ring(
            _UPLOADS, lambda: ModelInputs(model, stage_shapes, device.pinned), device.record
        )
        self.rgbd = device.zeros((1, 4, model.height, model.width), np.float32)
        self._rgb, self.depth = self.rgbd[:, :3], self.rgbd[:, 3:]
        self._own = {
            stage: device.zeros(shape, np.float32)
            for stage, shape in stage_shapes.items()
            if shape != (1, 3, model.height, model.width)
        }
        self.stage_rgb: Mapping[str, Any] = {stage: self._own.get(stage, self._rgb) for stage in stage_shapes}
        plane = model.height, model.width
        self._depth_on_host = device.pinned((1, 1, *plane), np.float32)
        self._images = {
            name: device.pinned(
                (1, *plane, 3) if name == "bytes" else (1, *plane),
                np.uint8 if name == "bytes" else np.float32,
            )
            for name in _OUTPUTS
        }
        self._slots = [KeyFrameSlot(model, None) for _ in range(2)]
        self._pair = PairBuffers(model)
        self._interval = IntervalEvaluator(model.gaussians, model.depth_mapping)

    @property
    def description(self) -> str:
        return f"CUDA rasterizer, {self.device.description}"

    def fork(self) -> CudaScene:
        return CudaScene(*self._made_of)

    def load(self, image: np.ndarray) -> None:
        slot = self._uploads.acquire()
        slot.buffers.load(image)
        self.device.copy(self._rgb, slot.buffers.rgb)
        for stage, planes in slot.buffers.own.items():
            self.device.copy(self._own[stage], planes)
        self._uploads.release(slot)

    def normalise_depth(self, depth_range: DepthRange, time: float) -> DepthRange:
        self._fetch(self._depth_on_host, self.depth)
        after = depth_range.normalise(self._depth_on_host, time)
        self.device.copy(self.depth, self._depth_on_host)
        return after

    def settle(self) -> None:
        self.device.synchronize()

    def render(self, time: float, view: View | None, background: Sequence[float], extent: Extent) -> Image:
        views = None if view is None else [view]
        images = self.life.render(self.rasterizer, [time], views=views, background=background, extent=extent)
        for name, target in self._images.items():
            self.device.copy(target, getattr(images, name))
        self.settle()
        host = self._images
        return Image(
            host["bytes"][0],
            host["depth"][0],
            host["expected_depth"][0],
            host["alpha"][0],
            images.stats[0],
            images.bytes[0],
        )

    def splats(self, time: float) -> Splats:
        """Evaluated by the host from copies: what wants them on the host is about to write them to a file."""
        t = self.life.normalised(time)
        held = self.on_host()
        if held.previous is None or held.pair is None:
            return self._interval.lone(held.newest.gaussians[0])
        earlier, later = held.previous.gaussians[0], held.newest.gaussians[0]
        return self._interval.between(earlier, later, held.pair.motion, held.pair.fade, t)

    def on_host(self) -> HostCopy:
        """Copies of the current interval. Waits for the device."""
        newest, previous = self.life.key_frames
        for ours, theirs in ((self._slots[0], newest), (self._slots[1], previous)):
            if theirs is not None:
                self._fetch(ours.gaussians, theirs.arrays.gaussians)
                ours.index, ours.time = theirs.index, theirs.time
        if previous is None:
            return HostCopy(self._slots[0], None, None)
        pair = self.life.pair
        self._fetch(self._pair.motion, pair.motion)
        self._fetch(self._pair.fade, pair.fade)
        return HostCopy(self._slots[0], self._slots[1], self._pair)

    def _fetch(self, target: np.ndarray, source: Any) -> None:
        self.device.copy(target, source)
        self.settle()
