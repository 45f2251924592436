"""Served streams without Ray: what a device does with the streams placed on it, and how losses count."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge.runtime.errors import (
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    InputError,
    VideoError,
)
from streamsplat_edge.runtime.schedule import run_fairly
from streamsplat_edge.runtime.serving import worker as worker_module
from streamsplat_edge.runtime.serving.spec import Progress, StreamSpec, StreamStatus
from streamsplat_edge.runtime.serving.worker import DeviceWorker
from streamsplat_edge.runtime.video import DecodedFrame, VideoReader, open_video


class Desk:
    """Collects what a device reports of one stream."""

    def __init__(self) -> None:
        self.reports: list[Progress] = []
        self.over = threading.Event()

    def __call__(self, progress: Progress) -> None:
        self.reports.append(progress)
        if progress.ended:
            self.over.set()

    @property
    def positions(self) -> list[int]:
        return [report.position for report in self.reports if not report.ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    build_fake_bundle(folder / "fake.bundle")
    sample_clip(folder / "long.mp4", 60)
    sample_clip(folder / "short.mp4", 9)
    return folder


@pytest.fixture
def worker(folder: Path) -> Iterator[DeviceWorker]:
    opened = DeviceWorker(str(folder / "fake.bundle"), threads=1)
    yield opened
    opened.close()
    assert not opened.alive()


def test_several_streams_and_one_that_joins_late(worker: DeviceWorker, folder: Path) -> None:
    desks = [Desk(), Desk(), Desk()]
    worker.place(StreamSpec("a", str(folder / "long.mp4")), desks[0])
    worker.place(StreamSpec("b", str(folder / "short.mp4"), gap=2, key_frames="motion"), desks[1])
    assert desks[1].over.wait(20)
    worker.place(StreamSpec("c", str(folder / "short.mp4")), desks[2])
    assert all(desk.over.wait(20) for desk in desks)
    for desk, count in zip(desks, (60, 9, 9), strict=True):
        assert desk.positions == list(range(count))
        assert [report.frames for report in desk.reports[:-1]] == list(range(1, count + 1))
        assert not desk.reports[-1].error and desk.reports[0].rate == 25
        assert (desk.reports[-1].frames, desk.reports[-1].position) == (count, count - 1), "totals at the end"
    picture = next(report.png for report in desks[0].reports if report.png is not None)
    with av.open(io.BytesIO(picture)) as container:
        assert next(container.decode(video=0)).width == 32


def test_a_recording_is_taken_up_where_it_was(worker: DeviceWorker, folder: Path) -> None:
    desk = Desk()
    worker.place(StreamSpec("a", str(folder / "long.mp4")), desk, after=41)
    assert desk.over.wait(20) and desk.positions == list(range(42, 60))


def test_stopping_one_stream_leaves_the_others(worker: DeviceWorker, folder: Path) -> None:
    slow, other = Desk(), Desk()

    def take_time(progress: Progress) -> None:
        slow(progress)
        time.sleep(0.02)

    stopped = worker.place(StreamSpec("a", str(folder / "long.mp4")), take_time)
    worker.place(StreamSpec("b", str(folder / "short.mp4")), other)
    while not slow.positions:
        time.sleep(0.01)
    stopped.stop()
    assert slow.over.wait(20) and other.over.wait(20)
    assert len(slow.positions) < 60 and len(other.positions) == 9


def test_a_source_that_is_not_there(worker: DeviceWorker, folder: Path) -> None:
    with pytest.raises(VideoError):
        worker.place(StreamSpec("a", str(folder / "none.mp4")), Desk())
    assert worker.alive()


def test_closing_ends_every_stream(folder: Path) -> None:
    """But says that the streams are not over."""
    worker, desk = DeviceWorker(str(folder / "fake.bundle"), threads=1), Desk()
    began = threading.Event()

    def take_time(progress: Progress) -> None:
        desk(progress)
        began.set()
        time.sleep(0.01)

    worker.place(StreamSpec("a", str(folder / "long.mp4")), take_time)
    assert began.wait(20)
    worker.close()
    last = desk.reports[-1]
    assert last.ended and last.elsewhere and "closed" in last.error
    assert 0 < last.frames < 60 and last.position == last.frames - 1
    with pytest.raises(EngineError, match="no streams any more"):
        worker.place(StreamSpec("a", str(folder / "long.mp4")), Desk())


# One stream's failure


class Failing:
    """A reader that fails at a frame with an error that nobody foresaw."""

    def __init__(self, reader: VideoReader, error: Exception) -> None:
        self._reader, self._error = reader, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __iter__(self) -> Iterator[DecodedFrame]:
        for frame in self._reader:
            if frame.index == 9:
                raise self._error
            yield frame


@pytest.fixture
def fail_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
    """Lets readers of files of a name fail."""

    def arrange(name: str, error: Exception) -> None:
        def opened(uri: str, **options: Any) -> Any:
            reader = open_video(uri, **options)
            return Failing(reader, error) if Path(uri).name == name else reader

        monkeypatch.setattr(worker_module, "open_video", opened)

    return arrange


def test_a_defect_in_one_stream_leaves_the_others(
    worker: DeviceWorker, folder: Path, fail_in: Callable[[str, Exception], None]
) -> None:
    fail_in("short20.mp4", IndexError("tuple index out of range"))
    sample_clip(folder / "short20.mp4", 20)
    desks = [Desk(), Desk()]
    worker.place(StreamSpec("good", str(folder / "long.mp4")), desks[0])
    worker.place(StreamSpec("bad", str(folder / "short20.mp4")), desks[1])
    assert all(desk.over.wait(20) for desk in desks)
    assert desks[0].positions == list(range(60)) and not desks[0].reports[-1].error
    last = desks[1].reports[-1]
    assert "bad" in last.error and "IndexError" in last.error and not last.elsewhere
    assert worker.alive()


def test_reports_that_fail_end_their_stream_only(worker: DeviceWorker, folder: Path) -> None:
    good, bad = Desk(), Desk()

    def broken(progress: Progress) -> None:
        if progress.frames == 5 and not progress.ended:
            raise ValueError("no such report")
        bad(progress)

    worker.place(StreamSpec("bad", str(folder / "long.mp4")), broken)
    worker.place(StreamSpec("good", str(folder / "long.mp4")), good)
    assert good.over.wait(20) and bad.over.wait(20)
    assert len(good.positions) == 60 and len(bad.positions) == 4
    assert "ValueError" in bad.reports[-1].error


def test_a_stream_that_cannot_begin_leaves_the_others(
    worker: DeviceWorker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desks = [Desk(), Desk()]
    began = threading.Event()

    def take_time(progress: Progress) -> None:
        desks[0](progress)
        began.set()
        time.sleep(0.01)

    worker.place(StreamSpec("good", str(folder / "long.mp4")), take_time)
    assert began.wait(20)

    def full(**_: Any) -> None:
        raise DeviceMemoryError("no room for one more")

    monkeypatch.setattr(worker_module, "Pipeline", lambda *_, **__: full())
    worker.place(StreamSpec("late", str(folder / "short.mp4")), desks[1])
    assert all(desk.over.wait(20) for desk in desks)
    assert desks[1].reports[-1].error == "no room for one more" and len(desks[0].positions) == 60
    assert worker.alive()


def ended_by_the_device(worker: DeviceWorker, desks: list[Desk]) -> None:
    assert all(desk.over.wait(20) for desk in desks)
    for desk in desks:
        last = desk.reports[-1]
        assert last.elsewhere and "gone" in last.error, last
    worker.close()
    assert not worker.alive(), "so that it is replaced"


def test_a_device_that_is_lost_hands_its_streams_on(
    folder: Path, fail_in: Callable[[str, Exception], None]
) -> None:
    fail_in("long.mp4", DeviceLostError("the GPU is gone"))
    worker, desks = DeviceWorker(str(folder / "fake.bundle"), threads=1), [Desk(), Desk()]
    sample_clip(folder / "endless.mp4", 600)
    worker.place(StreamSpec("a", str(folder / "endless.mp4")), desks[0])
    worker.place(StreamSpec("b", str(folder / "long.mp4")), desks[1])
    ended_by_the_device(worker, desks)


def test_a_defect_in_the_device_thread_is_an_error_of_every_stream(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashing(jobs: Any, **options: Any) -> Iterator[Any]:
        for count, each in enumerate(run_fairly(jobs, **options)):
            if count == 8:
                raise RuntimeError("gone")
            yield each

    monkeypatch.setattr(worker_module, "run_fairly", crashing)
    worker, desks = DeviceWorker(str(folder / "fake.bundle"), threads=1), [Desk(), Desk()]
    for number, desk in enumerate(desks):
        worker.place(StreamSpec(f"s{number}", str(folder / "long.mp4")), desk)
    ended_by_the_device(worker, desks)


# What is known of a stream


def played(status: StreamStatus, positions: range, start: float, *, live: bool, rate: float = 25.0) -> None:
    for frames, position in enumerate(positions, 1):
        status.take(
            Progress(frames, position, start + frames / rate, rate, live, dropped=frames // 10, pid=7)
        )


def test_losses_of_a_live_stream_are_counted() -> None:
    status = StreamStatus("cam", "rtsp://host/cam")
    played(status, range(50), 100.0, live=True)
    assert (status.state, status.frames, status.dropped) == ("running", 50, 5)
    status.lost("the replica was lost")
    assert (status.state, status.restarts) == ("lost", 1)
    played(status, range(20), 105.0, live=True)  # the last frame before was at 102.0, the next is at 105.04
    assert status.lost_frames == 75 and status.lost_seconds == pytest.approx(3.04)
    assert status.frames == 70 and status.dropped == 7 and status.error == ""


def test_a_recording_loses_nothing() -> None:
    status = StreamStatus("clip", "clip.mp4")
    played(status, range(50), 100.0, live=False)
    status.lost("the replica was lost")
    played(status, range(50, 60), 130.0, live=False)
    status.take(Progress(ended=True))
    assert (status.state, status.frames, status.position, status.lost_frames) == ("ended", 60, 59, 0)
    assert "png" not in status.to_json() and not [name for name in status.to_json() if name.startswith("_")]


def test_the_end_brings_the_totals() -> None:
    """Reports in between may be dropped where they come faster than the desk takes them."""
    status = StreamStatus("cam", "rtsp://host/cam")
    played(status, range(50), 100.0, live=True)
    status.take(Progress(70, 69, 102.8, 25.0, True, dropped=9, ended=True))
    assert (status.state, status.frames, status.position, status.dropped) == ("ended", 70, 69, 9)


def test_a_stream_that_goes_on_elsewhere_is_not_over() -> None:
    status = StreamStatus("clip", "clip.mp4")
    played(status, range(50), 100.0, live=False)
    status.take(Progress(55, 54, 102.2, 25.0, ended=True, error="the device was lost", elsewhere=True))
    assert (status.state, status.restarts, status.error) == ("lost", 1, "the device was lost")
    assert status.position == 54, "where it is taken up"
    status.take(Progress(5, 59, 130.0, 25.0, ended=True))
    assert (status.state, status.frames, status.error) == ("ended", 60, "")


def test_failures_say_why() -> None:
    status = StreamStatus("clip", "clip.mp4")
    status.take(Progress(ended=True, error="no such file", hint="check the path"))
    assert (status.state, status.error, status.hint) == ("failed", "no such file", "check the path")


@pytest.mark.parametrize(
    "values",
    [
        *({"name": "a/b"}, {"name": ""}, {"uri": "gopher://x"}, {"key_frames": "sometimes"}),
        *({"gap": 0}, {"gap": 1000}, {"silence_seconds": 0.0}, {"silence_seconds": float("nan")}),
    ],
)
def test_impossible_specifications(values: dict[str, Any]) -> None:
    with pytest.raises((InputError, VideoError)):
        StreamSpec(**{"name": "a", "uri": "b.mp4", **values})
