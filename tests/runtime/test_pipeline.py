"""The pipeline: choice of key frames, order and times of the output, cuts, errors, Ctrl-C, threads."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from streamsplat_edge.runtime.errors import InputError, OutputError, VideoError
from streamsplat_edge.runtime.key_frames import MotionGap
from streamsplat_edge.runtime.pipeline import Pipeline, Rendered, run_video
from streamsplat_edge.runtime.pipeline_options import PipelineOptions
from streamsplat_edge.runtime.prefetch import Prefetcher
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.timing import LatencyRecorder
from streamsplat_edge.runtime.video import VideoFrame

HEIGHT, WIDTH = 16, 32


@dataclass
class Source:
    image: np.ndarray
    timestamp: float
    index: int


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def scene(colour: tuple[int, int, int], count: int, start: int = 0, step: float = 0.04) -> list[Source]:
    """A flat colour that brightens slowly: no cut within, a cut against another colour."""
    return [
        Source(
            np.clip(np.full((HEIGHT, WIDTH, 3), colour) + i, 0, 255).astype(np.uint8),
            (start + i) * step,
            start + i,
        )
        for i in range(count)
    ]


def run(stream: Stream, frames: list[Source], **options: Any) -> list[Rendered]:
    return list(Pipeline(frames, stream, **options))


def keys(results: list[Rendered]) -> list[int]:
    return [result.source.index for result in results if result.is_key]


@pytest.mark.parametrize(
    ("count", "gap", "wanted"),
    [
        (1, 4, [0]),
        (2, 4, [0, 1]),
        (4, 4, [0, 3]),
        (5, 4, [0, 4]),
        (6, 4, [0, 4, 5]),
        (9, 4, [0, 4, 8]),
        (12, 4, [0, 4, 8, 11]),
        (4, 1, [0, 1, 2, 3]),
        (3, 50, [0, 2]),
    ],
)
def test_key_frames(stream: Stream, count: int, gap: int, wanted: list[int]) -> None:
    frames = scene((50, 60, 70), count)
    results = run(stream, frames, gap=gap)
    assert keys(results) == wanted
    # Every source frame once, in order, at its own time.
    assert [result.source.index for result in results] == list(range(count))
    assert [result.frame.timestamp for result in results] == [frame.timestamp for frame in frames]
    assert sum(len(result.pushes) for result in results) == len(wanted)


def test_no_frames(stream: Stream) -> None:
    report = run_video([], stream)
    assert (report.frames, report.key_frames, report.fps) == (0, 0, 0.0)


def test_irregular_times(stream: Stream) -> None:
    frames = scene((50, 60, 70), 9)
    for frame, seconds in zip(frames, [0, 0.01, 0.5, 0.51, 0.9, 3.0, 3.1, 3.15, 9.0], strict=True):
        frame.timestamp = seconds
    results = run(stream, frames)
    assert [result.frame.timestamp for result in results] == [frame.timestamp for frame in frames]


def test_frames_that_go_back_in_time_are_skipped_and_counted(stream: Stream) -> None:
    frames = scene((50, 60, 70), 8)
    frames[3].timestamp = frames[2].timestamp
    frames[6].timestamp = 0.01
    pipeline = Pipeline(frames, stream)
    assert [result.source.index for result in pipeline] == [0, 1, 2, 4, 5, 7]
    report = pipeline.report()
    assert report.skipped == 2 and report.frames == 6


def test_cuts(stream: Stream) -> None:
    """Nothing moves across a cut; the frames on both sides of it are key frames."""
    frames = scene((200, 30, 30), 6) + scene((20, 40, 220), 5, start=6) + scene((30, 220, 30), 1, start=11)
    pipeline = Pipeline(frames, stream)
    results = list(pipeline)
    assert keys(results) == [0, 4, 5, 6, 10, 11]
    assert [result.source.index for result in results if result.is_cut] == [6, 11]
    assert [result.source.index for result in results] == list(range(12))
    for result in results:
        # No colour of the other scenes, at any time.
        inner = result.frame.rgb[4:12, 8:24].reshape(-1, 3).mean(0)
        assert np.abs(inner - result.source.image[0, 0]).max() < 30, result.source.index
    report = pipeline.report()
    assert report.cuts == 2 and report.key_frames == 6
    assert report.spawned == 6 * 128 and report.peak_alive == 256
    assert report.retired == 5 * 128, "all but the last, lone key frame"


def test_cut_detection_can_be_switched_off(stream: Stream) -> None:
    frames = scene((200, 30, 30), 3) + scene((20, 40, 220), 3, start=3)
    assert keys(run(stream, frames, detect_cuts=False)) == [0, 4, 5]
    recorder = LatencyRecorder()
    run(stream, frames, recorder=recorder)
    assert recorder.seen("scene_cut") == 6


def test_max_frames(stream: Stream) -> None:
    def endless() -> Iterator[Source]:
        index = 0
        while True:
            yield Source(np.zeros((8, 8, 3), np.uint8), index * 0.1, index)
            index += 1

    results = list(Pipeline(endless(), stream, max_frames=7))
    assert keys(results) == [0, 4, 6] and len(results) == 7


def test_a_stream_serves_one_video_after_another(stream: Stream) -> None:
    first = run(stream, scene((50, 60, 70), 6))
    second = run(stream, scene((50, 60, 70), 6))  # its times start at 0 again
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.frame.rgb, b.frame.rgb)
    pipeline = Pipeline(scene((50, 60, 70), 2), stream)
    list(pipeline)
    with pytest.raises(InputError, match="has run already"):
        list(pipeline)


def live(count: int, **changes: Any) -> list[VideoFrame]:
    return [
        VideoFrame(each.image, each.timestamp, each.index, **changes) for each in scene((50, 60, 70), count)
    ]


def test_nothing_moves_across_a_break_of_a_live_stream(stream: Stream) -> None:
    """As across a cut, though the pictures are alike and the frames at the break itself were dropped."""
    frames = live(6) + [dataclasses.replace(frame, segment=2) for frame in live(12)[7:]]
    pipeline = Pipeline(frames, stream)
    results = list(pipeline)
    assert keys(results) == [0, 4, 5, 7, 11]
    report = pipeline.report()
    assert report.breaks == 1 and report.cuts == 0 and report.retired == 3 * 128
    pairs = {push.key_frame for result in results for push in result.pushes if "deform" in push.latencies}
    assert pairs == {1, 2, 4}, "key frame 3 is the one after the break"


def test_latency_counts_from_capture_and_decoding_without_the_wait(stream: Stream) -> None:
    recorder = LatencyRecorder()
    run(stream, live(5, captured=time.perf_counter() - 2.0, decode_ms=1.5), recorder=recorder)  # type: ignore[arg-type]
    assert (recorder.samples("decode") == 1.5).all()
    assert 2000 <= recorder.samples("capture_to_present").min() < 4000


def test_what_waits_is_finished_when_a_live_source_falls_silent(stream: Stream) -> None:
    go_on = threading.Event()

    def camera() -> Iterator[VideoFrame]:
        frames = live(9)
        yield from frames[:3]
        assert go_on.wait(10)
        yield from frames[3:]

    pipeline = Pipeline(camera(), stream, live=True, prefetch=9, idle_seconds=0.05)
    results = []
    for result in pipeline:
        results.append(result)
        if result.source.index == 2:
            go_on.set()
    assert keys(results) == [0, 2, 6, 8], "the last frame before the silence, and counting from there"
    assert [result.source.index for result in results] == list(range(9))
    report = pipeline.report()
    assert report.pauses == 1 and report.cuts == report.breaks == 0


def test_a_run_can_be_stopped_while_its_source_is_silent(stream: Stream) -> None:
    stop = threading.Event()

    def camera() -> Iterator[VideoFrame]:
        yield from live(3)
        stop.set()
        time.sleep(1.0)
        yield from live(9)[3:]

    start = time.monotonic()
    results = list(Pipeline(camera(), stream, live=True, prefetch=9, idle_seconds=60, stopped=stop.is_set))
    assert time.monotonic() - start < 4 and len(results) <= 3
    assert not results or results[-1].is_key


def test_a_rule_may_end_a_pair_sooner(stream: Stream) -> None:
    class Rule:
        told: ClassVar[list[int]] = []

        def began(self, image: np.ndarray) -> None:
            self.told.append(int(image[0, 0, 0]) - 50)

        def due(self, image: np.ndarray) -> bool:
            return int(image[0, 0, 0]) - 50 in (2, 3)

    assert keys(run(stream, scene((50, 60, 70), 12), rule=Rule())) == [0, 2, 3, 7, 11]
    assert Rule.told == [0, 2, 3, 7, 11]


def test_a_rule_sees_images_that_are_views(stream: Stream) -> None:
    """OpenCV's BGR turned to RGB is a view with negative strides, which swscale does not read."""
    frames = scene((50, 60, 70), 9)
    views = [dataclasses.replace(frame, image=frame.image[:, ::-1, ::-1][..., ::-1]) for frame in frames]
    assert not any(frame.image.flags.c_contiguous for frame in views)
    assert keys(run(stream, views, rule=MotionGap())) == keys(run(stream, frames, rule=MotionGap()))


