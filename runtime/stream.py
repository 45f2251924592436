"""A stream: push key frames with time stamps, render at any time of the current interval.

    stream = open_stream("tiny.bundle")
    stream.push(image, 0.0); stream.push(later_image, 0.13)
    rgb = stream.render(0.05).rgb

A push runs `encode` (and `depth`, `condition` where the bundle has them) once for the new frame and
`deform` once for the pair it makes with the frame before; the results stay in the ring of the lifecycle and
serve both pairs of a frame without being copied. Any thread may call; see `Stream`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import engines
from .bundle import Bundle
from .engines import Engine
from .errors import DeviceMemoryError, InputError
from .family import Family
from .frame import Frame, FrameStats, PushStats
from .key_frame_ring import LifecycleStats
from .preprocess import check_image
from .rasterizer import Extent, RenderBuffers, View
from .scene import HostScene, Image, KeyFrameArrays, Life, Scene
from .timestamps import check_seconds
from .video.surface import Surface

if TYPE_CHECKING:
    from .cuda.device import Device


__all__ = ["Frame", "FrameStats", "PushStats", "Stream", "open_stream", "shapes"]


class _Clock:
    """Milliseconds from lap to lap; those of `lap` until the scene's device has done what was started."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        self._scene.settle()
        self.note(name)

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1e3
        self._last = now


