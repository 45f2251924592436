"""Sources over HTTP and out of GStreamer pipelines, both real, on this machine."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rtsp_samples import encode
from video_samples import moving_square, sample_clip

from streamsplat_edge.runtime.errors import VideoError
from streamsplat_edge.runtime.sources import LiveOptions
from streamsplat_edge.runtime.sources import live as live_source
from streamsplat_edge.runtime.sources.connection import Connection
from streamsplat_edge.runtime.video import open_video
from streamsplat_edge.runtime.video.reading import open_aside

QUICK = LiveOptions(connect_seconds=10, silence_seconds=2, first_wait=0.05, attempts=0)


class Handler(BaseHTTPRequestHandler):
    """/clip.mp4 is a recording, /live.mjpg a camera that sends 12 pictures and closes."""

    clip = b""
    pictures: tuple[bytes, ...] = ()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/clip.mp4":
            self.send_response(200)
            self.send_header("Content-Type", "video/mp4")
            self.send_header("Content-Length", str(len(self.clip)))
            self.end_headers()
            self.wfile.write(self.clip)
        elif path == "/live.mjpg":
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=next")
            self.end_headers()
            for picture in self.pictures:
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
                time.sleep(0.03)
        elif path == "/private":
            self.send_error(401)
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Readers hang up in the middle, which is no error. And Python 3.11 must not print it: parsing the
        lines of two tracebacks at a time, here and in pytest, ends it (python/cpython#106905)."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("http") / "clip.mp4"
    sample_clip(path, 12, container_options={"movflags": "+faststart"})
    Handler.clip, Handler.pictures = path.read_bytes(), tuple(encode(12, codec="mjpeg"))
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_recording_over_http_is_no_live_source(url: str) -> None:
    with open_video(f"{url}/clip.mp4", live=QUICK) as reader:
        assert not reader.live and reader.counters == {}
        frames = list(reader)
    assert len(frames) == 12 and reader.truncated is None
    np.testing.assert_allclose([frame.timestamp for frame in frames], np.arange(12) / 25, atol=1e-3)


def test_motion_jpeg_is_live_and_comes_back(url: str) -> None:
    options = LiveOptions(first_wait=0.05, silence_seconds=2)
    with open_video(f"{url}/live.mjpg", live=options) as reader:
        assert reader.live
        frames = list(itertools.islice(reader, 20))
    assert reader.counters["reconnects"] == 1 and frames[-1].segment == 1
    assert (np.diff([frame.timestamp for frame in frames]) > 0).all()
    assert np.abs(frames[3].image.astype(int) - moving_square(3)).mean() < 5


@pytest.mark.parametrize(("path", "word"), [("private", "password"), ("nothing", "manual")])
def test_http_errors_say_what_to_do(url: str, path: str, word: str) -> None:
    with pytest.raises(VideoError) as caught:
        open_video(f"{url}/{path}?token=abc", live=QUICK)
    assert word in caught.value.hint.lower()
    assert "token=***" in caught.value.message and "abc" not in str(caught.value)


def test_ctrl_c_while_a_server_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for libav, which goes on until its time-out; what it opens then is closed."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        accepted.append(server.accept()[0])
        os.kill(os.getpid(), signal.SIGINT)

    accepted: list[socket.socket] = []
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job starts with it ignored
    try:
        threading.Thread(target=accept, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            open_video(f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4", live=QUICK)
        opening = [thread for thread in threading.enumerate() if thread.name == "open"]
        assert opening, "libav still waits"
    finally:
        signal.signal(signal.SIGINT, before)
        for each in (*accepted, server):
            each.close()
    for thread in opening:
        thread.join(60)
        assert not thread.is_alive()


def test_what_was_opened_too_late_is_closed() -> None:
    class Opened:
        closed = False

        def close(self) -> None:
            self.closed = True

    opened, go, before = Opened(), threading.Event(), signal.signal(signal.SIGINT, signal.default_int_handler)

    def action() -> Opened:
        os.kill(os.getpid(), signal.SIGINT)
        assert go.wait(60)
        return opened

    try:
        with pytest.raises(KeyboardInterrupt):
            open_aside(action)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not opened.closed
    threads = [thread for thread in threading.enumerate() if thread.name == "open"]
    go.set()
    for thread in threads:
        thread.join(60)
    assert opened.closed


# GStreamer


def need_gstreamer() -> None:
    if shutil.which("gst-launch-1.0") is None:
        pytest.skip("no gst-launch-1.0 here: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good")


def test_a_pipeline() -> None:
    need_gstreamer()
    pipeline = "videotestsrc num-buffers=15 pattern=red ! video/x-raw,width=64,height=48,framerate=30/1"
    with open_video(f"gst:{pipeline}", live=QUICK) as reader:
        assert not reader.live and (reader.width, reader.height) == (64, 48)
        frames = list(reader)
    assert len(frames) == 15 and reader.truncated is None and reader.dropped == 0
    np.testing.assert_allclose(np.diff([frame.timestamp for frame in frames]), 1 / 30, atol=1.1e-3)
    assert np.abs(frames[7].image.astype(int) - (255, 0, 0)).max() < 6


def test_a_live_pipeline_is_ended_by_close() -> None:
    need_gstreamer()
    pipeline = "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=50/1"
    reader: Any = open_video(f"gst:{pipeline}", live=QUICK)
    assert reader.live
    frames = list(itertools.islice(reader, 10))
    assert len(frames) == 10
    start = time.monotonic()
    reader.close()
    reader.close()
    assert time.monotonic() - start < 3
    assert list(reader) == []


@pytest.mark.parametrize(
    ("pipeline", "word"),
    [
        ("nosuchelement", "nosuchelement"),
        ("videotestsrc pattern='x", "quot"),
        ("filesrc location=/none", "not found"),
    ],
)
def test_pipelines_that_cannot_run(pipeline: str, word: str) -> None:
    need_gstreamer()
    with pytest.raises(VideoError) as caught:
        open_video(f"gst:{pipeline}", live=QUICK)
    assert word in caught.value.message.lower() and caught.value.hint


def test_without_gstreamer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(VideoError, match="was not found") as caught:
        open_video("gst:videotestsrc")
    assert "apt install" in caught.value.hint


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program that stands in for GStreamer's."""
    fake = folder / "gst-launch-1.0"
    fake.write_text(script)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