def test_sinks_and_report(stream: Stream) -> None:
    seen: list[tuple[str, int]] = []
    recorder = LatencyRecorder()

    def first(result: Rendered) -> None:
        side = stream.render(result.source.timestamp, view=View.swing(0.2, 0.0, 0.25))
        assert (side.rgb != result.frame.rgb).any()
        seen.append(("first", result.source.index))

    def second(result: Rendered) -> None:
        seen.append(("second", result.source.index))
        time.sleep(0.002)

    report = run_video(
        scene((50, 60, 70), 9),
        stream,
        [first, second],
        recorder=recorder,
        background=(0, 0, 0),
    )
    assert seen == [(name, index) for index in range(9) for name in ("first", "second")]
    assert report.frames == 9 and report.key_frames == 3 and not report.interrupted
    counts = {stage: summary["count"] for stage, summary in report.latencies_ms.items()}
    assert counts == {
        "decode": 9,
        "scene_cut": 9,
        "preprocess": 3,
        "encode": 3,
        "deform": 2,
        "lifecycle": 3,
        "render": 9,
        "write": 9,
        "capture_to_present": 9,
    }
    assert report.seconds > 9 * 0.002 and report.fps == pytest.approx(9 / report.seconds)
    assert report.latencies_ms["write"]["min"] >= 2.0
    for name in ("p50", "p90", "p95", "p99", "max", "mean", "std", "cv"):
        assert report.latencies_ms["render"][name] >= 0
    # Each Gaussian of each frame was rendered or culled for a reason.
    assert report.rendered + sum(report.culled.values()) == 9 * 256
    assert set(report.culled) == {"invalid", "behind", "transparent", "outside"} and report.pairs > 0
    assert report.to_json()["frames"] == 9