class Stream:
    """See the module's docstring. Create with `open_stream`; use as a context manager or call `close`.

    Calls from several threads, also to forks, are served one after the other. It belongs to the process that
    opened it: after `os.fork`, the child can only `close` it.
    """

    def __init__(
        self,
        bundle: Bundle,
        stages: Mapping[str, Engine],
        *,
        threads: int = 0,
        family: Family[Stream] | None = None,
        scene: Scene | None = None,
        graphs: bool = True,
    ) -> None:
        """`family`: the open streams over these engines, which the last of them closes; see `fork`.
        `scene`: where the engines' arrays are; None is the host. `graphs`: see `open_stream`.
        """
        self._wants_graphs = graphs
        self._threads = threads
        self._family: Family[Stream] = Family() if family is None else family
        self._family.members.append(self)
        self.bundle = bundle
        self.model = bundle.model
        self._engines = dict(stages)
        self.scene: Scene = HostScene(self.model, *shapes(stages), threads) if scene is None else scene
        if self.scene.render_graphs is not None:
            self.scene.render_graphs.wanted = graphs
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
        """What runs each stage, for statistics and reports; on a GPU also what are graphs."""
        lines = {stage: engine.description for stage, engine in self._engines.items()}
        lines |= {"render": self.scene.description}
        if self.scene.graphs is not None:
            refusal = self._graph_refusal()
            lines["graph"] = (
                self.scene.graphs.description
                if refusal is None
                else f"no CUDA graph, stage by stage: {refusal}"
            )
        if self.scene.render_graphs is not None:
            lines["render_graph"] = self.scene.render_graphs.description
        return lines

    def _graph_refusal(self) -> str | None:
        """Why key frames are not made by CUDA graphs, None where they are."""
        if not self._wants_graphs:
            return "graphs were switched off"
        for stage, engine in self._engines.items():
            if engine.graph_refusal is not None:
                return f"`{stage}`: {engine.graph_refusal}"
        return None if self.scene.graphs is None else self.scene.graphs.refusal

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
        with self._turn():
            self.lifecycle.check_time(timestamp)
            try:
                return self._push(image, timestamp, cut)
            except DeviceMemoryError as error:
                raise _explained(error, self.bundle) from error

    def _push(self, image: np.ndarray | Surface, timestamp: float, cut: bool) -> PushStats:
        scene, lifecycle, clock = self.scene, self.lifecycle, _Clock(self.scene)
        earlier, later = None if cut else lifecycle.newest, lifecycle.spare
        scene.load(image, timestamp, fresh=earlier is None)
        if earlier is not None and scene.graphs is not None and self._graph_refusal() is None:
            clock.note("preprocess")
            uses = *self._engines.values(), scene.rgbd, earlier, later, lifecycle.spare_pair
            name, stats = scene.graphs.push(timestamp, uses, lambda: self._stages(earlier, later, _no_lap))
            clock.note(name)
        else:
            clock.lap("preprocess")
            self._stages(earlier, later, clock.lap)
            stats = scene.spawn(timestamp, cut=cut)
            clock.lap("lifecycle")
        return PushStats(stats.key_frame, timestamp, clock.laps, stats.spawned, stats.alive, stats.retired)

    def _stages(
        self, earlier: KeyFrameArrays | None, later: KeyFrameArrays, lap: Callable[[str], None]
    ) -> None:
        """Everything from the prepared image to the key frame `later` and the pair that it ends."""
        self._encode(later, lap)
        if earlier is not None:
            self._deform(earlier, later)
            lap("deform")

    def _encode(self, slot: KeyFrameArrays, lap: Callable[[str], None]) -> None:
        """Everything that is computed once per frame, from the prepared image into `slot`."""
        scene = self.scene
        if "depth" in self._engines:
            self._engines["depth"].run({"rgb": scene.stage_rgb["depth"]}, {"depth": scene.depth})
            scene.normalise_depth()
            lap("depth")
        if slot.condition is not None:
            self._engines["condition"].run(
                {"rgb": scene.stage_rgb["condition"]}, {"condition": slot.condition}
            )
            lap("condition")
        self._engines["encode"].run(
            {"rgbd": scene.rgbd},
            {"tokens": slot.tokens, "features": slot.features, "gaussians": slot.gaussians},
        )
        lap("encode")

    def _deform(self, earlier: KeyFrameArrays, later: KeyFrameArrays) -> None:
        """Motion and fade of a pair into the spare pair buffers."""
        inputs: dict[str, Any] = {}
        for i, slot in enumerate((earlier, later)):
            inputs[f"tokens_{i}"] = slot.tokens
            inputs[f"features_{i}"] = slot.features
            if slot.condition is not None:
                inputs[f"condition_{i}"] = slot.condition
        pair = self.lifecycle.spare_pair
        self._engines["deform"].run(inputs, {"motion": pair.motion, "fade": pair.fade})

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
            rgb, planes = image.rgb, image.planes
            if copy:
                rgb, planes = rgb.copy(), None if planes is None else planes.copy()
            latency = (time.perf_counter() - start) * 1e3
            stats = FrameStats(latency, self.lifecycle.stats, image.stats)
            return Frame(rgb, planes, timestamp, stats, image.on_device)

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
                image = images.pop()
                rgb, planes = image.rgb.copy(), None if image.planes is None else image.planes.copy()
                latency = share + (time.perf_counter() - start) * 1e3
                stats = FrameStats(latency, before, image.stats)
                frame = Frame(rgb, planes, timestamp, stats, image.on_device)
            yield frame

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
            self._stages(slot, slot, _no_lap)
            self.scene.settle()

    def fork(self) -> Stream:
        """Another stream over the same engines, with Gaussians and buffers of its own.

        Engines are what costs memory and time to load; they are closed with the last of the streams.
        """
        with self._turn():
            for engine in self._engines.values():
                engine.reserve(len(self._family.members) + 1)
            try:
                scene = self.scene.fork()
            except DeviceMemoryError as error:
                raise _explained(error, self.bundle) from error
            return Stream(
                self.bundle,
                self._engines,
                threads=self._threads,
                family=self._family,
                scene=scene,
                graphs=self._wants_graphs,
            )

    def close(self) -> None:
        """Release the engines, unless another stream shares them. Calling twice is harmless.

        A call of another thread ends first. In a forked child the engines stay: to release them is to wait
        for their threads, which are the parent's.
        """
        if not self._family.is_here:
            self._closed = True
            return
        with self._family.turn():
            if self._closed:
                return
            self._closed = True
            self._family.members.remove(self)
            if not self._family.members:
                for engine in self._engines.values():
                    engine.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """A call of an open stream, see `Family.turn`."""
        with self._family.turn():
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
    stages: dict[str, Engine] = {}
    try:
        variants = {
            stage: engines.select_variant(bundle, stage, engine, precision, device)
            for stage in bundle.stage_names
        }
        engines.require(engine, device)
        memory = _open_device() if device == "cuda" else None
        for stage, variant in variants.items():
            stages[stage] = engines.create(
                engine, variant, device=device, threads=threads, precision=precision, memory=memory
            )
        stream = Stream(
            bundle, stages, threads=threads, scene=_scene_on(memory, bundle, stages), graphs=graphs
        )
        stream.warm_up()
    except BaseException as error:
        for loaded in stages.values():
            loaded.close()
        if isinstance(error, DeviceMemoryError):
            raise _explained(error, bundle) from error
        raise
    return stream


def _no_lap(_: str) -> None:
    """Nothing is timed, and nothing waited for."""


def _explained(error: DeviceMemoryError, bundle: Bundle) -> DeviceMemoryError:
    from .cuda.budget import explained

    return explained(error, bundle)


def _open_device() -> Device:
    from .cuda.cupy_device import CupyDevice  # an extra

    return CupyDevice()


def _scene_on(memory: Device | None, bundle: Bundle, stages: Mapping[str, Engine]) -> Scene | None:
    if memory is None:
        return None
    from .cuda.scene import CudaScene

    return CudaScene(memory, bundle.model, *shapes(stages))


def shapes(stages: Mapping[str, Engine]) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...] | None]:
    """Shapes that a scene needs besides the model's: inputs of `depth` and `condition`, then its output."""
    inputs = {stage: stages[stage].inputs[0].shape for stage in ("depth", "condition") if stage in stages}
    return inputs, stages["condition"].outputs[0].shape if "condition" in stages else None
