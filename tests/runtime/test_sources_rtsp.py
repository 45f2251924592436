"""Live sources against a real RTSP server on loopback: damage, odd time stamps, silence, reboots, lag."""

from __future__ import annotations

import dataclasses
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rtsp_samples import RtspServer, cut_short, encode, need_rtsp_server, scrambled, script
from video_samples import moving_square

from streamsplat_edge.runtime.errors import VideoError
from streamsplat_edge.runtime.sources import LiveOptions, connection
from streamsplat_edge.runtime.video import VideoFrame, open_video

# Real time on a loaded machine: a target of their own.
pytestmark = pytest.mark.rtsp

QUICK = LiveOptions(connect_seconds=10, silence_seconds=1.0, first_wait=0.05, longest_wait=0.2, attempts=0)
BACK = LiveOptions(connect_seconds=10, silence_seconds=0.6, first_wait=0.05, longest_wait=0.2)
BIG = (96, 128)


def mounts() -> dict[str, list[dict[str, Any]]]:
    units, big = encode(30), encode(12, height=BIG[0], width=BIG[1])
    third = 10 / 25
    stamps = [i / 25 for i in range(30)]
    return {
        "plain": [script(units, then="end")],
        "short": [script(units[:8], then="end")],
        "half": [script([cut_short(u) if i == 12 else u for i, u in enumerate(units)], then="end")],
        "scrambled": [script([scrambled(u) if i == 12 else u for i, u in enumerate(units)], then="end")],
        "half-key": [script([cut_short(u) if i == 10 else u for i, u in enumerate(units)], then="end")],
        "late-start": [script(units[3:], times=stamps[3:], then="end", headless=True)],
        "lost-key": [script(units[:10] + units[11:], times=stamps[:10] + stamps[11:], then="end")],
        "back": [
            script(units, times=[50 + t - (40 if i >= 15 else 0) for i, t in enumerate(stamps)], then="end")
        ],
        "ahead": [
            script(units, times=[t + (600 if i >= 15 else 0) for i, t in enumerate(stamps)], then="end")
        ],
        "repeat": [script(units, times=[t - t % third for t in stamps], pace=0.02, then="end")],
        "silent": [script(units[:15]), script(big, size=BIG)],
        "closed": [script(units[:15], then="close"), script(units[:15], then="end")],
        "other-codec": [
            script(units[:10], then="end"),
            script(encode(10, codec="mjpeg", height=BIG[0], width=BIG[1]), codec="jpeg", size=BIG, pace=0.02),
        ],
        "long": [script(encode(200, gop=20), times=[i / 200 for i in range(200)], pace=0.005, then="end")],
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RtspServer]:
    need_rtsp_server()
    with RtspServer(tmp_path_factory.mktemp("rtsp"), mounts()) as started:
        yield started


def watch(server: RtspServer, mount: str, options: LiveOptions = QUICK, count: int = 10_000) -> tuple:
    """Up to `count` frames of a mount, and its reader, closed. Checks what must always hold."""
    with open_video(server.url(mount), live=options) as reader:
        assert reader.live and reader.frames_estimate is None
        frames = list(itertools.islice(reader, count))
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert (np.diff([frame.timestamp for frame in frames]) > 0).all()
    assert (np.diff([frame.segment for frame in frames]) >= 0).all()
    for frame in frames:
        assert frame.captured is not None and frame.captured <= time.perf_counter()
        assert frame.decode_ms is not None and frame.decode_ms >= 0
    return frames, reader


