"""Several streams on one device, fairly: the stream that has had least of the device goes next.

    first = open_stream(bundle)
    jobs = [Job("a", Pipeline(reader_a, first)), Job("b", Pipeline(reader_b, first.fork()))]
    for job, rendered in run_fairly(jobs): ...

A turn is one source frame of one stream: mostly little, now and then a key frame and the renders that waited
for it. What a turn costs is measured and charged to the stream, so a stream with larger or more frames does
not get more of the device, and a stream with few frames gets them served at once. A stream that was idle does
not save up turns for later (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996).

One thread does all the work, because the streams share engines; decoding runs ahead in a thread per stream. A
stream that fails, however it does, ends with its error in `Job.error`, and the others go on. Where what the
caller does with the frames of one stream fails, `Job.fail` ends that stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

from .errors import InputError, StreamSplatError, as_error
from .pipeline import Pipeline, Rendered
from .prefetch import Prefetcher

_WAIT_SECONDS = 0.1  # between looks at who wants to stop or has been silent


@dataclass(eq=False)
class Job:
    """One stream of several.

    Attributes:
        name: for messages. pipeline: not started yet.
        weight: share of the device relative to the others, where there is not enough for all.
        service: seconds of the device so far, with what the caller did with the frames. turns: frames taken.
        error: why the stream ended, None where its source did; an `UnexpectedError` where nobody foresaw it.
        done: no more frames will come.
    """

    name: str
    pipeline: Pipeline
    weight: float = 1.0
    service: float = 0.0
    turns: int = 0
    error: StreamSplatError | None = None
    done: bool = False
    _decoder: Prefetcher | None = field(default=None, repr=False)
    _start: float = 0.0  # virtual time of the next turn: what was charged, weighted
    _was_ready: bool = field(default=False, repr=False)
    _arrived: float = field(default=0.0, repr=False)  # perf_counter of the last frame

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InputError(f"The weight of {self.name} is {self.weight}.", "Use a positive number.")

    def fail(self, error: Exception) -> None:
        """Ends the stream: no more frames of it come. The first error is the one that counts."""
        if self.error is None:
            self.error = as_error(error, self.name)
        self.done = True


class FairQueue:
    """Whose turn it is, by virtual time. No clocks and no threads: the caller says what each turn cost."""

    def __init__(self) -> None:
        self._now = 0.0  # virtual start of the turn in service

    def choose(self, ready: Sequence[Job]) -> Job:
        """Whose turn it is. `ready`: every job that has something to do now, at least one."""
        for job in ready:
            if not job._was_ready:  # was idle: begins now, with no claim on the past
                job._start = max(job._start, self._now)
                job._was_ready = True
        chosen = min(ready, key=lambda job: job._start)
        self._now = chosen._start
        return chosen

    def charge(self, job: Job, seconds: float) -> None:
        """Book the seconds that a turn of `job` took."""
        job._start += seconds / job.weight
        job.service += seconds
        job.turns += 1
        job._was_ready = False


def run_fairly(
    jobs: Sequence[Job],
    *,
    stopped: Callable[[], bool] = lambda: False,
    joining: Callable[[], Iterable[Job]] | None = None,
) -> Generator[tuple[Job, Rendered], None, None]:
    """Runs all jobs to their ends. Yields frames as they are rendered; closing it stops the decoding threads.

    While the caller holds a frame, the job's stream is at that frame's interval. Time the caller spends is
    charged to the job.

    Args:
        jobs: pipelines over forks of one stream (`Stream.fork`), which share its engines.
        stopped: asked between turns; True ends all jobs as if their sources had ended.
        joining: asked between turns for further jobs. With it, the run goes on when all jobs are done.
    """
    changed, queue = threading.Condition(), FairQueue()
    active: list[Job] = []
    arriving: Iterable[Job] = jobs
    try:
        while not stopped():
            for job in arriving:
                if _start(job, changed):
                    active.append(job)
            if not active and joining is None:
                return
            with changed:
                changed.wait_for(lambda: any(_ready(job) for job in active), _WAIT_SECONDS)
                ready = [job for job in active if _ready(job) and not job.done]
            for job in active:
                if job not in ready and not job.done and job.pipeline.silent(job._arrived):
                    yield from _turn(job, queue)
            if ready:
                yield from _turn(queue.choose(ready), queue)
            for job in [job for job in active if job.done]:
                active.remove(job)
                _stop(job)
            arriving = () if joining is None else joining()
        for job in active:
            yield from _guarded(job, job.pipeline.flush)
            job.done = True
    finally:
        for job in active:
            _stop(job)


def _start(job: Job, changed: threading.Condition) -> bool:
    """Whether the stream runs now."""
    try:
        job._decoder, job._arrived = job.pipeline.start(changed), time.perf_counter()
    except Exception as error:
        job.fail(error)
        _stop(job)
        return False
    return True


def _stop(job: Job) -> None:
    try:
        job.pipeline.stop()
    except Exception as error:
        job.fail(error)


def _ready(job: Job) -> bool:
    """Whether there is something to do: a turn, or to part with the stream."""
    assert job._decoder is not None
    try:
        return job.done or job._decoder.ready or job.pipeline.done
    except Exception as error:
        job.fail(error)
        return True


def _turn(job: Job, queue: FairQueue) -> Generator[tuple[Job, Rendered], None, None]:
    """One frame of one stream, or the end of what waits where it is silent or over."""
    began = time.perf_counter()
    yield from _guarded(job, lambda: _due(job))
    job._arrived = time.perf_counter()
    queue.charge(job, job._arrived - began)


def _due(job: Job) -> Iterable[Rendered]:
    pipeline, decoder = job.pipeline, job._decoder
    assert decoder is not None
    if pipeline.done:
        yield from pipeline.flush()
        job.done = True
    elif (arrival := decoder.take(0.0)) is not None:
        yield from pipeline.feed(arrival)
    else:
        yield from pipeline.pause()


def _guarded(
    job: Job, frames: Callable[[], Iterable[Rendered]]
) -> Generator[tuple[Job, Rendered], None, None]:
    """Frames of a stream until they end or fail, or the caller ends the stream (`Job.fail`)."""
    try:
        for rendered in frames():
            yield job, rendered
            if job.done:
                return
    except Exception as error:
        job.fail(error)
