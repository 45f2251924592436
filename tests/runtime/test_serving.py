"""Served streams without Ray: what a device does with the streams placed on it, and how losses count."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge.runtime.errors import InputError, VideoError
from streamsplat_edge.runtime.serving.spec import Progress, StreamSpec, StreamStatus
from streamsplat_edge.runtime.serving.worker import DeviceWorker


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
    worker, desk = DeviceWorker(str(folder / "fake.bundle"), threads=1), Desk()
    worker.place(StreamSpec("a", str(folder / "long.mp4")), desk)
    worker.close()
    assert desk.over.is_set() or not desk.reports


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


def test_failures_say_why() -> None:
    status = StreamStatus("clip", "clip.mp4")
    status.take(Progress(ended=True, error="no such file", hint="check the path"))
    assert (status.state, status.error, status.hint) == ("failed", "no such file", "check the path")


@pytest.mark.parametrize(
    "values", [{"name": "a/b"}, {"name": ""}, {"uri": "gopher://x"}, {"key_frames": "sometimes"}]
)
def test_impossible_specifications(values: dict[str, str]) -> None:
    with pytest.raises((InputError, VideoError)):
        StreamSpec(**{"name": "a", "uri": "b.mp4", **values})
