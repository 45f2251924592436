"""Damaged and failing input: what was decoded is kept, and nothing but errors a user can act on comes out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_samples import sample_clip

from streamsplat_edge.runtime.errors import StreamSplatError, VideoError
from streamsplat_edge.runtime.sources.connection import Connection, ConnectionLost, SourceEvents
from streamsplat_edge.runtime.video import open_video
from streamsplat_edge.runtime.video.file import FileReader


class FailingContainer:
    """A container whose demuxer fails after some packets, like a disk or a network that goes away."""

    def __init__(self, path: Path, packets: int, fail: Callable[[], None]) -> None:
        self._container, self._packets, self._fail = av.open(str(path)), packets, fail
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        for i, packet in enumerate(self._container.demux(stream)):
            if i == self._packets:
                self._fail()
            yield packet
        if self._packets > i:
            self._fail()

    def close(self) -> None:
        self.closed = True
        self._container.close()


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


ERRORS = [
    OSError(5, "Input/output error"),
    IndexError("list index out of range"),  # PyAV's, for a stream that appeared on the way
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    MemoryError(),
    OverflowError("too large"),
]
named = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@named
def test_an_error_while_reading_ends_the_video_and_is_said(tmp_path: Path, error: Exception) -> None:
    path = sample_clip(tmp_path / "a.mp4", 40, options={"bf": "0"})
    with FileReader(str(path), FailingContainer(path, 12, failing(error))) as reader:
        assert len(list(reader)) == 12, "frames that the decoder still holds are not lost"
        assert reader.truncated is not None
        assert (getattr(error, "strerror", None) or str(error) or "MemoryError") in reader.truncated


@named
def test_an_error_before_the_first_frame(tmp_path: Path, error: Exception) -> None:
    path = sample_clip(tmp_path / "a.mp4", 10)
    container = FailingContainer(path, 0, failing(error))
    with pytest.raises(VideoError, match="not a single frame"):
        FileReader(str(path), container)
    assert container.closed


@named
def test_an_error_of_a_live_source_is_a_lost_connection(tmp_path: Path, error: Exception) -> None:
    path = sample_clip(tmp_path / "a.mp4", 40, options={"bf": "0"})
    container = FailingContainer(path, 12, failing(error))
    frames = []
    with pytest.raises(ConnectionLost):
        frames.extend(Connection(container, SourceEvents(), False, 10.0, lambda: False))
    connection = Connection(FailingContainer(path, 12, failing(error)), SourceEvents(), False, 10.0, bool)
    pictures = iter(connection)
    assert [next(pictures) for _ in range(12)]
    with pytest.raises(ConnectionLost):
        next(pictures)


def test_streams_that_appear_on_the_way_are_left_alone(tmp_path: Path) -> None:
    """PyAV fails with such streams after the packet that flushes the decoder: the video has ended by then."""
    path = sample_clip(tmp_path / "a.ts", 20, options={"bf": "0"})
    container = FailingContainer(path, 22, failing(IndexError("list index out of range")))
    with FileReader(str(path), container) as reader:
        assert len(list(reader)) == 20 and reader.truncated is None


def test_the_address_that_libav_quotes_is_not_repeated(tmp_path: Path) -> None:
    path = sample_clip(tmp_path / "a.mp4", 20, options={"bf": "0"})
    error = av.error.HTTPForbiddenError(1, "Server returned 403 Forbidden", "http://me:secret@host/a.mp4")
    with FileReader("http://me:***@host/a.mp4", FailingContainer(path, 12, failing(error))) as reader:
        assert len(list(reader)) == 12
        assert "403 Forbidden" in (reader.truncated or "") and "secret" not in (reader.truncated or "")


def test_a_container_is_not_freed_under_the_thread_that_reads_it(tmp_path: Path) -> None:
    """`close` gives up waiting for a read that stalls; the reading thread frees the container then."""
    path = sample_clip(tmp_path / "a.mp4", 40, options={"bf": "0"})
    stalled, go = threading.Event(), threading.Event()
    freed_while_reading: list[bool] = []

    def stall() -> None:
        stalled.set()
        assert go.wait(60)
        freed_while_reading.append(container.closed)

    container = FailingContainer(path, 12, stall)
    reader = FileReader(str(path), container)
    frames: list[Any] = []
    thread = threading.Thread(target=lambda: frames.extend(reader))
    thread.start()
    assert stalled.wait(60)
    reader.close()
    go.set()
    thread.join(60)
    assert freed_while_reading == [False] and container.closed
    assert 0 < len(frames) <= 12, "nothing comes after close"
    reader.close()


def test_text_that_is_no_utf8_is_no_damage(tmp_path: Path) -> None:
    path = sample_clip(tmp_path / "a.mkv", 5, metadata={"title": "Xylophone"})
    path.write_bytes(path.read_bytes().replace(b"Xylophone", b"Xyl\xf6ph\xf6ne"))
    with open_video(path) as reader:
        assert len(list(reader)) == 5 and reader.truncated is None


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv", ".avi"])
def test_no_damage_leads_to_a_raw_error(tmp_path: Path, suffix: str) -> None:
    """Bytes changed anywhere, or only in the header; some files cut. All from one seed."""
    sound = sample_clip(tmp_path / f"sound{suffix}", 8).read_bytes()
    rng = np.random.default_rng(len(suffix))
    path = tmp_path / f"damaged{suffix}"
    refused = 0
    for trial in range(80):
        data = np.frombuffer(sound, np.uint8).copy()
        reach = (len(data), min(len(data), 1000))[trial % 2]
        count = (1, 5, 30)[trial % 3]
        data[rng.integers(0, reach, count)] = rng.integers(0, 256, count)
        cut = int(rng.integers(1, len(data))) if trial % 4 == 3 else len(data)
        path.write_bytes(data[:cut].tobytes())
        try:
            with open_video(path, threads=1) as reader:
                times = [frame.timestamp for _, frame in zip(range(30), reader, strict=False)]
                assert reader.rate > 0 and (np.diff(times) > 0).all()
        except StreamSplatError as error:
            refused += 1
            assert error.hint
    assert 0 < refused < 80, "some are beyond use, some are not"
