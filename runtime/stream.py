"""A stream: push key frames with time stamps, render at any time of the current interval.

    stream = open_stream("tiny.bundle")
    stream.push(image, 0.0); stream.push(later_image, 0.13)
    rgb = stream.render(0.05).rgb

A push runs `encode` (and `depth`, `condition` where the bundle has them) once for the new frame and
`deform` once for the pair it makes with the frame before; the results stay in the ring of the lifecycle and
serve both pairs of a frame without being copied. Not thread-safe: one thread pushes and renders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import engines
from .bundle import Bundle
from .engines import Engine
from .errors import DeviceMemoryError, InputError
from .key_frame_ring import LifecycleStats
from .preprocess import DepthRange, check_image
from .rasterizer import Extent, RenderBuffers, RenderStats, View
from .scene import HostScene, KeyFrameArrays, Life, Scene

if TYPE_CHECKING:
    from .cuda.device import Device


@dataclass(frozen=True)
class PushStats:
    """What a push did.

    Attributes:
        key_frame: number of the key frame over the life of the stream. timestamp: seconds.
        latencies: milliseconds of each stage that ran, in order: preprocess, [depth, condition,] encode,
            [deform,] lifecycle.
        spawned, alive, retired: Gaussians; see `LifecycleStats`.
    """

    key_frame: int
    timestamp: float
    latencies: Mapping[str, float]
    spawned: int
    alive: int
    retired: int


@dataclass(frozen=True)
class FrameStats:
    """What a render did: milliseconds, and where the living Gaussians went (by reason, in `render`)."""

    latency: float
    lifecycle: LifecycleStats
    render: RenderStats

    def to_json(self) -> dict[str, Any]:
        """Counts by name: key_frame, spawned, alive, retired, rendered, culled_invalid, culled_behind, ..."""
        return {"latency_ms": self.latency, **vars(self.lifecycle), **vars(self.render)}


@dataclass(frozen=True)
class Frame:
    """A rendered image.

    Attributes:
        rgb: uint8 [H, W, 3]. Values are rounded to the nearest level; the published script truncates, which
            darkens the image by half a level on average.
        depth: float32 [H, W], accumulated (sum of depth * weight). expected_depth: depth / alpha, 0 where
            alpha is 0.
        alpha: float32 [H, W]. timestamp: seconds. stats: latency and counts.
        on_device: rgb in the memory of the GPU that rendered it, or None. The next render may overwrite it,
            whatever `copy` says; an observer finds it as it was rendered.
    """

    rgb: np.ndarray
    depth: np.ndarray
    expected_depth: np.ndarray
    alpha: np.ndarray
    timestamp: float
    stats: FrameStats
    on_device: Any = None


class _Clock:
    """Milliseconds from lap to lap, each until the scene's device has done what was started."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        self._scene.settle()
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1e3
        self._last = now