def test_one_sink_without_a_list(stream: Stream) -> None:
    seen: list[int] = []
    run_video(scene((1, 2, 3), 3), stream, lambda result: seen.append(result.source.index))
    assert seen == [0, 1, 2]


def test_bad_options(stream: Stream) -> None:
    for options in ({"gap": 0}, {"gap": 121}, {"prefetch": 0}, {"max_frames": 0}, {"idle_seconds": 0}):
        with pytest.raises(InputError):
            Pipeline([], stream, **options)


def test_run_video_takes_every_option_of_a_pipeline() -> None:
    parameters = inspect.signature(Pipeline).parameters.values()
    assert PipelineOptions.__optional_keys__ == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_reader_errors_arrive_after_the_frames_before_them(stream: Stream) -> None:
    def broken() -> Iterator[Source]:
        yield from scene((50, 60, 70), 5)
        raise VideoError("the file ends here")

    seen: list[int] = []
    with pytest.raises(VideoError, match="ends here"):
        run_video(broken(), stream, lambda result: seen.append(result.source.index))
    assert seen == [0, 1, 2, 3, 4], "the pair that was complete"


def test_bad_images_and_sink_errors_stop_the_decoder(stream: Stream) -> None:
    frames = scene((50, 60, 70), 50)
    frames[7].image = frames[7].image[..., 0]
    with pytest.raises(InputError, match=r"has shape \[16, 32\]"):
        run_video(frames, stream)

    def full(result: Rendered) -> None:
        raise OutputError("no space left")

    with pytest.raises(OutputError):
        run_video(scene((50, 60, 70), 50), stream, full)


