"""Several streams on one device: fair shares, no wait for who is idle, and one failure is one failure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from streamsplat_edge.runtime.errors import InputError, OutputError, UnexpectedError, VideoError
from streamsplat_edge.runtime.pipeline import Pipeline, Rendered
from streamsplat_edge.runtime.schedule import FairQueue, Job, run_fairly
from streamsplat_edge.runtime.sources import PushSource
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.video import VideoFrame

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def frames(count: int, seed: int = 0) -> list[VideoFrame]:
    base = np.random.default_rng(seed).integers(60, 190, (16, 32, 3))
    return [VideoFrame((base + i % 40).astype(np.uint8), i * 0.04, i) for i in range(count)]


def simulate(
    costs: dict[str, float], turns: int, weights: dict[str, float] | None = None
) -> dict[str, float]:
    """Seconds of service of jobs that always have something to do."""
    queue = FairQueue()
    jobs = [Job(name, None, (weights or {}).get(name, 1.0)) for name in costs]  # type: ignore[arg-type]
    for _ in range(turns):
        job = queue.choose(jobs)
        queue.charge(job, costs[job.name])
    return {job.name: job.service for job in jobs}


def test_time_is_shared_not_turns() -> None:
    service = simulate({"small": 0.001, "large": 0.02, "medium": 0.005}, 3000)
    assert max(service.values()) - min(service.values()) <= 0.021


def test_weights() -> None:
    service = simulate({"a": 0.01, "b": 0.01}, 4000, {"b": 3.0})
    assert service["b"] / service["a"] == pytest.approx(3, rel=0.01)


def test_who_was_idle_is_served_at_once_and_does_not_catch_up() -> None:
    queue = FairQueue()
    busy, rare = (Job(name, None) for name in ("busy", "rare"))  # type: ignore[arg-type]
    for _ in range(1000):
        queue.charge(queue.choose([busy]), 0.01)
    first = queue.choose([busy, rare])
    queue.charge(first, 0.01)
    order = [first.name]
    for _ in range(9):
        job = queue.choose([busy, rare])
        queue.charge(job, 0.01)
        order.append(job.name)
    assert "rare" in order[:2] and order.count("rare") == 5, "not ten seconds of its own"


def test_every_stream_comes_out_as_it_would_alone(stream: Stream) -> None:
    inputs = {"a": frames(9, 1), "b": frames(14, 2), "c": frames(2, 3)}
    wanted = {name: list(Pipeline(given, stream)) for name, given in inputs.items()}
    jobs = [Job(name, Pipeline(given, stream.fork())) for name, given in inputs.items()]
    results: dict[str, list] = {name: [] for name in inputs}
    for job, rendered in run_fairly(jobs):
        results[job.name].append(rendered)
    for name, alone in wanted.items():
        assert [r.source.index for r in results[name]] == [r.source.index for r in alone]
        assert [r.is_key for r in results[name]] == [r.is_key for r in alone]
        for mine, other in zip(results[name], alone, strict=True):
            np.testing.assert_array_equal(mine.frame.rgb, other.frame.rgb)
    assert all(job.done and job.error is None and job.service > 0 for job in jobs)
    assert [job.pipeline.report().frames for job in jobs] == [9, 14, 2]
    for job in jobs:
        job.pipeline.stream.close()


def test_an_expensive_stream_does_not_starve_the_others(stream: Stream) -> None:
    """One sink takes ten times as long; both endless inputs get the same time."""

    def endless() -> Iterator[VideoFrame]:
        index = 0
        while True:
            yield VideoFrame(np.full((16, 32, 3), index % 90, np.uint8), index * 0.04, index)
            index += 1

    jobs = [Job(name, Pipeline(endless(), stream.fork(), detect_cuts=False)) for name in ("cheap", "dear")]
    deadline = time.monotonic() + 1.5
    for job, _ in run_fairly(jobs, stopped=lambda: time.monotonic() > deadline):
        time.sleep(0.01 if job.name == "dear" else 0.001)
    cheap, dear = jobs
    assert cheap.service == pytest.approx(dear.service, rel=0.35)
    assert cheap.pipeline.report().frames > 2 * dear.pipeline.report().frames


def test_an_error_ends_one_stream_only(stream: Stream) -> None:
    def broken() -> Iterator[VideoFrame]:
        yield from frames(5)
        raise VideoError("the cable was pulled")

    jobs = [Job("bad", Pipeline(broken(), stream.fork())), Job("good", Pipeline(frames(30), stream.fork()))]
    counts = {"bad": 0, "good": 0}
    for job, _ in run_fairly(jobs):
        counts[job.name] += 1
    assert counts == {"bad": 5, "good": 30}
    assert isinstance(jobs[0].error, VideoError) and jobs[1].error is None


class Broken(Pipeline):
    """Fails in one of its steps, in a way that nobody foresaw."""

    step = ""

    def start(self, changed: Any = None) -> Any:
        return self._maybe("start") or super().start(changed)

    def feed(self, arrival: Any) -> Iterator[Rendered]:
        return self._maybe("feed" if arrival.item.index == 6 else "") or super().feed(arrival)

    def flush(self) -> Iterator[Rendered]:
        return self._maybe("flush") or super().flush()

    @property
    def done(self) -> bool:
        return self._maybe("done") or super().done

    def stop(self) -> None:
        super().stop()
        self._maybe("stop")

    def _maybe(self, step: str) -> Any:
        if step == self.step:
            raise IndexError("list index out of range")


@pytest.mark.parametrize("step", ["start", "feed", "flush", "done", "stop"])
def test_a_defect_in_one_stream_ends_that_one_only(stream: Stream, step: str) -> None:
    broken = Broken(frames(12), stream.fork())
    broken.step = step
    jobs = [Job("bad", broken), Job("good", Pipeline(frames(30), stream.fork()))]
    good = sum(1 for job, _ in run_fairly(jobs) if job.name == "good")
    assert good == 30 and jobs[1].error is None and all(job.done for job in jobs)
    error = jobs[0].error
    assert isinstance(error, UnexpectedError) and isinstance(error.__cause__, IndexError)
    assert "bad: " in error.message and "IndexError: list index out of range" in error.message and error.hint


def test_a_defect_in_a_reader_ends_its_stream_only(stream: Stream) -> None:
    def broken() -> Iterator[VideoFrame]:
        yield from frames(5)
        raise MemoryError

    jobs = [Job("bad", Pipeline(broken(), stream.fork())), Job("good", Pipeline(frames(30), stream.fork()))]
    counts = {"bad": 0, "good": 0}
    for job, _ in run_fairly(jobs):
        counts[job.name] += 1
    assert counts == {"bad": 5, "good": 30}
    assert jobs[0].error is not None and "not enough memory" in jobs[0].error.hint


def test_what_waits_at_the_end_may_fail_for_one_stream_only(stream: Stream) -> None:
    broken = Broken(frames(500), stream.fork())
    jobs = [Job("bad", broken), Job("good", Pipeline(frames(500), stream.fork()))]
    count, last = 0, False

    def stopped() -> bool:
        if count >= 10:
            broken.step = "flush"
        return count >= 10

    for job, rendered in run_fairly(jobs, stopped=stopped):
        count += 1
        last = rendered.is_key if job.name == "good" else last
    assert isinstance(jobs[0].error, UnexpectedError) and jobs[1].error is None
    assert last, "what waited of the other was finished"


def test_the_caller_can_end_one_stream(stream: Stream) -> None:
    """As when its outputs fail: no frame of it comes any more, also not of the turn that is under way."""
    jobs = [
        Job("full", Pipeline(frames(30), stream.fork())),
        Job("good", Pipeline(frames(30), stream.fork())),
    ]
    counts = {"full": 0, "good": 0}
    for job, _ in run_fairly(jobs):
        counts[job.name] += 1
        if counts["full"] == 6 and job.name == "full":
            job.fail(OutputError("no space left"))
            job.fail(OutputError("and again"))
    assert counts == {"full": 6, "good": 30}
    assert isinstance(jobs[0].error, OutputError) and jobs[0].error.message == "no space left"


def test_a_silent_stream_holds_up_nobody_and_is_finished(stream: Stream) -> None:
    silent = PushSource()
    for frame in frames(2):
        silent.push(frame.image, frame.timestamp)
    pipelines: dict[str, Any] = {
        "silent": Pipeline(silent, stream.fork(), live=True, idle_seconds=0.1),
        "file": Pipeline(frames(40), stream.fork()),
    }
    jobs = [Job(name, pipeline) for name, pipeline in pipelines.items()]
    seen: dict[str, list[int]] = {"silent": [], "file": []}
    for job, rendered in run_fairly(jobs):
        seen[job.name].append(rendered.source.index)
        if len(seen["silent"]) == 2:
            silent.end()
        if job.name == "file":
            time.sleep(0.01)
    assert seen == {"silent": [0, 1], "file": list(range(40))}


def test_stopping_and_leaving_early(stream: Stream) -> None:
    jobs = [Job(str(i), Pipeline(frames(500), stream.fork())) for i in range(2)]
    running = run_fairly(jobs)
    next(running)
    running.close()
    count = 0

    def stopped() -> bool:
        return count >= 10

    jobs = [Job(str(i), Pipeline(frames(500), stream.fork())) for i in range(2)]
    last: dict[str, bool] = {}
    for job, rendered in run_fairly(jobs, stopped=stopped):
        count += 1
        last[job.name] = rendered.is_key
    assert count < 30 and all(last.values()), "what waited was finished"


def test_streams_may_join_while_others_run(stream: Stream) -> None:
    first = Job("first", Pipeline(frames(40), stream.fork()))
    later = Job("later", Pipeline(frames(8, 1), stream.fork()))
    seen: dict[str, int] = {"first": 0, "later": 0}

    def joining() -> list[Job]:
        return [later] if seen["first"] >= 4 and later._decoder is None else []

    for job, _ in run_fairly([first], joining=joining, stopped=lambda: first.done and later.done):
        seen[job.name] += 1
    assert seen == {"first": 40, "later": 8}


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_impossible_weights(weight: float) -> None:
    with pytest.raises(InputError, match="weight"):
        Job("a", None, weight)  # type: ignore[arg-type]