def number_of(frame: VideoFrame) -> int:
    """Which `moving_square` a frame shows; fails where it shows none of them, as a smeared one would."""
    height, width = frame.image.shape[:2]
    errors = [
        np.abs(frame.image.astype(int) - moving_square(i, height, width)).mean()
        for i in range(width // 2 - 8)
    ]
    assert min(errors) < 4, f"frame {frame.index} is damaged: {min(errors):.1f}"
    return int(np.argmin(errors))


def shown(frames: list[VideoFrame]) -> list[int]:
    """The numbers of the pictures, without the announcement that the server may send first (number 0)."""
    numbers = [number_of(frame) for frame in frames]
    return numbers[1:] if numbers[1] in (0, 3) else numbers


def test_plays_at_its_own_times(server: RtspServer) -> None:
    frames, reader = watch(server, "plain")
    numbers = shown(frames)
    first = frames[-len(numbers) :]
    assert numbers == [i % 24 for i in range(30)]
    np.testing.assert_allclose(np.diff([frame.timestamp for frame in first]), 0.04, atol=1e-3)
    assert (reader.width, reader.height, reader.rate) == (64, 48, 25)
    assert reader.counters["damaged"] == reader.counters["late"] == 0
    assert "the source ended" in reader.truncated, "it may not reconnect"


def test_over_udp(server: RtspServer) -> None:
    options = dataclasses.replace(QUICK, libav={"rtsp_transport": "udp"})
    numbers = shown(watch(server, "plain", options)[0])
    steps = np.diff(numbers) % 24
    assert len(numbers) >= 15 and (steps >= 1).all() and steps.sum() < 30, "lost, but not mixed up"


@pytest.mark.parametrize(("mount", "broken"), [("half", 12), ("half-key", 10), ("scrambled", 12)])
def test_corrupt_packets_never_show(server: RtspServer, mount: str, broken: int) -> None:
    """What builds on the broken frame is left out, up to the next key frame, 15; the rest is whole."""
    frames, reader = watch(server, mount)
    numbers = shown(frames)
    assert numbers == [i % 24 for i in range(30) if not broken <= i < 15]
    events = reader.counters
    assert events["damaged"] >= 1 and events["damaged"] + events["resync"] == 15 - broken
    assert frames[-1].segment == 0, "a few lost frames are no new scene"


def test_frames_before_the_first_key_frame_are_left_out(server: RtspServer) -> None:
    numbers = [number_of(frame) for frame in watch(server, "late-start")[0]]
    assert numbers == [i % 24 for i in range(5, 30)]


def test_a_lost_key_frame(server: RtspServer) -> None:
    """What builds on the missing frame 10 is left out, up to 14; whatever is shown is whole."""
    numbers = shown(watch(server, "lost-key")[0])
    assert numbers[:10] == list(range(10)) and numbers[-15:] == [i % 24 for i in range(15, 30)]


def test_stamps_that_jump(server: RtspServer) -> None:
    for mount in ("back", "ahead"):
        frames, reader = watch(server, mount)
        numbers = shown(frames)
        assert numbers == [i % 24 for i in range(30)], mount
        steps = np.diff([frame.timestamp for frame in frames[-30:]])
        jump = int(np.argmax(np.diff([frame.segment for frame in frames[-30:]])))
        assert jump == 14 and reader.counters["repaired_times"] >= 1
        assert steps.max() < 2.0, "600 seconds did not pass"
        np.testing.assert_allclose(np.delete(steps, jump), 0.04, atol=1e-3)


def test_stamps_that_repeat_and_stall(server: RtspServer) -> None:
    """Ten frames with one stamp, then the next ten with another: time goes on by arrival."""
    frames, reader = watch(server, "repeat")
    assert shown(frames) == [i % 24 for i in range(30)]
    assert reader.counters["repaired_times"] >= 27 and reader.counters["late"] == 0
    assert 0.5 < frames[-1].timestamp < 3.0 and frames[-1].segment == 0


def test_silence_leads_to_a_new_connection(server: RtspServer) -> None:
    """And there the camera has another size."""
    frames, reader = watch(server, "silent", BACK, count=16 + 8)
    sizes = [frame.image.shape[:2] for frame in frames]
    assert sizes[:15] == [(48, 64)] * 15 and sizes[-7:] == [BIG] * 7
    (change,) = np.flatnonzero(np.diff([frame.segment for frame in frames]))
    step = frames[change + 1].timestamp - frames[change].timestamp
    assert 0.6 < step < 10, "the time that was silent is part of the stream's"
    events = reader.counters
    assert events["reconnects"] == 1 and events["sizes"] == 1 and 0 < events["outage_seconds"] < 10
    number_of(frames[-1])


def test_a_server_that_closes_the_connection(server: RtspServer) -> None:
    frames, reader = watch(server, "closed", BACK, count=28)
    assert reader.counters["reconnects"] == 1 and frames[-1].segment == 1
    assert [number_of(frame) for frame in frames[-10:]] == sorted(number_of(frame) for frame in frames[-10:])


def test_another_codec_pixel_format_and_rate(server: RtspServer) -> None:
    frames, reader = watch(server, "other-codec", BACK, count=18)
    assert frames[-1].image.shape[:2] == BIG and reader.counters["reconnects"] == 1
    number_of(frames[-1])


def test_a_reboot(tmp_path: Path) -> None:
    """The server dies as in a power cut and comes back, after a while, on the same port."""
    need_rtsp_server()
    with RtspServer(tmp_path, {"cam": [script(encode(400), pace=0.02)]}) as server:
        with open_video(server.url("cam"), live=BACK) as reader:
            frames = [next(iter(reader))]
            server.stop()
            waiting = threading.Timer(0.7, server.start)
            waiting.start()
            for frame in reader:
                frames.append(frame)
                if frame.segment:
                    break
            waiting.join()
        events = reader.counters
        assert events["reconnects"] == 1 and events["failed_attempts"] >= 1
        assert frames[-1].timestamp - frames[-2].timestamp > 0.5
        number_of(frames[-1])


def test_a_source_that_does_not_come_back(tmp_path: Path) -> None:
    need_rtsp_server()
    options = LiveOptions(silence_seconds=1, first_wait=0.01, longest_wait=0.02, attempts=3)
    with RtspServer(tmp_path, {"cam": [script(encode(10), then="end")]}) as server:
        with open_video(server.url("cam"), live=options) as reader:
            frames = [next(iter(reader))]
            server.stop()
            frames += reader
        assert reader.counters["failed_attempts"] == 3 and reader.counters["reconnects"] == 0
        assert "did not come back in 3 attempts" in reader.truncated and "refused" in reader.truncated


@pytest.mark.parametrize(("path", "word"), [("missing", "manual"), ("", "manual")])
def test_a_path_that_is_not_there(server: RtspServer, path: str, word: str) -> None:
    url = server.url(path).replace("://", "://admin:hunter2@")
    with pytest.raises(VideoError) as caught:
        open_video(url, live=QUICK)
    assert word in caught.value.hint and "admin:***@" in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_nothing_listens_or_nobody_answers() -> None:
    with pytest.raises(VideoError, match="refused") as caught:
        open_video("rtsp://127.0.0.1:9/cam", live=QUICK)
    assert "port" in caught.value.hint
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, says nothing
        start = time.monotonic()
        with pytest.raises(VideoError, match=r"no answer within 0\.3 s"):
            open_video(f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/", live=LiveOptions(connect_seconds=0.3))
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(("keep_up", "lost"), [(True, 0.3), (True, 100.0), (False, 0.3)])
def test_a_slow_reader_never_falls_behind(
    server: RtspServer, monkeypatch: pytest.MonkeyPatch, keep_up: bool, lost: float
) -> None:
    """200 frames per second arrive, 50 are taken. With `lost`, whole groups of packets are left out."""
    monkeypatch.setattr(connection, "LATE_SECONDS", 0.1)
    monkeypatch.setattr(connection, "LOST_SECONDS", lost)
    options = LiveOptions(keep_up=keep_up, silence_seconds=2, attempts=0)
    lags, taken = [], 0
    with open_video(server.url("long"), live=options) as reader:
        for frame in reader:
            lags.append(time.perf_counter() - (frame.captured or 0))
            if taken == 0:
                time.sleep(0.5)  # as when a model is loaded
            taken += 1
            if keep_up:
                number_of(frame)
            time.sleep(0.02)
        late = int(reader.counters["late"])
        assert reader.dropped == late and 200 <= taken + late <= 201, "every frame is accounted for"
    if keep_up:
        assert late > 50 and np.median(lags) < 0.2 and lags[-1] < 0.3
    else:
        assert late == 0 and lags[-1] > 1.5


def test_closing_ends_a_reader_that_waits_in_another_thread(server: RtspServer) -> None:
    reader = open_video(server.url("silent"), live=LiveOptions(silence_seconds=1.0))
    thread = threading.Thread(target=lambda: list(reader))
    thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    reader.close()
    reader.close()
    assert time.monotonic() - start < 2
    thread.join(5)
    assert not thread.is_alive() and list(reader) == []
