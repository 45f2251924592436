"""A stream of key frames in, frames of any time out: the runtime's main interface, without video around it.

`stage_chain` runs the networks, a `scene` holds what they write and renders it; here is what happens when.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from . import engines
from .bundle import Bundle
from .engines import Engine
from .errors import DeviceMemoryError, InputError
from .frame import Frame, FrameStats, PushStats
from .key_frame_ring import LifecycleStats
from .preprocess import check_image
from .rasterizer import Extent, RenderBuffers, View
from .scene import HostScene, Image, Life, Scene
from .stage_chain import StageChain, no_lap, shapes
from .timestamps import check_seconds
from .timing import Laps
from .video.surface import Surface

if TYPE_CHECKING:
    from .cuda.device import Device


__all__ = ["Frame", "FrameStats", "PushStats", "Stream", "open_stream", "shapes"]


class Stream:
    """Push key frames with time stamps, render at any time of the current interval.

        stream = open_stream("tiny.bundle")
        stream.push(image, 0.0); stream.push(later_image, 0.13)
        rgb = stream.render(0.05).rgb

    A push runs `encode` (and `depth` and `condition` where the bundle has them) once for the new key frame,
    and `deform` once for the pair it makes with the one before. After the first push there is only that
    moment, from the second on the interval between the last two.

    Create with `open_stream`; use as a context manager or call `close`. Calls from several threads, also to
    forks, are served one after the other. It belongs to the process that opened it: after `os.fork`, the
    child can only `close` it.
    """

    def __init__(
        self,
        bundle: Bundle,
        stages: Mapping[str, Engine] | StageChain,
        *,
        threads: int = 0,
        scene: Scene | None = None,
    ) -> None:
        """What `open_stream` does with what it has loaded; also for engines that a caller has put together.

        Args:
            bundle: what the engines were loaded from.
            stages: engines by stage name, closed with the stream; or a chain, which streams may share.
            threads: of the rasterizer of the host; 0 is all cores.
            scene: where the engines' arrays are; None is the host.
        """
        self.bundle = bundle
        self.model = bundle.model
        self.stages = (stages if isinstance(stages, StageChain) else StageChain(stages)).acquire()
        self.scene: Scene = HostScene(self.model, *self.stages.shapes, threads) if scene is None else scene
        self._series = 0  # calls of `render_many`
        self._closed = False

    @property
    def lifecycle(self) -> Life:
        """Key frames and the Gaussians alive."""
        return self.scene.life

    @property
    def buffers(self) -> RenderBuffers:
        """Float images of the last render on the host.

        Raises:
            InputError: the stream is on a GPU.
        """
        if not isinstance(self.scene, HostScene):
            raise InputError(
                "A stream on a GPU has no float images on the host.",
                "Use what `render` returns (docs/gpu.md).",
            )
        return self.scene.buffers

    @property
    def interval(self) -> tuple[float, float] | None:
        """First and last time that can be rendered, in seconds; None before the first push."""
        return self.lifecycle.interval

    @property
    def description(self) -> dict[str, str]:
        """What runs each stage, and what the scene says (`Scene.describe`); for statistics and reports."""
        lines = {stage: each.description for stage, each in self.stages.engines.items()}
        return lines | self.scene.describe(self.stages)

    def push(self, image: np.ndarray | Surface, timestamp: float, *, cut: bool = False) -> PushStats:
        """Make a key frame of an image.

        Args:
            image: uint8 RGB [h, w, 3] of any size, which may change from push to push; on a GPU also what
                a decoder left there (`open_video(surfaces=True)`).
            timestamp: seconds, later than the previous push.
            cut: the image begins a new scene: all Gaussians retire, and nothing moves across.

        Raises:
            InputError: the image or the time stamp cannot be used.
            EngineError: a stage failed. In either case the stream is as it was before the call.
        """
        image = image if isinstance(image, Surface) else check_image(image)
        timestamp = check_seconds(timestamp)
        with self._turn(), _memory_explained(self.bundle):
            self.lifecycle.check_time(timestamp)
            laps = Laps(self.scene.settle)
            stats = self.scene.push(image, timestamp, self.stages, laps, cut=cut)
        return PushStats(
            stats.key_frame, timestamp, laps.milliseconds, stats.spawned, stats.alive, stats.retired
        )

    def render(
        self,
        timestamp: float | None = None,
        *,
        view: View | None = None,
        background: Sequence[float] | None = None,
        extent: Extent = "published",
        depth: bool = True,
        copy: bool = True,
    ) -> Frame:
        """Render the living Gaussians.

        Args:
            timestamp: seconds within `interval`; None is the latest key frame's.
            view: None is the canonical view.
            background: RGB in [0, 1]; None is the model's.
            extent: see `Rasterizer.render`.
            depth: False leaves out depth and alpha, which then need not come from a GPU.
            copy: False returns views of buffers that the next render overwrites, and allocates nothing.

        Raises:
            InputError: nothing pushed yet, a time outside the interval, or a bad view or background.
        """
        if view is not None and not isinstance(view, View):
            raise InputError(f"A view must be a View, not {type(view).__name__}.", "Use View.swing, say.")
        timestamp = None if timestamp is None else check_seconds(timestamp)
        with self._turn():
            start = time.perf_counter()
            if timestamp is None:
                timestamp = self._latest()
            image = self.scene.render(timestamp, view, self._background(background), extent, depth=depth)
            if copy:
                image = image.copy()
            latency = (time.perf_counter() - start) * 1e3
            return _frame(image, timestamp, FrameStats(latency, self.lifecycle.stats, image.stats))

    def _latest(self) -> float:
        interval = self.interval
        if interval is None:
            raise InputError("Nothing was pushed yet, so there is nothing to render.", "Push a frame first.")
        return interval[1]

    def render_many(
        self,
        timestamps: Iterable[float],
        *,
        background: Sequence[float] | None = None,
        extent: Extent = "published",
        depth: bool = True,
    ) -> Iterator[Frame]:
        """Render the canonical view at several times: on a GPU in one launch, with one wait for the images.

        The host renders each image when it is asked for. A GPU renders up to `cuda.scene.BATCH` of them
        together; the latency of each is then its share of the time from the launch to the last download.
        While the frames are taken, `render` may be called, and nothing may be pushed.

        Args:
            timestamps: seconds within `interval`. The others as in `render`.

        Raises:
            InputError: at once where `render` would raise it; while frames are taken where the stream went on
                or another series was begun.
        """
        times = [check_seconds(timestamp) for timestamp in timestamps]
        with self._turn():
            for timestamp in times:
                self.lifecycle.normalised(timestamp)
            self._series += 1
            batches = self.scene.render_many(times, self._background(background), extent, depth=depth)
            return self._frames(batches, times, self._series, self.lifecycle.stats)

    def _frames(
        self, batches: Iterator[list[Image]], times: list[float], series: int, before: LifecycleStats
    ) -> Iterator[Frame]:
        images: list[Image] = []  # of one batch, the first last
        share = 0.0
        for timestamp in times:
            with self._turn():
                if self._series != series or self.lifecycle.stats != before:
                    raise InputError(
                        "The stream went on before all frames of an interval were taken.",
                        "Take them all before the next push or series.",
                    )
                start = time.perf_counter()
                if not images:
                    images = next(batches)[::-1]
                    share = (time.perf_counter() - start) * 1e3 / len(images)
                    start = time.perf_counter()
                image = images.pop().copy()
                latency = share + (time.perf_counter() - start) * 1e3
            yield _frame(image, timestamp, FrameStats(latency, before, image.stats))

    def _background(self, background: Sequence[float] | None) -> Sequence[float]:
        return self.model.background if background is None else background

    def reset(self) -> None:
        """Retire all Gaussians, as after a cut; time stamps may start anew."""
        with self._turn():
            self.lifecycle.reset()

    def warm_up(self) -> None:
        """Run every stage once on the spare buffers, so that the first push is as fast as the others."""
        with self._turn():
            slot = self.lifecycle.spare
            self.stages.run(self.scene, slot, slot, no_lap)
            self.scene.settle()

    def fork(self) -> Stream:
        """Another stream over the same engines, with Gaussians and buffers of its own.

        Engines are what costs memory and time to load; they are closed with the last of the streams.
        """
        with self._turn(), _memory_explained(self.bundle):
            self.stages.reserve()
            return Stream(self.bundle, self.stages, scene=self.scene.fork())

    def close(self) -> None:
        """Release the engines, unless another stream shares them. Calling twice is harmless.

        A call of another thread ends first. In a forked child the engines stay: to release them is to wait
        for their threads, which are the parent's.
        """
        if not self.stages.turns.is_here:
            self._closed = True
            return
        with self.stages.turns.turn():
            if self._closed:
                return
            self._closed = True
            self.stages.release()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """A call of an open stream, see `Turns.turn`."""
        with self.stages.turns.turn():
            if self._closed:
                raise InputError("The stream is closed.", "Open it again with open_stream.")
            yield

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_stream(
    bundle: Bundle | str | os.PathLike[str],
    *,
    engine: str = "onnxruntime",
    device: str = "cpu",
    threads: int = 0,
    precision: str | None = None,
    graphs: bool = True,
) -> Stream:
    """Open a bundle for streaming.

    Args:
        bundle: a loaded bundle or the path of its folder.
        engine: one of `engines.ENGINES`.
        device: `cpu`, or `cuda`: networks, lifecycle and rasterizer on the GPU (docs/gpu.md).
        threads: per engine and for the rasterizer; 0 is all cores. They take turns, so they do not add up.
        precision: None takes each stage's first file for the engine that pays on this machine (and bf16 in
            OpenVINO where the CPU has it).
        graphs: on a GPU, make key frames by CUDA graphs where the engines can be a part of one, and render by
            them; False keeps the latency of every stage apart.

    Raises:
        BundleError: not a valid bundle, or none of its files fits engine and precision.
        EngineError: the engine, device or precision is not available here.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    with _memory_explained(bundle):
        variants = {
            stage: engines.select_variant(bundle, stage, engine, precision, device)
            for stage in bundle.stage_names
        }
        engines.require(engine, device)
        memory = _open_device() if device == "cuda" else None
        stages = StageChain.load(
            variants, engine, device=device, threads=threads, precision=precision, memory=memory
        )
        try:
            scene = None if memory is None else _scene_on(memory, bundle, stages, graphs)
            stream = Stream(bundle, stages, threads=threads, scene=scene)
            stream.warm_up()
        except BaseException:
            stages.close()
            raise
    return stream


@contextlib.contextmanager
def _memory_explained(bundle: Bundle) -> Iterator[None]:
    """Where a device runs out of memory, the error says what the bundle needs and which presets would fit."""
    try:
        yield
    except DeviceMemoryError as error:
        from .cuda.budget import explained

        raise explained(error, bundle) from error


def _open_device() -> Device:
    from .cuda.cupy_device import CupyDevice  # an extra

    return CupyDevice()


def _scene_on(memory: Device, bundle: Bundle, stages: StageChain, graphs: bool) -> Scene:
    from .cuda.scene import CudaScene

    return CudaScene(memory, bundle.model, *stages.shapes, graphs=graphs)


def _frame(image: Image, timestamp: float, stats: FrameStats) -> Frame:
    return Frame(image.rgb, image.planes, timestamp, stats, image.on_device)
