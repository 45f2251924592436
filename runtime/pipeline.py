"""From a video to rendered frames: key frames every `gap` frames, scene cuts, timing, sinks.

Each source frame is rendered once, in source order, at its own time. Frame 0, every gap-th frame after it,
the last frame and the last one before a scene cut are key frames. A frame can be rendered only when the key
frame after it has arrived, so output runs up to `gap` frames behind the input. At the time of a key frame
the pair that ends there is rendered, and for the first frame of a scene the pair that begins there, as the
published script does (REFERENCE.md section 4); a scene of one frame is rendered as it is.

Decoding runs ahead in a thread (`prefetch`); everything else happens in the caller's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .bundle_schema import KEY_FRAME_GAP_MAX
from .errors import InputError
from .prefetch import Prefetcher
from .preprocess import check_image
from .rasterizer import Extent
from .scene_cut import SceneCutDetector
from .stream import Frame, PushStats, Stream
from .timing import LatencyRecorder


class SourceFrame(Protocol):
    """What a video reader yields: uint8 RGB [h, w, 3], seconds (strictly increasing), the frame's number."""

    @property
    def image(self) -> np.ndarray: ...
    @property
    def timestamp(self) -> float: ...
    @property
    def index(self) -> int: ...


@dataclass(frozen=True)
class Rendered:
    """One output frame.

    Attributes:
        source: the frame it reconstructs. frame: what was rendered at its time.
        is_key: the source frame is a key frame. is_cut: it begins a new scene.
        pushes: of the key frames since the previous output frame (their latencies belong to this one),
            mostly none.
    """

    source: SourceFrame
    frame: Frame
    is_key: bool
    is_cut: bool
    pushes: tuple[PushStats, ...]


Sink = Callable[[Rendered], None]


@dataclass
class RunReport:
    """Totals of a run.

    Attributes:
        frames: rendered. key_frames: pushed. cuts: scene cuts found. skipped: source frames whose time
            stamp was not later than the one before. dropped: source frames left out to keep up with a live
            source.
        seconds, fps: wall clock from first decode to last write (see `Pipeline.finished`), and frames per
            second of it.
        spawned, retired: Gaussians over the run. culled: by reason, summed over frames; rendered, pairs:
            likewise.
        peak_alive: most Gaussians alive at once.
        interrupted: the run was ended by Ctrl-C; the totals are of what was done.
        latencies_ms: per stage count, min, p50, p90, p95, p99, max, mean, std, cv.
    """

    frames: int = 0
    key_frames: int = 0
    cuts: int = 0
    skipped: int = 0
    dropped: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    spawned: int = 0
    retired: int = 0
    peak_alive: int = 0
    rendered: int = 0
    culled: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    interrupted: bool = False
    latencies_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class _Waiting:
    """A source frame that waits for the key frame after it."""

    source: SourceFrame
    decoded: float  # perf_counter when it was decoded
    decode_ms: float
    is_key: bool = False
    is_cut: bool = False


