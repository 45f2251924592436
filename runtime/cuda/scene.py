"""A stream's Gaussians on a GPU: inputs through pinned memory, everything else there until the image is done.

A picture larger than the model is uploaded as it is and resized there (`prepare`); one that a decoder left on
the GPU is read where it lies. A smaller one is resized by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..array import Array, Shape
from ..bundle_schema import ModelConfig
from ..interval import IntervalEvaluator
from ..key_frame_ring import PAIRS, LifecycleStats
from ..lifecycle import KeyFrameSlot, PairBuffers
from ..rasterizer import Extent, Splats, View
from ..scene import Image, ModelInputs, Planes
from ..scene_cut import COLS, ROWS
from ..stage_chain import StageChain, no_lap
from ..timing import Laps
from ..video.surface import Surface
from .depth import DeviceDepthRange
from .device import Device
from .graphs import RenderGraphs
from .lifecycle import DeviceLifecycle
from .prepare import DevicePicture, Fetcher, Preparer, rgb_picture, surface_picture
from .push_graphs import PushGraphs
from .rasterizer import CudaRasterizer, Output

_PLANES: tuple[Output, ...] = ("depth", "expected_depth", "alpha")
_OUTPUTS: tuple[Output, ...] = ("bytes", *_PLANES)

BATCH = 8
"""Most images of one launch in a stream; about 10 MiB of device memory each at 512x288."""


Preparers = dict[tuple[int, int], Preparer]
"""By height and width of what they write."""


class _Inputs:
    """Inputs of the stages for one key frame: on the device, and on the host where it prepares them.

    Args:
        preparers: shared by all inputs, filled here.
    """

    def __init__(
        self,
        device: Device,
        model: ModelConfig,
        stage_shapes: Mapping[str, Shape],
        preparers: Preparers,
    ) -> None:
        on_device: list[Array] = []

        def make(shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
            array, host = device.shared(shape, dtype)
            on_device.append(array)
            return host

        self.device, self.host = device, ModelInputs(model, stage_shapes, make)
        self.rgbd, *own = on_device
        # Views made once: an engine binds arrays by identity.
        self.rgb, self.depth = self.rgbd[:, :3], self.rgbd[:, 3:]
        self._own = dict(zip(self.host.own, own, strict=True))
        self.stage_rgb = {stage: self._own.get(stage, self.rgb) for stage in stage_shapes}
        self._targets: list[tuple[Preparer, Array]] = []
        for planes in (self.rgb, *own):
            size = int(planes.shape[2]), int(planes.shape[3])
            self._targets.append((preparers.setdefault(size, Preparer(device, size)), planes))
        self._pixels = model.height * model.width
        self._staging: tuple[Array, np.ndarray] | None = None
        self._held: DevicePicture | None = None  # from being freed while the device reads it

    def load(self, image: np.ndarray | Surface) -> None:
        """The device has done with what was loaded here before."""
        self._held = None
        if isinstance(image, Surface):
            self._prepare(surface_picture(self.device, image))
        elif image.shape[0] * image.shape[1] > self._pixels:
            self._prepare(self._upload(image))
        else:
            self._resize(image)

    def _prepare(self, picture: DevicePicture) -> None:
        self._held = picture
        for preparer, planes in self._targets:
            preparer.enqueue(picture, planes)

    def _upload(self, image: np.ndarray) -> DevicePicture:
        if self._staging is None or self._staging[1].nbytes < image.nbytes:
            self._staging = None  # before there is another one
            self._staging = self.device.shared((image.nbytes,), np.uint8)
        array, host = (part[: image.nbytes] for part in self._staging)
        np.copyto(host, image.reshape(-1))
        self.device.copy(array, host)
        return rgb_picture(self.device, array, (image.shape[0], image.shape[1]))

    def _resize(self, image: np.ndarray) -> None:
        self.host.load(image)
        self.device.copy(self.rgb, self.host.rgb)
        for stage, planes in self.host.own.items():
            self.device.copy(self._own[stage], planes)


@dataclass(frozen=True)
class _Images:
    """Buffers of rendered images: device arrays that are rendered into, and the host's."""

    device: dict[Output, Array]
    host: dict[Output, np.ndarray]


@dataclass
class HostCopy:
    """What observers see of an interval: copies on the host, overwritten by the next key frame's."""

    newest: KeyFrameSlot
    previous: KeyFrameSlot | None
    pair: PairBuffers | None


