"""One device and the streams that are placed on it: one model, one thread, fair turns. No Ray here."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from ..bundle import Bundle
from ..errors import DeviceLostError, EngineError, StreamSplatError, UnexpectedError, as_error
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
    """A stream on this device. `stop` ends it, from any thread.

    Attributes:
        job: once it runs. error: why it never did. last: what was reported.
    """

    spec: StreamSpec
    reader: VideoReader
    start: int
    emit: Emit
    stopped: bool = False
    job: Job | None = None
    error: StreamSplatError | None = None
    last: Progress = field(default_factory=Progress)
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
        self._over = False  # nothing that arrives will run
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def place(self, spec: StreamSpec, emit: Emit, *, after: int = -1) -> Placement:
        """Opens the source, which may take seconds, and runs the stream.

        Args:
            emit: gets every frame, and once `ended`, in the device's thread. What is cut short because the
                device closes or fails ends with `elsewhere`.
            after: of a recording, the last frame that was delivered before; live sources go on from now.

        Raises:
            VideoError: the source cannot be opened. EngineError: the device is closed or has failed.
        """
        reader = open_video(spec.uri, threads=1, live=LiveOptions(silence_seconds=spec.silence_seconds))
        placement = Placement(spec, reader, 0 if reader.live else after + 1, emit)
        with self._lock:
            if not self._over:
                self._arriving.append(placement)
                return placement
        reader.close()
        raise EngineError("The device runs no streams any more.", "Ask for the stream on another one.")

    def alive(self) -> bool:
        """False once the device serves nothing any more: closed, lost, or after a defect in its thread."""
        return self._thread.is_alive() and not self._over

    def close(self) -> None:
        """Ends all streams and frees the model."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        reason: StreamSplatError = EngineError("The replica was closed.")
        try:
            with closing(run_fairly([], stopped=self._closed.is_set, joining=self._joining)) as frames:
                for job, rendered in frames:
                    placement = next(each for each in self._placed if each.job is job)
                    try:
                        _report(placement, rendered)
                    except Exception as error:
                        job.fail(error)
        except Exception as error:
            reason = as_error(error, "The device's thread")
            _log(reason)
        finally:
            with self._lock:
                self._over, arriving = True, self._arriving
            for placement in (*self._placed, *arriving):
                self._end(placement, reason)
            self._first.close()

    def _joining(self) -> list[Job]:
        """Jobs for what arrived, after parting with what is over. In the device's thread."""
        for placement in [each for each in self._placed if each.job is not None and each.job.done]:
            if placement.job is not None and isinstance(placement.job.error, DeviceLostError):
                raise placement.job.error  # nor would any other stream run here
            self._placed.remove(placement)
            self._end(placement)
        with self._lock:
            arriving, self._arriving = self._arriving, []
        jobs = []
        for placement in arriving:
            try:
                jobs.append(self._job(placement))
            except Exception as error:
                placement.error = as_error(error, placement.spec.name)
                self._end(placement)
            else:
                self._placed.append(placement)
        return jobs

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

    def _end(self, placement: Placement, reason: StreamSplatError | None = None) -> None:
        """Frees what the stream used and reports its end; `reason`: why the device ends it, if it does."""
        job, reader, last = placement.job, placement.reader, placement.last
        error = placement.error if job is None else job.error
        elsewhere = reason is not None and (error is None or isinstance(error, DeviceLostError))
        try:
            if job is not None:
                last = replace(last, dropped=job.pipeline.dropped)
                job.pipeline.stream.close()
            reader.close()
        except Exception as failure:  # the stream is over all the same, and the others are not
            _log(as_error(failure, placement.spec.name))
        if error is None and reason is not None:
            error = reason
        _log(error)
        message, hint = (reader.truncated or "", "") if error is None else (error.message, error.hint)
        last = replace(last, png=None, ended=True, error=message, hint=hint, elsewhere=elsewhere)
        try:
            placement.emit(last)
        except Exception as failure:
            _log(as_error(failure, placement.spec.name))


def _log(error: StreamSplatError | None) -> None:
    """The traceback of what nobody foresaw; on stderr, which Ray keeps per replica."""
    if isinstance(error, UnexpectedError):
        traceback.print_exception(error)


def _report(placement: Placement, rendered: Rendered) -> None:
    now, reader = time.perf_counter(), placement.reader
    png = None
    if now - placement.pictured > PICTURE_SECONDS:
        placement.pictured, png = now, encode_png(rendered.frame.rgb, level=1)
    captured = getattr(rendered.source, "captured", None)
    placement.last = Progress(
        frames=placement.last.frames + 1,
        position=rendered.source.index,
        captured=time.time() - (now - captured if captured is not None else 0.0),
        rate=float(reader.rate),
        live=reader.live,
        dropped=placement.job.pipeline.dropped if placement.job is not None else 0,
        pid=os.getpid(),
        png=png,
    )
    placement.emit(placement.last)