def test_ctrl_c_returns_what_was_done(stream: Stream) -> None:
    def interrupt(result: Rendered) -> None:
        if result.source.index == 5:
            raise KeyboardInterrupt

    report = run_video(scene((50, 60, 70), 500), stream, interrupt)
    assert report.interrupted and report.frames == 6
    assert run_video(scene((50, 60, 70), 5), stream).frames == 5, "the stream is usable"


def test_leaving_the_loop_early_stops_the_decoder(stream: Stream) -> None:
    stopped = threading.Event()

    def source() -> Iterator[VideoFrame]:
        try:
            yield from scene((50, 60, 70), 500)
        finally:
            stopped.set()

    frames = Pipeline(source(), stream).frames()
    for result in frames:
        if result.source.index == 3:
            break
    assert not stopped.is_set()
    frames.close()
    assert stopped.wait(10)


# Decoding ahead


def test_prefetcher_keeps_order_and_bounds() -> None:
    produced: list[int] = []

    def source() -> Iterator[int]:
        for i in range(20):
            produced.append(i)
            yield i

    with Prefetcher(source(), depth=3) as prefetcher:
        time.sleep(0.05)
        assert len(produced) <= 5, "at most the buffer, one in hand and one in the making"
        arrivals = list(prefetcher)
    assert [arrival.item for arrival in arrivals] == list(range(20))
    assert all(arrival.milliseconds >= 0 for arrival in arrivals)
    assert [a.at for a in arrivals] == sorted(a.at for a in arrivals) and prefetcher.dropped == 0


def test_prefetcher_overlaps_with_the_consumer() -> None:
    made = [threading.Event() for _ in range(10)]

    def source() -> Iterator[int]:
        for i, event in enumerate(made):
            time.sleep(0.02)
            event.set()
            yield i

    with Prefetcher(source(), depth=2) as prefetcher:
        for arrival in prefetcher:
            assert arrival.milliseconds >= 19
            following = made[arrival.item + 1 : arrival.item + 3]
            assert all(event.wait(10) for event in following), "made while this one is in hand"


def test_latest_policy_drops_the_oldest_and_counts() -> None:
    ready = threading.Event()

    def source() -> Iterator[int]:
        yield from range(10)
        ready.set()

    with Prefetcher(source(), depth=2, latest=True) as prefetcher:
        assert ready.wait(5)
        assert [arrival.item for arrival in prefetcher] == [8, 9]
    assert prefetcher.dropped == 8


def test_live_pipeline_reports_what_it_dropped(stream: Stream) -> None:
    def camera() -> Iterator[Source]:
        yield from scene((50, 60, 70), 40)

    pipeline = Pipeline(camera(), stream, live=True, prefetch=2)
    indices = []
    for result in pipeline:
        indices.append(result.source.index)
        time.sleep(0.005)
    report = pipeline.report()
    assert report.dropped > 0 and report.frames + report.dropped == 40
    assert indices == sorted(indices) and indices[-1] == 39


def test_prefetcher_closes_while_the_source_waits_for_room() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    prefetcher = Prefetcher(source(), depth=1)
    time.sleep(0.02)
    prefetcher.close()
    prefetcher.close()
    assert closed.wait(1) and list(prefetcher) == []


def test_taking_with_a_time_limit() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        assert go_on.wait(5)
        raise VideoError("broken")

    with Prefetcher(source()) as prefetcher:
        first = prefetcher.take(5)
        assert first is not None and first.item == 1
        assert prefetcher.take(0.01) is None and not prefetcher.ended and not prefetcher.ready
        go_on.set()
        with pytest.raises(VideoError):
            prefetcher.take(5)
        assert prefetcher.take(5) is None and prefetcher.ended, "an error is raised once"


def test_prefetcher_needs_room_for_one() -> None:
    with pytest.raises(ValueError, match="depth"):
        Prefetcher([], depth=0)