class Stream:
    """See the module's docstring. Create with `open_stream`; use as a context manager or call `close`."""

    def __init__(
        self,
        bundle: Bundle,
        stages: Mapping[str, Engine],
        *,
        threads: int = 0,
        shares: list[Stream] | None = None,
        scene: Scene | None = None,
    ) -> None:
        """`shares`: the open streams over these engines, which the last of them closes; see `fork`.
        `scene`: where the engines' arrays are; None is the host.
        """
        self._threads = threads
        self._shares = [] if shares is None else shares
        self._shares.append(self)
        self._range = DepthRange()
        self.bundle = bundle
        self.model = bundle.model
        self._engines = dict(stages)
        self.scene: Scene = HostScene(self.model, *shapes(stages), threads) if scene is None else scene
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
        """What runs each stage, for statistics and reports."""
        lines = {stage: engine.description for stage, engine in self._engines.items()}
        return lines | {"render": self.scene.description}

    def push(self, image: np.ndarray, timestamp: float, *, cut: bool = False) -> PushStats:
        """Make a key frame of an image.

        Args:
            image: uint8 RGB [h, w, 3] of any size, which may change from push to push.
            timestamp: seconds, later than the previous push.
            cut: the image begins a new scene: all Gaussians retire, and nothing moves across.

        Raises:
            InputError: the image or the time stamp cannot be used.
            EngineError: a stage failed. In either case the stream is as it was before the call.
        """
        self._check_open()
        image = check_image(image)
        timestamp = _seconds(timestamp)
        clock = _Clock(self.scene)
        self.lifecycle.check_time(timestamp)
        try:
            return self._push(image, timestamp, cut, clock)
        except DeviceMemoryError as error:
            raise _explained(error, self.bundle) from error

    def _push(self, image: np.ndarray, timestamp: float, cut: bool, clock: _Clock) -> PushStats:
        lifecycle = self.lifecycle
        self.scene.load(image)
        clock.lap("preprocess")
        depth_range = DepthRange() if cut or lifecycle.newest is None else self._range
        depth_range = self._encode(lifecycle.spare, clock, depth_range, timestamp)
        if lifecycle.newest is not None and not cut:
            self._deform(lifecycle.newest, lifecycle.spare)
            clock.lap("deform")
        stats = lifecycle.spawn(timestamp, cut=cut)
        self._range = depth_range
        clock.lap("lifecycle")
        return PushStats(stats.key_frame, timestamp, clock.laps, stats.spawned, stats.alive, stats.retired)

    def _encode(
        self, slot: KeyFrameArrays, clock: _Clock, depth_range: DepthRange, timestamp: float
    ) -> DepthRange:
        """Everything that is computed once per frame, from the prepared image into `slot`.

        Returns the range of depth after this frame.
        """
        scene = self.scene
        if "depth" in self._engines:
            self._engines["depth"].run({"rgb": scene.stage_rgb["depth"]}, {"depth": scene.depth})
            depth_range = scene.normalise_depth(depth_range, timestamp)
            clock.lap("depth")
        if slot.condition is not None:
            self._engines["condition"].run(
                {"rgb": scene.stage_rgb["condition"]}, {"condition": slot.condition}
            )
            clock.lap("condition")
        self._engines["encode"].run(
            {"rgbd": scene.rgbd},
            {"tokens": slot.tokens, "features": slot.features, "gaussians": slot.gaussians},
        )
        clock.lap("encode")
        return depth_range

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
        copy: bool = True,
    ) -> Frame:
        """Render the living Gaussians.

        Args:
            timestamp: seconds within `interval`; None is the latest key frame's.
            view: None is the canonical view.
            background: RGB in [0, 1]; None is the model's.
            extent: see `Rasterizer.render`.
            copy: False returns views of buffers that the next render overwrites, and allocates nothing.

        Raises:
            InputError: nothing pushed yet, a time outside the interval, or a bad view or background.
        """
        self._check_open()
        start = time.perf_counter()
        if timestamp is None:
            interval = self.interval
            if interval is None:
                raise InputError(
                    "Nothing was pushed yet, so there is nothing to render.", "Push a frame first."
                )
            timestamp = interval[1]
        timestamp = _seconds(timestamp)
        image = self.scene.render(
            timestamp, view, self.model.background if background is None else background, extent
        )
        rgb, depth, expected, alpha = image.rgb, image.depth, image.expected_depth, image.alpha
        if copy:
            rgb, depth, expected, alpha = rgb.copy(), depth.copy(), expected.copy(), alpha.copy()
        latency = (time.perf_counter() - start) * 1e3
        stats = FrameStats(latency, self.lifecycle.stats, image.stats)
        return Frame(rgb, depth, expected, alpha, timestamp, stats, image.on_device)

    def reset(self) -> None:
        """Retire all Gaussians, as after a cut; time stamps may start anew."""
        self._check_open()
        self.lifecycle.reset()

    def warm_up(self) -> None:
        """Run every stage once on the spare buffers, so that the first push is as fast as the others."""
        slot = self.lifecycle.spare
        self._encode(slot, _Clock(self.scene), DepthRange(), 0.0)
        self._deform(slot, slot)

    def fork(self) -> Stream:
        """Another stream over the same engines, with Gaussians and buffers of its own.

        Engines are what costs memory and time to load; they are closed with the last of the streams. All
        streams of a family belong to one thread: the engines run one pair at a time.
        """
        self._check_open()
        for engine in self._engines.values():
            engine.reserve(len(self._shares) + 1)
        try:
            scene = self.scene.fork()
        except DeviceMemoryError as error:
            raise _explained(error, self.bundle) from error
        return Stream(self.bundle, self._engines, threads=self._threads, shares=self._shares, scene=scene)

    def close(self) -> None:
        """Release the engines, unless another stream shares them. Calling twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._shares.remove(self)
        if not self._shares:
            for engine in self._engines.values():
                engine.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("The stream is closed.", "Open it again with open_stream.")

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
) -> Stream:
    """Open a bundle for streaming.

    Args:
        bundle: a loaded bundle or the path of its folder.
        engine: `onnxruntime` or `openvino`.
        device: `cpu`, or `cuda`: networks, lifecycle and rasterizer on the GPU (docs/gpu.md).
        threads: per engine and for the rasterizer; 0 is all cores. They take turns, so they do not add up.
        precision: None takes each stage's first file for the engine (and bf16 in OpenVINO where the CPU has
            it).

    Raises:
        BundleError: not a valid bundle, or none of its files fits engine and precision.
        EngineError: the engine, device or precision is not available here.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    stages: dict[str, Engine] = {}
    try:
        variants = {
            stage: engines.select_variant(bundle, stage, engine, precision) for stage in bundle.stage_names
        }
        engines.require(engine, device)
        memory = _open_device() if device == "cuda" else None
        for stage, variant in variants.items():
            stages[stage] = engines.create(
                engine, variant, device=device, threads=threads, precision=precision, memory=memory
            )
        stream = Stream(bundle, stages, threads=threads, scene=_scene_on(memory, bundle, stages))
        stream.warm_up()
    except BaseException as error:
        for loaded in stages.values():
            loaded.close()
        if isinstance(error, DeviceMemoryError):
            raise _explained(error, bundle) from error
        raise
    return stream


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


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"A time stamp must be a number of seconds, not {type(value).__name__}.")
    return float(value)