class CudaScene:
    """See `scene.Scene`.

    Args:
        device: of all arrays. model, stage_shapes, condition_shape: as of `HostScene`.
        graphs: make key frames and render by CUDA graphs where that can be; see `open_stream`.

    Raises:
        EngineError: the device has not enough memory.
    """

    def __init__(
        self,
        device: Device,
        model: ModelConfig,
        stage_shapes: Mapping[str, Shape],
        condition_shape: Shape | None,
        *,
        graphs: bool = True,
    ) -> None:
        self._made_of, self._graphs = (device, model, stage_shapes, condition_shape), graphs
        self.device, self.model = device, model
        self.life = DeviceLifecycle(device, model, condition_shape=condition_shape)
        self._batch = min(BATCH, model.key_frame_gap + 1)  # the first interval of a scene has both its ends
        self.rasterizer = CudaRasterizer(
            device, model.height, model.width, 2 * model.gaussians, times=self._batch, outputs=()
        )
        # Used in turn by key frames, like the pairs of the lifecycle: a graph has its addresses in it.
        preparers: Preparers = {}
        self._inputs = [_Inputs(device, model, stage_shapes, preparers) for _ in range(PAIRS)]
        self._fetchers: dict[bool, Fetcher] = {}  # made when the first picture of a decoder comes
        self._loaded = -1  # number of the key frame whose image was loaded last
        planes = [inputs.depth for inputs in self._inputs]
        self._range = DeviceDepthRange(device, planes) if "depth" in stage_shapes else None
        self.push_graphs = PushGraphs(device, self.life, wanted=graphs)
        self.render_graphs = RenderGraphs(device, wanted=graphs)
        # Two sets: `render` gives other views while the images of a batch are being taken.
        self._single, self._several = self._images(1), self._images(self._batch)
        self._slots = [KeyFrameSlot(model, None) for _ in range(2)]
        self._pair = PairBuffers(model)
        self._interval = IntervalEvaluator(model.gaussians, model.depth_mapping)

    def describe(self, stages: StageChain) -> dict[str, str]:
        return {
            "render": f"CUDA rasterizer, {self.device.description}",
            "graph": self.push_graphs.describe(stages.graph_refusal),
            "render_graph": self.render_graphs.describe(),
        }

    def fork(self) -> CudaScene:
        return CudaScene(*self._made_of, graphs=self._graphs)

    @property
    def _next(self) -> _Inputs:
        return self._inputs[self.life.phase % PAIRS]

    @property
    def rgbd(self) -> Array:
        return self._next.rgbd

    @property
    def depth(self) -> Array:
        return self._next.depth

    @property
    def stage_rgb(self) -> Mapping[str, Array]:
        return self._next.stage_rgb

    def push(
        self, image: np.ndarray | Surface, time: float, stages: StageChain, laps: Laps, *, cut: bool
    ) -> LifecycleStats:
        """A pair by a graph where one can hold all stages, else stage by stage."""
        life = self.life
        earlier, later = None if cut else life.newest, life.spare
        self._load(image, time, fresh=earlier is None)
        if earlier is None or self.push_graphs.unused_because(stages.graph_refusal) is not None:
            return stages.make(self, earlier, time, laps, cut=cut)
        laps.note("preprocess")
        uses = *stages.engines.values(), self.rgbd, earlier, later, life.spare_pair
        name, stats = self.push_graphs.push(time, uses, lambda: stages.run(self, earlier, later, no_lap))
        laps.note(name)
        return stats

    def _load(self, image: np.ndarray | Surface, time: float, *, fresh: bool) -> None:
        """Resize an image into the inputs of the stages. `fresh`: the range of depth begins anew."""
        number = self.life.stats.key_frame + 1
        if number == self._loaded:  # that one failed, and the device may be reading its image still
            self.settle()
        self._loaded = number
        # The key frame before the last used these buffers, and was waited for.
        self._next.load(image)
        if self._range is not None:
            self._range.begin(time, fresh=fresh)

    def sample(self, picture: Surface) -> np.ndarray:
        return self._fetched(picture, (ROWS, COLS), samples=True)

    def resized(self, picture: Surface) -> np.ndarray:
        return self._fetched(picture, (self.model.height, self.model.width), samples=False)

    def _fetched(self, picture: Surface, size: tuple[int, int], *, samples: bool) -> np.ndarray:
        fetcher = self._fetchers.get(samples)
        if fetcher is None:
            fetcher = self._fetchers[samples] = Fetcher(self.device, size, samples=samples)
        return fetcher(surface_picture(self.device, picture))

    def normalise_depth(self) -> None:
        assert self._range is not None, "the bundle has a depth stage"
        self._range.enqueue(self.life.phase % PAIRS)

    def spawn(self, time: float, *, cut: bool) -> LifecycleStats:
        return self.life.spawn(time, cut=cut)

    def settle(self) -> None:
        self.device.synchronize()

    def _images(self, count: int) -> _Images:
        images, plane = _Images({}, {}), (count, self.model.height, self.model.width)
        for name in _OUTPUTS:
            shape, dtype = ((*plane, 3), np.uint8) if name == "bytes" else (plane, np.float32)
            images.device[name], images.host[name] = self.device.shared(shape, dtype)
        return images

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
        buffers: _Images,
    ) -> list[Image]:
        """One launch, downloads of what is wanted, and one wait; all but the wait as a graph."""
        wanted: tuple[Output, ...] = _OUTPUTS if depth else ("bytes",)
        host, count = buffers.host, len(times)

        def start(baked: tuple[Hashable, ...], kernels: Callable[[], None]) -> None:
            def enqueue() -> None:
                kernels()
                for name in wanted:
                    self.device.copy(host[name][:count], buffers.device[name][:count])

            # Where images are rendered to says which of the host's buffers they are copied to.
            self.render_graphs.start(baked, enqueue)

        images = self.life.render(
            self.rasterizer,
            times,
            views=views,
            background=background,
            extent=extent,
            outputs=wanted,
            into=buffers.device,
            start=start,
        )
        self.settle()
        planes = [Planes(*(host[name][i] for name in _PLANES)) if depth else None for i in range(count)]
        return [
            Image(host["bytes"][i], planes[i], stats, images.bytes[i]) for i, stats in enumerate(images.stats)
        ]

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
        pair = self.life.pair
        if pair is None:
            return HostCopy(self._slots[0], None, None)
        self._fetch(self._pair.motion, pair.motion)
        self._fetch(self._pair.fade, pair.fade)
        return HostCopy(self._slots[0], self._slots[1], self._pair)

    def _fetch(self, target: np.ndarray, source: Array) -> None:
        self.device.copy(target, source)
        self.settle()
