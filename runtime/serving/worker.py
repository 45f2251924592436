"""One device and the streams that are placed on it: one model, one thread, fair turns. No Ray here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from ..bundle import Bundle
from ..errors import StreamSplatError
from ..key_frames import MotionGap
from ..pipeline import Pipeline, Rendered
from ..schedule import Job, run_fairly
from ..sources import LiveOptions
from ..stream import open_stream
from ..video import DecodedFrame, VideoReader, encode_png, open_video
from .spec import Progress, StreamSpec

Emit = Callable[[Progress], None]
PICTURE_SECONDS = 0.5  # a rendered picture is encoded so often


class _From:
    """The frames of a reader from number `start` on: those before are decoded and passed over."""

    def __init__(self, reader: VideoReader, start: int) -> None:
        self._reader, self._start = reader, start

    @property
    def dropped(self) -> int:
        return self._reader.dropped

    def __iter__(self) -> Iterator[DecodedFrame]:
        for frame in self._reader:
            if frame.index >= self._start:
                yield frame


@dataclass(eq=False)
class Placement:
    """A stream on this device. `stop` ends it, from any thread."""

    spec: StreamSpec
    reader: VideoReader
    start: int
    emit: Emit
    stopped: bool = False
    job: Job | None = None
    frames: int = 0
    pictured: float = 0.0  # when a picture was last encoded

    def stop(self) -> None:
        self.stopped = True


class DeviceWorker:
    """Runs any number of streams on one device, in a thread of its own. Close it in the end.

    Args:
        bundle, engine, device, threads: as for `open_stream`.

    Raises:
        BundleError, EngineError: as `open_stream`.
    """

    def __init__(
        self, bundle: str, *, engine: str = "onnxruntime", device: str = "cpu", threads: int = 0
    ) -> None:
        self._first = open_stream(Bundle.load(bundle), engine=engine, device=device, threads=threads)
        self._lock = threading.Lock()
        self._arriving: list[Placement] = []
        self._placed: list[Placement] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def place(self, spec: StreamSpec, emit: Emit, *, after: int = -1) -> Placement:
        """Opens the source, which may take seconds, and runs the stream.

        Args:
            emit: gets every frame, and once `ended`, in the device's thread.
            after: of a recording, the last frame that was delivered before; live sources go on from now.

        Raises:
            VideoError: the source cannot be opened.
        """
        reader = open_video(spec.uri, threads=1, live=LiveOptions(silence_seconds=spec.silence_seconds))
        placement = Placement(spec, reader, 0 if reader.live else after + 1, emit)
        with self._lock:
            self._arriving.append(placement)
        return placement

    def alive(self) -> bool:
        """False after a defect in the thread: the device serves nothing any more."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends all streams and frees the model."""
        self._closed.set()
        self._thread.join()
        for placement in self._arriving:
            placement.reader.close()

    def _work(self) -> None:
        try:
            with closing(run_fairly([], stopped=self._closed.is_set, joining=self._joining)) as frames:
                for job, rendered in frames:
                    placement = next(each for each in self._placed if each.job is job)
                    placement.emit(_progress(placement, rendered))
        finally:
            for placement in self._placed:
                self._end(placement)
            self._first.close()

    def _joining(self) -> list[Job]:
        """Jobs for what arrived, after parting with what is over. In the device's thread."""
        for placement in [each for each in self._placed if each.job is not None and each.job.done]:
            self._placed.remove(placement)
            self._end(placement)
        with self._lock:
            arriving, self._arriving = self._arriving, []
        self._placed += arriving
        return [self._job(placement) for placement in arriving]

    def _job(self, placement: Placement) -> Job:
        spec, reader = placement.spec, placement.reader
        pipeline = Pipeline(
            _From(reader, placement.start),
            self._first.fork(),
            gap=spec.gap,
            rule=MotionGap() if spec.key_frames == "motion" else None,
            live=reader.live,
            depth=False,
            stopped=lambda: placement.stopped,
        )
        placement.job = Job(spec.name, pipeline)
        return placement.job

    def _end(self, placement: Placement) -> None:
        error: StreamSplatError | None = placement.job.error if placement.job is not None else None
        if placement.job is not None:
            placement.job.pipeline.stream.close()
        placement.reader.close()
        message = error.message if error is not None else placement.reader.truncated or ""
        placement.emit(Progress(ended=True, error=message, hint=error.hint if error is not None else ""))


def _progress(placement: Placement, rendered: Rendered) -> Progress:
    now, reader = time.perf_counter(), placement.reader
    png = None
    if now - placement.pictured > PICTURE_SECONDS:
        placement.pictured, png = now, encode_png(rendered.frame.rgb, level=1)
    placement.frames += 1
    captured = getattr(rendered.source, "captured", None)
    return Progress(
        frames=placement.frames,
        position=rendered.source.index,
        captured=time.time() - (now - captured if captured is not None else 0.0),
        rate=float(reader.rate),
        live=reader.live,
        dropped=placement.job.pipeline.dropped if placement.job is not None else 0,
        pid=os.getpid(),
        png=png,
    )
