"""From a video to rendered frames: choice of key frames, scene cuts, timing, sinks.

Each source frame is rendered once, in source order, at its own time. Key frames are frame 0, every gap-th
frame after it (or sooner, where a rule of `key_frames` says so), the last frame and the last one before a
scene cut. A frame can be rendered only when the key frame after it has arrived, so output runs up to `gap`
frames behind the input. At the time of a key frame the pair that ends there is rendered, and for the first
frame of a scene the pair that begins there, as the published script does (REFERENCE.md section 4); a scene of
one frame is rendered as it is.

What breaks a live stream (`VideoFrame.segment`: a lost connection, a long pause) is treated as a cut. Where a
live source falls silent, what waits is finished without the frames to come.

Decoding runs ahead in a thread (`prefetch`); everything else happens in the caller's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bundle_schema import KEY_FRAME_GAP_MAX
from .errors import InputError
from .key_frames import KeyFrameRule
from .observers import Observer, spawned_event
from .pipeline_options import PipelineOptions
from .prefetch import Decoded, Prefetcher
from .rasterizer import Extent
from .run_report import RunReport
from .scene_cut import SceneCutDetector
from .source_frame import ArrivedFrame, SourceFrame
from .stream import Frame, PushStats, Stream
from .timing import LatencyRecorder

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in `typing` from Python 3.11 on

__all__ = ["IDLE_SECONDS", "Pipeline", "Rendered", "RunReport", "Sink", "SourceFrame", "run_video"]

IDLE_SECONDS = 1.0
_POLL_SECONDS = 0.1


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


class Pipeline:
    """Iterates over `Rendered` frames of one video; `report` gives the totals at any moment.

    While the caller holds a frame, the stream is at that frame's interval and may render other views of it.

    Args:
        reader: yields frames in time order (`open_video`, or any iterable of `SourceFrame`).
        stream: pushed to and rendered from. It is reset first, so that it can serve one video after another.
        gap: source frames per pair of key frames; None takes the model's. rule: may end a pair sooner.
        detect_cuts: look for scene cuts.
        background, extent, depth: see `Stream.render`; the frames of an interval are rendered by one call of
            `Stream.render_many`.
        prefetch: frames decoded ahead. live: drop waiting frames rather than fall behind (cameras).
        idle_seconds: without a frame, after which a live source counts as silent.
        stopped: asked between frames and while waiting for one; True ends the run as if the source had ended.
        max_frames: stop after so many source frames.
        recorder: where latencies go; the default keeps the last 100,000 samples of each stage.
        observers: told of key frames and rendered frames, in this order (`observers`).
    """

    def __init__(
        self,
        reader: Iterable[SourceFrame],
        stream: Stream,
        *,
        gap: int | None = None,
        rule: KeyFrameRule | None = None,
        detect_cuts: bool = True,
        background: Sequence[float] | None = None,
        extent: Extent = "published",
        depth: bool = True,
        prefetch: int = 4,
        live: bool = False,
        idle_seconds: float = IDLE_SECONDS,
        stopped: Callable[[], bool] | None = None,
        max_frames: int | None = None,
        recorder: LatencyRecorder | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.gap = stream.model.key_frame_gap if gap is None else gap
        if not 1 <= self.gap <= KEY_FRAME_GAP_MAX:
            raise InputError(
                f"The key-frame gap is {self.gap}.",
                f"Use 1 to {KEY_FRAME_GAP_MAX} frames: a pair's frames wait in memory for its end.",
            )
        if prefetch < 1:
            raise InputError(f"prefetch is {prefetch}.", "Use 1 or more frames.")
        if not idle_seconds > 0:  # also refuses NaN
            raise InputError(f"idle_seconds is {idle_seconds}.", "Use more than 0.")
        if max_frames is not None and max_frames < 1:
            raise InputError(f"max_frames is {max_frames}.", "Use 1 or more frames.")
        self.stream = stream
        self.recorder = LatencyRecorder(capacity=100_000) if recorder is None else recorder
        self._reader = reader
        self._detector = SceneCutDetector() if detect_cuts else None
        self._background = background
        self._extent = extent
        self._depth = depth
        self._prefetch = prefetch
        self._live = live
        self._idle = idle_seconds if live else None
        self._stopped = stopped
        self._max_frames = max_frames
        self._rule = rule
        self._observers = tuple(observers)
        self._waiting: list[ArrivedFrame] = []  # of the current scene, not rendered yet, in order
        self._unpushed = 0  # how many of them came after the last key frame
        self._last_time: float | None = None
        self._segment = 0
        self._taken = 0
        self._decoder: Prefetcher[SourceFrame] | None = None
        self._totals = RunReport()
        self._start: float | None = None
        self._end = 0.0
        self._pushes: list[PushStats] = []

    def __iter__(self) -> Iterator[Rendered]:
        return self.frames()

    def frames(self) -> Generator[Rendered, None, None]:
        """The iteration as a generator; closing it stops the decoding thread."""
        try:
            decoder = self.start()
            arrived = time.perf_counter()
            polls = self._idle is not None or self._stopped is not None
            while not self.done:
                arrival = decoder.take(_POLL_SECONDS if polls else None)
                if arrival is not None:
                    yield from self.feed(arrival)
                    arrived = time.perf_counter()
                elif self.silent(arrived):
                    yield from self.pause()
            yield from self.flush()
        finally:
            self.stop()

    # The parts of `frames`, for a scheduler that interleaves several pipelines (`schedule`).

    def start(self, changed: threading.Condition | None = None) -> Prefetcher[SourceFrame]:
        """Begin to decode. `changed` is notified of arrivals. Once per pipeline; `stop` must follow."""
        if self._start is not None:
            raise InputError("This pipeline has run already.", "Make a new one for another run.")
        self._start = self._end = time.perf_counter()
        self.stream.reset()
        for observer in self._observers:
            observer.began(self)
        self._decoder = Prefetcher(self._reader, depth=self._prefetch, latest=self._live, changed=changed)
        return self._decoder

    @property
    def done(self) -> bool:
        """Whether no more frames are to be fed: the source ended, enough were taken, or `stopped` says so."""
        assert self._decoder is not None, "start first"
        enough = self._max_frames is not None and self._taken >= self._max_frames
        return enough or self._decoder.ended or (self._stopped is not None and self._stopped())

    def feed(self, arrival: Decoded[SourceFrame]) -> Iterator[Rendered]:
        """Take one decoded frame; yields the frames that can be rendered because of it."""
        entry = ArrivedFrame.of(arrival)
        source = entry.source
        self.recorder.add("decode", entry.decode_ms)
        if self._last_time is not None and source.timestamp <= self._last_time:
            self._totals.skipped += 1
            return
        self._last_time = source.timestamp
        entry.is_cut = self._is_cut(entry)
        broken = self._taken > 0 and entry.segment != self._segment
        self._segment = entry.segment
        if entry.is_cut or broken or self._taken == 0:
            yield from self.flush()
            self._totals.cuts += entry.is_cut
            self._totals.breaks += broken and not entry.is_cut
            self._push(entry, cut=entry.is_cut or broken)
            self._waiting.append(entry)
        else:
            self._waiting.append(entry)
            self._unpushed += 1
            due = self._rule is not None and self._rule.due(entry.image)
            if due or self._unpushed >= self.gap:
                yield from self.flush()
        self._taken += 1

    def flush(self) -> Iterator[Rendered]:
        """Make the latest frame a key frame, where it is none yet, and render everything that waits."""
        waiting, self._waiting = self._waiting, []
        if self._unpushed:
            self._push(waiting[-1])
        self._unpushed = 0
        yield from self._render(waiting)

    @property
    def dropped(self) -> int:
        """Frames left out so far to keep up with a live source, by the source and here."""
        here = 0 if self._decoder is None else self._decoder.dropped
        return here + int(getattr(self._reader, "dropped", 0))

    def silent(self, since: float) -> bool:
        """Whether a live source that gave its last frame at `since` (perf_counter) counts as silent now."""
        return self._idle is not None and time.perf_counter() - since >= self._idle

    def pause(self) -> Iterator[Rendered]:
        """The source is silent: finish what waits for its next frame. Nothing, where nothing waits."""
        self._totals.pauses += bool(self._waiting)
        yield from self.flush()

    def stop(self) -> None:
        """End decoding. Calling twice is harmless."""
        if self._decoder is not None:
            self._decoder.close()
            self._totals.dropped = self.dropped
        observers, self._observers = self._observers, ()
        for observer in observers:
            observer.ended()

    def _is_cut(self, entry: ArrivedFrame) -> bool:
        if self._detector is None:
            return False
        with self.recorder.measure("scene_cut"):
            if isinstance(entry.picture, np.ndarray):
                return self._detector.is_cut(entry.picture)
            return self._detector.is_cut_of(self.stream.scene.sample(entry.picture))

    def _push(self, entry: ArrivedFrame, *, cut: bool = False) -> None:
        entry.is_key = True
        if self._rule is not None:
            self._rule.began(entry.image)
        stats = self.stream.push(entry.picture, entry.source.timestamp, cut=cut)
        self.recorder.update(stats.latencies)
        self._totals.add_push(stats)
        self._pushes.append(stats)
        if self._observers:
            event = spawned_event(self.stream.scene.on_host(), entry.source, stats, is_cut=cut)
            with self.recorder.measure("observe"):
                for observer in self._observers:
                    observer.spawned(event)

    def _render(self, waiting: list[ArrivedFrame]) -> Iterator[Rendered]:
        frames = self.stream.render_many(
            [entry.source.timestamp for entry in waiting],
            background=self._background,
            extent=self._extent,
            depth=self._depth,
        )
        for entry, frame in zip(waiting, frames, strict=True):
            self.recorder.add("render", frame.stats.latency)
            pushes, self._pushes = tuple(self._pushes), []
            rendered = Rendered(entry.source, frame, entry.is_key, entry.is_cut, pushes)
            if self._observers:
                with self.recorder.measure("observe"):
                    for observer in self._observers:
                        observer.rendered(rendered)
            self._totals.add_render(frame.stats.render)  # not before: one that fails here is nobody's
            yield rendered
            # Back from the caller, who has written the frame by now.
            self._end = time.perf_counter()
            self.recorder.add("capture_to_present", (self._end - entry.captured) * 1e3)

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
    **options: Unpack[PipelineOptions],
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
