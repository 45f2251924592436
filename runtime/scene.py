"""Where a stream's Gaussians live and are rendered: on the host (`HostScene`), or on a GPU (`cuda.scene`).

A scene owns the arrays that the engines read and write, the lifecycle and the rasterizer, and knows how work
is started on its device; the stream says what is done when. Arrays of a scene on a GPU are the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .array import Array, Shape
from .bundle_schema import ModelConfig
from .errors import InputError
from .key_frame_ring import LifecycleStats
from .lifecycle import KeyFrameSlot, Lifecycle, PairBuffers
from .preprocess import DepthRange, Resizer
from .rasterizer import Extent, Rasterizer, RenderBuffers, RenderStats, Splats, View

if TYPE_CHECKING:
    from .stage_chain import StageChain
    from .timing import Laps
    from .video.surface import Surface


class KeyFrameArrays(Protocol):
    """What the stages compute once per key frame; see `KeyFrameSlot`."""

    @property
    def gaussians(self) -> Array: ...
    @property
    def tokens(self) -> Array: ...
    @property
    def features(self) -> Array: ...
    @property
    def condition(self) -> Array | None: ...


class PairArrays(Protocol):
    """What `deform` computes; see `PairBuffers`."""

    @property
    def motion(self) -> Array: ...
    @property
    def fade(self) -> Array: ...


class HostInterval(Protocol):
    """The key frames alive and their pair, in arrays of the host that the next push may overwrite.

    Attributes:
        newest: the latest key frame, None before the first. previous: the one before it, while it lives.
        pair: motion and fade from `previous` to `newest`, where both live.
    """

    @property
    def newest(self) -> KeyFrameSlot | None: ...
    @property
    def previous(self) -> KeyFrameSlot | None: ...
    @property
    def pair(self) -> PairBuffers | None: ...


class Life(Protocol):
    """What a stream needs of a lifecycle; see `Lifecycle`."""

    @property
    def spare(self) -> KeyFrameArrays: ...
    @property
    def spare_pair(self) -> PairArrays: ...
    @property
    def newest(self) -> KeyFrameArrays | None: ...
    @property
    def interval(self) -> tuple[float, float] | None: ...
    @property
    def ids(self) -> Any: ...
    @property
    def stats(self) -> LifecycleStats: ...
    def spawn(self, time: float, *, cut: bool = False) -> LifecycleStats: ...
    def check_time(self, time: float) -> None: ...
    def normalised(self, time: float) -> float: ...
    def reset(self) -> None: ...


@dataclass(frozen=True)
class Planes:
    """float32 [H, W]: accumulated depth, depth / alpha (0 where alpha is 0), and alpha."""

    depth: np.ndarray
    expected_depth: np.ndarray
    alpha: np.ndarray

    def copy(self) -> Planes:
        """The same in arrays of their own."""
        return Planes(self.depth.copy(), self.expected_depth.copy(), self.alpha.copy())


@dataclass(frozen=True)
class Image:
    """Host arrays of one render, which the next overwrites: rgb uint8 [H,W,3], planes where wanted.

    on_device: rgb as the GPU has it, where one rendered it; likewise overwritten.
    """

    rgb: np.ndarray
    planes: Planes | None
    stats: RenderStats
    on_device: Array | None = None

    def copy(self) -> Image:
        """With host arrays of its own; `on_device` is overwritten all the same."""
        planes = None if self.planes is None else self.planes.copy()
        return Image(self.rgb.copy(), planes, self.stats, self.on_device)


class Scene(Protocol):
    """Inputs of the stages, lifecycle and rasterizer of one stream, on one device. Not thread-safe.

    Attributes:
        life: the lifecycle. rgbd: [1,4,H,W], the input of `encode`. depth: its fourth channel [1,1,H,W].
        stage_rgb: inputs of `depth` and `condition`, which may have sizes of their own.
    """

    @property
    def life(self) -> Life: ...
    @property
    def rgbd(self) -> Array: ...
    @property
    def depth(self) -> Array: ...
    @property
    def stage_rgb(self) -> Mapping[str, Array]: ...
    def describe(self, stages: StageChain) -> dict[str, str]:
        """What renders (`render`), and how key frames and images are started where there is a choice."""
        ...

    def fork(self) -> Scene:
        """Another scene of the same kind, sizes and settings."""
        ...

    def push(
        self, image: np.ndarray | Surface, time: float, stages: StageChain, laps: Laps, *, cut: bool
    ) -> LifecycleStats:
        """Make the newest key frame of an image (uint8 RGB, checked; or one on the scene's GPU).

        Args:
            time: of the key frame, in seconds, checked. stages: of the shapes of this scene.
            laps: over the push, with the scene's `settle`; gets its parts, see `PushStats.latencies`.
            cut: as of `Lifecycle.spawn`; the range of depth begins anew too.

        Raises:
            InputError: the image is on a GPU, and the scene is not.
            EngineError: a stage failed. In either case the interval is as it was before the call.
        """
        ...

    def sample(self, picture: Surface) -> np.ndarray:
        """The pixels of a picture on the scene's GPU that `SceneCutDetector` looks at: uint8 [ROWS, COLS, 3].

        Raises:
            InputError: as `push`.
        """
        ...

    def resized(self, picture: Surface) -> np.ndarray:
        """A picture on the scene's GPU at the model's size on the host: uint8 RGB [H, W, 3].

        Raises:
            InputError: as `push`.
        """
        ...

    def normalise_depth(self) -> None:
        """Scale what the `depth` stage gave, see `DepthRange`. The range counts from `spawn` on."""
        ...

    def spawn(self, time: float, *, cut: bool) -> LifecycleStats:
        """Make the key frame in the spare slot the newest, see `Lifecycle.spawn`."""
        ...

    def settle(self) -> None:
        """Wait until what was started is done, so that it can be timed and its errors belong to it."""
        ...

    def render(
        self, time: float, view: View | None, background: Sequence[float], extent: Extent, *, depth: bool
    ) -> Image:
        """The living Gaussians at a time of the interval. `depth`: whether the planes are wanted."""
        ...

    def render_many(
        self, times: Sequence[float], background: Sequence[float], extent: Extent, *, depth: bool
    ) -> Iterator[list[Image]]:
        """The canonical view at each time of the interval, in order; the images of a list were rendered
        together. Those of a list of several are overwritten by the next list and not by `render`."""
        ...

    def splats(self, time: float) -> Splats:
        """The living Gaussians at a time of the interval, on the host, see `Lifecycle.at`."""
        ...

    def on_host(self) -> HostInterval:
        """The current interval in arrays of the host; copies where the scene is on a GPU."""
        ...


class ModelInputs:
    """The stages' inputs as host arrays, and the resizers that fill them.

    Args:
        stage_shapes: of the inputs of `depth` and `condition`, those that the bundle has.
        make: gives zeroed float32 arrays, for instance pinned ones.
    """

    def __init__(
        self,
        model: ModelConfig,
        stage_shapes: Mapping[str, Shape],
        make: Callable[[Shape, npt.DTypeLike], np.ndarray] = np.zeros,
    ) -> None:
        def zeros(shape: Shape) -> np.ndarray:
            return make(shape, np.float32)

        self.rgbd = zeros((1, 4, model.height, model.width))
        # Views made once: an engine binds arrays by identity, so a new view per push would be bound anew.
        self.rgb = self.rgbd[:, :3]
        self.depth = self.rgbd[:, 3:]
        self.own: dict[str, np.ndarray] = {
            stage: zeros(shape) for stage, shape in stage_shapes.items() if shape != self.rgb.shape
        }
        self.stage_rgb = {stage: self.own.get(stage, self.rgb) for stage in stage_shapes}
        self._resizers = [(Resizer(model.height, model.width), self.rgb)]
        self._resizers += [(Resizer(*planes.shape[2:]), planes) for planes in self.own.values()]

    def load(self, image: np.ndarray) -> None:
        """Resize an image (uint8 RGB [h, w, 3], C-contiguous) into all of them."""
        for resizer, planes in self._resizers:
            resizer.into(image, planes[0])


class HostScene:
    """See `Scene`; C++ rasterizer."""

    def __init__(
        self,
        model: ModelConfig,
        stage_shapes: Mapping[str, Shape],
        condition_shape: Shape | None,
        threads: int,
    ) -> None:
        self._made_of = model, stage_shapes, condition_shape, threads
        self.life = Lifecycle(model, condition_shape=condition_shape, threads=threads)
        self._inputs = ModelInputs(model, stage_shapes)
        self.rgbd, self.depth = self._inputs.rgbd, self._inputs.depth
        self.stage_rgb: Mapping[str, Array] = self._inputs.stage_rgb
        self._rasterizer = Rasterizer(model.height, model.width, threads=threads)
        self.buffers = RenderBuffers.allocate(model.height, model.width)
        self._float = np.zeros((model.height, model.width, 3), np.float32)
        self._rgb = np.zeros((model.height, model.width, 3), np.uint8)
        # Of depth: after the newest key frame, before and after the one that is being made.
        self._range = self._before = self._after = DepthRange()
        self._time = 0.0

    def describe(self, stages: StageChain) -> dict[str, str]:
        raster = self._rasterizer
        return {"render": f"C++ rasterizer, {raster.simd}, {raster.threads} threads"}

    def fork(self) -> HostScene:
        return HostScene(*self._made_of)

    def push(
        self, image: np.ndarray | Surface, time: float, stages: StageChain, laps: Laps, *, cut: bool
    ) -> LifecycleStats:
        if not isinstance(image, np.ndarray):
            raise _not_here()
        earlier = None if cut else self.life.newest
        self._inputs.load(image)
        self._time, self._before = time, DepthRange() if earlier is None else self._range
        return stages.make(self, earlier, time, laps, cut=cut)

    def sample(self, picture: Surface) -> np.ndarray:
        raise _not_here()

    def resized(self, picture: Surface) -> np.ndarray:
        raise _not_here()

    def normalise_depth(self) -> None:
        self._after = self._before.normalise(self.depth, self._time)

    def spawn(self, time: float, *, cut: bool) -> LifecycleStats:
        stats = self.life.spawn(time, cut=cut)
        self._range = self._after
        return stats

    def settle(self) -> None:
        pass  # the host does everything at once

    def render(
        self, time: float, view: View | None, background: Sequence[float], extent: Extent, *, depth: bool
    ) -> Image:
        buffers = self._rasterizer.render(
            self.life.at(time), background=background, view=view, extent=extent, out=self.buffers
        )
        to_bytes(buffers.rgb, self._float, self._rgb)
        planes = Planes(buffers.depth, buffers.expected_depth, buffers.alpha) if depth else None
        return Image(self._rgb, planes, buffers.stats)

    def render_many(
        self, times: Sequence[float], background: Sequence[float], extent: Extent, *, depth: bool
    ) -> Iterator[list[Image]]:
        for time in times:
            yield [self.render(time, None, background, extent, depth=depth)]

    def splats(self, time: float) -> Splats:
        return self.life.at(time)

    def on_host(self) -> Lifecycle:
        return self.life


def _not_here() -> InputError:
    return InputError(
        "The picture is on a GPU, and this stream runs on the CPU.",
        "Use device='cuda', or push its download().",
    )


def to_bytes(image: np.ndarray, scratch: np.ndarray, out: np.ndarray) -> None:
    """Round a float image in [0, 1] to uint8 in `out`, clamped. `scratch` is float32 of the same shape."""
    np.multiply(image, np.float32(255), out=scratch)
    np.rint(scratch, out=scratch)
    np.clip(scratch, 0, 255, out=scratch)
    np.copyto(out, scratch, casting="unsafe")