class Pipeline:
    """Iterates over `Rendered` frames of one video; `report` gives the totals at any moment.

    While the caller holds a frame, the stream is at that frame's interval and may render other views of it.

    Args:
        reader: yields frames in time order (`open_video`, or any iterable of `SourceFrame`).
        stream: pushed to and rendered from. It is reset first, so that it can serve one video after another.
        gap: source frames per pair of key frames; None takes the model's.
        detect_cuts: look for scene cuts.
        background, extent: see `Stream.render`.
        prefetch: frames decoded ahead. live: drop waiting frames rather than fall behind (cameras).
        max_frames: stop after so many source frames.
        recorder: where latencies go; the default keeps the last 100,000 samples of each stage.
    """

    def __init__(
        self,
        reader: Iterable[SourceFrame],
        stream: Stream,
        *,
        gap: int | None = None,
        detect_cuts: bool = True,
        background: Sequence[float] | None = None,
        extent: Extent = "published",
        prefetch: int = 4,
        live: bool = False,
        max_frames: int | None = None,
        recorder: LatencyRecorder | None = None,
    ) -> None:
        self.gap = stream.model.key_frame_gap if gap is None else gap
        if not 1 <= self.gap <= KEY_FRAME_GAP_MAX:
            raise InputError(
                f"The key-frame gap is {self.gap}.",
                f"Use 1 to {KEY_FRAME_GAP_MAX} frames: a pair's frames wait in memory for its end.",
            )
        if prefetch < 1:
            raise InputError(f"prefetch is {prefetch}.", "Use 1 or more frames.")
        if max_frames is not None and max_frames < 1:
            raise InputError(f"max_frames is {max_frames}.", "Use 1 or more frames.")
        self.stream = stream
        self.recorder = LatencyRecorder(capacity=100_000) if recorder is None else recorder
        self._reader = reader
        self._detector = SceneCutDetector() if detect_cuts else None
        self._background = background
        self._extent = extent
        self._prefetch = prefetch
        self._live = live
        self._max_frames = max_frames
        self._totals = RunReport()
        self._start: float | None = None
        self._end = 0.0
        self._pushes: list[PushStats] = []

    def __iter__(self) -> Iterator[Rendered]:
        return self.frames()

    def frames(self) -> Generator[Rendered, None, None]:
        """The iteration as a generator; closing it stops the decoding thread."""
        if self._start is not None:
            raise InputError("This pipeline has run already.", "Make a new one for another run.")
        self._start = self._end = time.perf_counter()
        self.stream.reset()
        with Prefetcher(self._reader, depth=self._prefetch, latest=self._live) as decoded:
            try:
                yield from self._run(decoded)
            finally:
                self._totals.dropped = decoded.dropped

    def _run(self, decoded: Prefetcher[SourceFrame]) -> Iterator[Rendered]:
        waiting: list[_Waiting] = []  # of the current scene, not rendered yet, in order
        unpushed = 0  # how many of them came after the last key frame
        last_time: float | None = None
        taken = 0
        for arrival in decoded:
            source = arrival.item
            check_image(source.image)
            self.recorder.add("decode", arrival.milliseconds)
            if last_time is not None and source.timestamp <= last_time:
                self._totals.skipped += 1
                continue
            last_time = source.timestamp
            entry = _Waiting(source, arrival.at, arrival.milliseconds)
            entry.is_cut = self._is_cut(source)
            if entry.is_cut or taken == 0:
                if unpushed:
                    self._push(waiting[-1])
                yield from self._render(waiting)
                self._totals.cuts += entry.is_cut
                self._push(entry, cut=entry.is_cut)
                waiting, unpushed = [entry], 0
            else:
                waiting.append(entry)
                unpushed += 1
                if unpushed == self.gap:
                    self._push(entry)
                    yield from self._render(waiting)
                    waiting, unpushed = [], 0
            taken += 1
            if taken == self._max_frames:
                break
        if unpushed:
            self._push(waiting[-1])
        yield from self._render(waiting)

    def _is_cut(self, source: SourceFrame) -> bool:
        if self._detector is None:
            return False
        with self.recorder.measure("scene_cut"):
            return self._detector.is_cut(source.image)

    def _push(self, entry: _Waiting, *, cut: bool = False) -> None:
        entry.is_key = True
        stats = self.stream.push(entry.source.image, entry.source.timestamp, cut=cut)
        self.recorder.update(stats.latencies)
        totals = self._totals
        totals.key_frames += 1
        totals.spawned += stats.spawned
        totals.retired += stats.retired
        totals.peak_alive = max(totals.peak_alive, stats.alive)
        self._pushes.append(stats)

    def _render(self, waiting: list[_Waiting]) -> Iterator[Rendered]:
        for entry in waiting:
            frame = self.stream.render(
                entry.source.timestamp, background=self._background, extent=self._extent
            )
            self.recorder.add("render", frame.stats.latency)
            pushes, self._pushes = tuple(self._pushes), []
            self._count(frame)
            yield Rendered(entry.source, frame, entry.is_key, entry.is_cut, pushes)
            # Back from the caller, who has written the frame by now.
            self._end = time.perf_counter()
            self.recorder.add("capture_to_present", (self._end - entry.decoded) * 1e3 + entry.decode_ms)

    def _count(self, frame: Frame) -> None:
        totals, stats = self._totals, frame.stats.render
        totals.frames += 1
        totals.rendered += stats.rendered
        totals.pairs += stats.pairs
        for name, value in vars(stats).items():
            if name.startswith("culled_"):
                reason = name.removeprefix("culled_")
                totals.culled[reason] = totals.culled.get(reason, 0) + value

    def finished(self) -> None:
        """Count the time until now as part of the run; for callers that complete files after the frames."""
        self._end = time.perf_counter()

    def report(self) -> RunReport:
        """Totals so far, with percentiles of every stage."""
        totals = self._totals
        totals.seconds = self._end - self._start if self._start is not None else 0.0
        totals.fps = totals.frames / totals.seconds if totals.seconds > 0 else 0.0
        totals.latencies_ms = self.recorder.summary()
        return totals


def run_video(
    reader: Iterable[SourceFrame],
    stream: Stream,
    sinks: Sink | Sequence[Sink] = (),
    **options: Any,
) -> RunReport:
    """Run a whole video through a stream, handing each rendered frame to every sink in turn.

    Ctrl-C ends the run cleanly: decoding stops and the report, marked `interrupted`, is returned, so that
    the caller can finish its files. Errors of the reader, the stages and the sinks are raised after
    decoding has stopped.

    Args:
        reader: see `Pipeline`. It is not closed here.
        sinks: called with each `Rendered`; timed together as `write`.
        options: as for `Pipeline`.
    """
    calls = (sinks,) if callable(sinks) else tuple(sinks)
    pipeline = Pipeline(reader, stream, **options)
    interrupted = False
    # `closing` runs the generator's cleanup now, not when it is collected.
    with closing(pipeline.frames()) as frames:
        try:
            for rendered in frames:
                if not calls:
                    continue
                with pipeline.recorder.measure("write"):
                    for sink in calls:
                        sink(rendered)
        except KeyboardInterrupt:
            interrupted = True
    report = pipeline.report()
    report.interrupted = interrupted
    return report
