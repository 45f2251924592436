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
from typing import Any

import numpy as np

from . import engines
from .bundle import Bundle
from .engines import Engine
from .errors import InputError
from .lifecycle import KeyFrameSlot, Lifecycle, LifecycleStats
from .preprocess import DepthRange, Resizer, check_image
from .rasterizer import Extent, Rasterizer, RenderBuffers, RenderStats, View


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
    """

    rgb: np.ndarray
    depth: np.ndarray
    expected_depth: np.ndarray
    alpha: np.ndarray
    timestamp: float
    stats: FrameStats


class _Clock:
    """Milliseconds from lap to lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
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
    ) -> None:
        """`shares`: the open streams over these engines, which the last of them closes; see `fork`."""
        self._threads = threads
        self._shares = [] if shares is None else shares
        self._shares.append(self)
        self._range = DepthRange()
        self.bundle = bundle
        self.model = model = bundle.model
        self._engines = dict(stages)
        condition = self._engines.get("condition")
        self.lifecycle = Lifecycle(
            model, condition_shape=condition.outputs[0].shape if condition else None, threads=threads
        )
        self._rasterizer = Rasterizer(model.height, model.width, threads=threads)
        self._rgbd: np.ndarray = np.zeros((1, 4, model.height, model.width), np.float32)
        self._resizer = Resizer(model.height, model.width)
        # Views made once: an engine binds arrays by identity, so a new view per push would be bound anew.
        rgb: np.ndarray = self._rgbd[:, :3]
        self._depth: np.ndarray = self._rgbd[:, 3:]
        # `depth` and `condition` may look at the image in a size of their own.
        self._stage_rgb: dict[str, np.ndarray] = {}
        self._own_sizes: list[tuple[Resizer, np.ndarray]] = []
        for stage in ("depth", "condition"):
            if stage in self._engines:
                shape = self._engines[stage].inputs[0].shape
                self._stage_rgb[stage] = rgb
                if shape != rgb.shape:
                    self._stage_rgb[stage] = planes = np.zeros(shape, np.float32)
                    self._own_sizes.append((Resizer(*shape[2:]), planes))
        self._float = np.zeros((model.height, model.width, 3), np.float32)
        self._rgb = np.zeros((model.height, model.width, 3), np.uint8)
        self.buffers = RenderBuffers.allocate(model.height, model.width)
        self._closed = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """First and last time that can be rendered, in seconds; None before the first push."""
        return self.lifecycle.interval

    @property
    def description(self) -> dict[str, str]:
        """What runs each stage, for statistics and reports."""
        rasterizer = self._rasterizer
        lines = {stage: engine.description for stage, engine in self._engines.items()}
        return lines | {"render": f"C++ rasterizer, {rasterizer.simd}, {rasterizer.threads} threads"}

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
        lifecycle, clock = self.lifecycle, _Clock()
        lifecycle.check_time(timestamp)
        self._resizer.into(image, self._rgbd[0, :3])
        for resizer, planes in self._own_sizes:
            resizer.into(image, planes[0])
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
        self, slot: KeyFrameSlot, clock: _Clock, depth_range: DepthRange, timestamp: float
    ) -> DepthRange:
        """Everything that is computed once per frame, from the prepared image into `slot`.

        Returns the range of depth after this frame.
        """
        if "depth" in self._engines:
            self._engines["depth"].run({"rgb": self._stage_rgb["depth"]}, {"depth": self._depth})
            depth_range = depth_range.normalise(self._depth, timestamp)
            clock.lap("depth")
        if slot.condition is not None:
            self._engines["condition"].run(
                {"rgb": self._stage_rgb["condition"]}, {"condition": slot.condition}
            )
            clock.lap("condition")
        self._engines["encode"].run(
            {"rgbd": self._rgbd},
            {"tokens": slot.tokens, "features": slot.features, "gaussians": slot.gaussians},
        )
        clock.lap("encode")
        return depth_range

    def _deform(self, earlier: KeyFrameSlot, later: KeyFrameSlot) -> None:
        """Motion and fade of a pair into the spare pair buffers."""
        inputs: dict[str, np.ndarray] = {}
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
        splats = self.lifecycle.at(timestamp)
        buffers = self._rasterizer.render(
            splats,
            background=self.model.background if background is None else background,
            view=view,
            extent=extent,
            out=self.buffers,
        )
        to_bytes(buffers.rgb, self._float, self._rgb)
        rgb, depth, expected, alpha = self._rgb, buffers.depth, buffers.expected_depth, buffers.alpha
        if copy:
            rgb, depth, expected, alpha = rgb.copy(), depth.copy(), expected.copy(), alpha.copy()
        latency = (time.perf_counter() - start) * 1e3
        stats = FrameStats(latency, self.lifecycle.stats, buffers.stats)
        return Frame(rgb, depth, expected, alpha, timestamp, stats)

    def reset(self) -> None:
        """Retire all Gaussians, as after a cut; time stamps may start anew."""
        self._check_open()
        self.lifecycle.reset()

    def warm_up(self) -> None:
        """Run every stage once on the spare buffers, so that the first push is as fast as the others."""
        slot = self.lifecycle.spare
        self._encode(slot, _Clock(), DepthRange(), 0.0)
        self._deform(slot, slot)

    def fork(self) -> Stream:
        """Another stream over the same engines, with Gaussians and buffers of its own.

        Engines are what costs memory and time to load; they are closed with the last of the streams. All
        streams of a family belong to one thread: the engines run one pair at a time.
        """
        self._check_open()
        for engine in self._engines.values():
            engine.reserve(len(self._shares) + 1)
        return Stream(self.bundle, self._engines, threads=self._threads, shares=self._shares)

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
        device: `cpu`, or `cuda` with the CUDA build of ONNX Runtime.
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
        for stage in bundle.stage_names:
            variant = engines.select_variant(bundle, stage, engine, precision)
            stages[stage] = engines.create(
                engine, variant, device=device, threads=threads, precision=precision
            )
        stream = Stream(bundle, stages, threads=threads)
        stream.warm_up()
    except BaseException:
        for loaded in stages.values():
            loaded.close()
        raise
    return stream


def to_bytes(image: np.ndarray, scratch: np.ndarray, out: np.ndarray) -> None:
    """Round a float image in [0, 1] to uint8 in `out`, clamped. `scratch` is float32 of the same shape."""
    np.multiply(image, np.float32(255), out=scratch)
    np.rint(scratch, out=scratch)
    np.clip(scratch, 0, 255, out=scratch)
    np.copyto(out, scratch, casting="unsafe")


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"A time stamp must be a number of seconds, not {type(value).__name__}.")
    return float(value)