PIPELINE = """#!{python}
import os, sys
print("Setting pipeline to PAUSED ...\\nPipeline is {state} ...", flush=True)
(target,) = (int(word[3:]) for word in sys.argv if word.startswith("fd="))
with open({clip!r}, "rb") as clip, os.fdopen(target, "wb") as pipe:
    pipe.write(clip.read())
sys.exit({status})
"""


@pytest.mark.parametrize("state", ["PREROLLING", "live and does not need PREROLL"])
@pytest.mark.parametrize(("status", "attempts"), [(0, None), (0, 0), (1, 0)])
def test_the_end_of_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, status: int, attempts: int | None
) -> None:
    """Its own end, told by the exit status, ends the video; after a failure it would be started again."""
    clip = sample_clip(tmp_path / "clip.mkv", 20, codec="ffv1", clock=Fraction(1, 1000))
    values = {"python": sys.executable, "state": state, "clip": str(clip), "status": status}
    install(tmp_path, monkeypatch, PIPELINE.format(**values))
    options = LiveOptions(keep_up=False, attempts=attempts)
    with open_video("gst:filesrc", live=options) as reader:
        assert reader.live == (state != "PREROLLING") and reader.reconnects
        frames = list(reader)
    assert len(frames) == 20 and reader.counters["reconnects"] == 0
    assert (reader.truncated is None) == (status == 0)
    assert all((frame.captured is None) == (not reader.live) for frame in frames)


def test_a_pipeline_that_is_not_live_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow device leaves waiting is not given up, though it is asked to keep up with live sources."""
    clip = sample_clip(tmp_path / "clip.mkv", 20, codec="ffv1", clock=Fraction(1, 1000))
    seen: dict[str, bool] = {}

    def noted(container: Any, events: Any, keep_up: bool, *others: Any, **named: Any) -> Connection:
        seen[state] = keep_up
        return Connection(container, events, keep_up, *others, **named)

    monkeypatch.setattr(live_source, "Connection", noted)
    for state in ("PREROLLING", "live and does not need PREROLL"):
        values = {"python": sys.executable, "state": state, "clip": str(clip), "status": 0}
        install(tmp_path, monkeypatch, PIPELINE.format(**values))
        with open_video("gst:filesrc", live=LiveOptions(keep_up=True)):
            pass
    assert list(seen.values()) == [False, True]


def test_a_pipeline_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing and ignores being asked to stop: it is killed."""
    install(tmp_path, monkeypatch, "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    start = time.monotonic()
    with pytest.raises(VideoError, match="gave no video"):
        open_video("gst:videotestsrc", live=LiveOptions(connect_seconds=0.3))
    assert time.monotonic() - start < 6
