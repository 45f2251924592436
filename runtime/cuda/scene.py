"""A stream's Gaussians on a GPU: inputs through pinned memory, everything else there until the image is done.

Preparing the image (resize, swscale on the CPU) is the host's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle_schema import ModelConfig
from ..interval import IntervalEvaluator
from ..key_frame_ring import PAIRS, LifecycleStats
from ..lifecycle import KeyFrameSlot, PairBuffers
from ..rasterizer import Extent, Splats, View
from ..scene import Image, ModelInputs, Planes, Shape
from .depth import DeviceDepthRange
from .device import Device
from .lifecycle import DeviceLifecycle
from .push_graphs import PushGraphs
from .rasterizer import CudaRasterizer, Output
from .ring import Ring

_UPLOADS = 2  # frames whose inputs may be on their way
_PLANES: tuple[Output, ...] = ("depth", "expected_depth", "alpha")
_OUTPUTS: tuple[Output, ...] = ("bytes", *_PLANES)

BATCH = 8
"""Most images of one launch in a stream; about 10 MiB of device memory each at 512x288."""


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
        self._batch = min(BATCH, model.key_frame_gap + 1)  # the first interval of a scene has both its ends
        self.rasterizer = CudaRasterizer(
            device, model.height, model.width, 2 * model.gaussians, times=self._batch, outputs=_OUTPUTS
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
        self._range = DeviceDepthRange(device, self.depth) if "depth" in stage_shapes else None
        self.graphs = PushGraphs(device, self.life)
        # Two sets: `render` gives other views while the images of a batch are being taken.
        self._single, self._several = self._host_images(1), self._host_images(self._batch)
        self._slots = [KeyFrameSlot(model, None) for _ in range(2)]
        self._pair = PairBuffers(model)
        self._interval = IntervalEvaluator(model.gaussians, model.depth_mapping)

    @property
    def description(self) -> str:
        return f"CUDA rasterizer, {self.device.description}"

    def fork(self) -> CudaScene:
        return CudaScene(*self._made_of)

    def load(self, image: np.ndarray, time: float, *, fresh: bool) -> None:
        slot = self._uploads.acquire()
        slot.buffers.load(image)
        self.device.copy(self._rgb, slot.buffers.rgb)
        for stage, planes in slot.buffers.own.items():
            self.device.copy(self._own[stage], planes)
        self._uploads.release(slot)
        if self._range is not None:
            self._range.begin(time, fresh=fresh)

    def normalise_depth(self) -> None:
        assert self._range is not None, "the bundle has a depth stage"
        self._range.enqueue(self.life.phase % PAIRS)

    def spawn(self, time: float, *, cut: bool) -> LifecycleStats:
        return self.life.spawn(time, cut=cut)

    def settle(self) -> None:
        self.device.synchronize()

    def _host_images(self, count: int) -> dict[Output, np.ndarray]:
        plane = count, self.model.height, self.model.width
        images: dict[Output, np.ndarray] = {"bytes": self.device.pinned((*plane, 3), np.uint8)}
        return images | {name: self.device.pinned(plane, np.float32) for name in _PLANES}

    def render(
        self, time: float, view: View | None, background: Sequence[float], extent: Extent, *, depth: bool
    ) -> Image:
        views = None if view is None else [view]
        return self._render([time], views, background, extent, depth, self._single)[0]

    def render_many(
        self, times: Sequence[float], background: Sequence[float], extent: Extent, *, depth: bool
    ) -> Iterator[list[Image]]:
        """As many as fit (`BATCH`) in one launch, and one wait for all of them."""
        for first in range(0, len(times), self._batch):
            some = times[first : first + self._batch]
            yield self._render(some, None, background, extent, depth, self._several)

    def _render(
        self,
        times: Sequence[float],
        views: Sequence[View] | None,
        background: Sequence[float],
        extent: Extent,
        depth: bool,
        host: Mapping[Output, np.ndarray],
    ) -> list[Image]:
        """One launch, downloads of what is wanted, and one wait."""
        wanted = _OUTPUTS if depth else ("bytes",)
        images = self.life.render(
            self.rasterizer, times, views=views, background=background, extent=extent, outputs=wanted
        )
        for name in wanted:
            self.device.copy(host[name][: len(times)], getattr(images, name))
        self.settle()
        planes = [Planes(*(host[name][i] for name in _PLANES)) if depth else None for i in range(len(times))]
        return [Image(host["bytes"][i], planes[i], stats) for i, stats in enumerate(images.stats)]

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
