"""Live sources without a network: URIs, time lines, clocks, and frames pushed by a program."""

from __future__ import annotations

import re
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsplat_edge.runtime.errors import InputError, VideoError
from streamsplat_edge.runtime.sources import LiveOptions, PushSource, SourceClock, Timeline, parse_uri
from streamsplat_edge.runtime.video import open_video

# URIs


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("clip.mp4", "path", "clip.mp4"),
        ("/a b/c%20d.mp4", "path", "/a b/c%20d.mp4"),
        ("file:///a/b%20c.mp4", "path", "/a/b c.mp4"),
        ("camera:3", "camera", "/dev/video3"),
        ("/dev/video12", "camera", "/dev/video12"),
        ("v4l2:///dev/by-id/usb", "camera", "/dev/by-id/usb"),
        ("rtsp://host/cam", "network", "rtsp://host/cam"),
        ("RTSP://host/cam", "network", "RTSP://host/cam"),
        ("https://host/live.m3u8", "network", "https://host/live.m3u8"),
        ("http://[::1", "network", "http://[::1"),  # no address, which libav says in words
        ("gst: videotestsrc ! video/x-raw", "gstreamer", "videotestsrc ! video/x-raw"),
    ],
)
def test_uri_forms(text: str, kind: str, target: str) -> None:
    uri = parse_uri(text)
    assert (uri.kind, uri.target) == (kind, target)
    assert uri.scheme == (text.partition("://")[0].lower() if kind == "network" else "")


def test_csi_is_a_pipeline_for_jetson() -> None:
    uri = parse_uri("csi:1")
    assert uri.kind == "gstreamer" and "nvarguscamerasrc sensor-id=1 " in uri.target and uri.shown == "csi:1"


def test_an_empty_text_is_not_this_folder() -> None:
    with pytest.raises(VideoError, match=r"empty.*variable"):  # of a shell, in most cases
        parse_uri("")


@pytest.mark.parametrize("text", ["ftp://host/x", "gst:", "gst: ", "v4l2://", "srt://host:1"])
def test_uris_that_mean_nothing(text: str) -> None:
    with pytest.raises(VideoError) as caught:
        parse_uri(text)
    assert caught.value.hint and text.split(":")[0] in caught.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://admin:pa:ss@10.0.0.1:554/cam?x=1", "rtsp://admin:***@10.0.0.1:554/cam?x=1"),
        ("rtsp://admin:pa#s@s@10.0.0.1/cam", "rtsp://admin:***@10.0.0.1/cam"),
        ("rtsp://admin:pa/ss@10.0.0.1/cam", "rtsp://admin:***@10.0.0.1/cam"),
        ("rtsp://admin:pa?ss@10.0.0.1/cam", "rtsp://admin:***@10.0.0.1/cam"),
        ("rtsp://me@corp.com:pass@10.0.0.1/cam", "rtsp://me@corp.com:***@10.0.0.1/cam"),
        ("rtsp://admin@host/cam", "rtsp://admin@host/cam"),
        ("rtsp://host:554/cam?n=1", "rtsp://host:554/cam?n=1"),
        ("http://host/a?user=me&Token=abc&n=5&apikey=z", "http://host/a?user=me&Token=***&n=5&apikey=***"),
        ("http://host/a?pw=a#b&n=5&Signature=x", "http://host/a?pw=***&n=5&Signature=***"),
        (
            "rtsp://h/user=a&password=HUNTER2&channel=1",
            "rtsp://h/user=a&password=***&channel=1",
        ),
        ("rtsp://h/user=a_password=b_channel=1.sdp?x", "rtsp://h/user=a_password=***"),
        ("rtsp://u:a@h/?passwd=b&user-pw=c&auth=d", "rtsp://u:***@h/?passwd=***&user-pw=***&auth=***"),
        # More than need be: a path may look like credentials.
        ("rtsp://host/user:secret@x", "rtsp://host/user:***@x"),
    ],
)
def test_secrets_are_never_shown(url: str, shown: str) -> None:
    uri = parse_uri(url)
    assert uri.shown == shown and uri.target == url
    assert uri.redact(f"Input/output error: '{url}'") == f"Input/output error: '{shown}'"
    assert url == shown or url not in repr(uri)


@pytest.mark.parametrize(
    ("pipeline", "shown"),
    [
        (
            "rtspsrc location=rtsp://admin:SECRET@h/x user-pw=HUNTER2 latency=0 ! rtph264depay ! avdec_h264",
            "rtspsrc location=rtsp://admin:***@h/x user-pw=*** latency=0 ! rtph264depay ! avdec_h264",
        ),
        (
            "rtspsrc location=\"rtsp://h/?a=1&token=SECRET&b=2\" user-pw = 'HUN TER2' ! x",
            'rtspsrc location="rtsp://h/?a=1&token=***&b=2" user-pw = *** ! x',
        ),
        (r"x user-pw=SEC\ RET\"S proxy-pw=\"HUN TER2\" ! x", 'x user-pw=*** proxy-pw=***" ! x'),
        (r"""x user-pw="SEC\" RET"'HUNTER2 ! x""", "x user-pw=***"),
        (
            r"""souphttpsrc extra-headers="h,Authorization=(string)\"Basic SECRET\"" cookies=SECRET ! x""",
            "souphttpsrc extra-headers=*** cookies=*** ! x",
        ),
        (
            "a location=rtsp://u:SEC@RET@h/x ! b ! c location=http://v:SECRET@h",
            "a location=rtsp://u:***@h/x ! b ! c location=http://v:***@h",
        ),
        ("v4l2src device=/dev/video2 ! image/jpeg,framerate=30/1 ! jpegdec",) * 2,
    ],
)
def test_secrets_of_a_pipeline(pipeline: str, shown: str) -> None:
    uri = parse_uri(f"gst:{pipeline}")
    assert uri.shown == f"gst:{shown}" and uri.target == pipeline
    assert not {"SECRET", "HUNTER2"} & set(re.findall(r"\w+", uri.shown + repr(uri)))


def test_what_other_programs_repeat() -> None:
    uri = parse_uri("gst:rtspsrc location=rtsp://a:'S%23C RET'@h user-pw=\"HUNTER2\" user-id=ab proxy-pw=ab")
    said = uri.redact('could not set "user-pw" to "HUNTER2"; S#C RET, S%23C RET; "ab" about')
    assert said == 'could not set "user-pw" to ***; ***, ***; "***" about'
    uri = parse_uri("rtsp://admin:pa/ss@h/x")
    assert uri.redact("port 'pa/ss' of rtsp://admin:pa/ss@h is none") == (
        "port '***' of rtsp://admin:***@h is none"
    )


@pytest.mark.parametrize(
    "text", ["srt://admin:HUNTER2@h", "rtsp:/admin:HUNTER2@h/x", "rtsp:admin:HUNTER2@h/x"]
)
def test_addresses_with_a_mistake_are_refused_without_the_password(text: str) -> None:
    with pytest.raises(VideoError) as caught:
        parse_uri(text)
    assert "HUNTER2" not in str(caught.value) + caught.value.hint and "admin:***@h" in caught.value.message


def test_what_gstreamer_says_about_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that fails: neither its complaint nor the command to try has the password."""
    program = tmp_path / "gst-launch-1.0"
    program.write_text("#!/bin/sh\necho \"ERROR: could not set 'user-pw' to 'HUNTER2' of $*\" >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    secrets = "SECRET", "HUNTER2"
    with pytest.raises(VideoError) as caught:
        open_video(f"gst:rtspsrc location=rtsp://u:{secrets[0]}@h user-pw={secrets[1]} ! x")
    error = caught.value
    assert "ERROR: could not set 'user-pw' to '***'" in error.message
    assert "location=rtsp://u:***@h user-pw=*** ! x" in error.hint
    shown = "".join(traceback.format_exception(error))
    assert f"{secrets[1]} ! x" not in shown and not any(secret in error.hint for secret in secrets)


# Time lines


def placed(stamps: list[float | None], arrivals: list[float]) -> tuple[list[float], list[int], int]:
    """Seconds and segments of frames, and how many stamps were repaired."""
    timeline = Timeline()
    frames = [timeline.place(*each) for each in zip(stamps, arrivals, strict=True)]
    seconds = [frame.timestamp for frame in frames]
    assert (np.diff(seconds) > 0).all()
    return seconds, [frame.segment for frame in frames], sum(frame.repaired for frame in frames)


def test_good_stamps_are_believed_however_frames_arrive() -> None:
    stamps: list[float | None] = [100.0, 100.04, 100.2, 100.21, 101.1]
    seconds, segments, repaired = placed(stamps, [5.0, 5.01, 7.0, 7.0, 7.0])
    np.testing.assert_allclose(seconds, [0, 0.04, 0.2, 0.21, 1.1])
    assert segments == [0] * 5 and repaired == 0


def test_a_clock_that_jumps_goes_on_from_where_it_was() -> None:
    arrivals = [i * 0.04 for i in range(6)]
    for jump in (-60.0, 5000.0):
        stamps: list[float | None] = [9000 + a + (jump if i >= 3 else 0) for i, a in enumerate(arrivals)]
        seconds, segments, repaired = placed(stamps, arrivals)
        np.testing.assert_allclose(seconds, arrivals, atol=1e-9)
        assert segments == [0, 0, 0, 1, 1, 1] and repaired == 1


def test_repeated_and_missing_stamps_are_placed_by_arrival() -> None:
    arrivals = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]
    for stamps in ([1.0, 1.04, 1.04, 1.04, 1.16, 1.2], [1.0, 1.04, None, None, 1.16, 1.2]):
        seconds, segments, repaired = placed(stamps, arrivals)
        assert repaired == 2 and segments == [0] * 6
        # The first good stamp after them repeats the time that was filled in: off by as much, never back.
        np.testing.assert_allclose(seconds[:4], arrivals[:4], atol=1e-9)
        assert 0.2 <= seconds[-1] <= 0.29


def test_small_steps_back_are_jitter() -> None:
    seconds, segments, repaired = placed([1.0, 1.04, 1.03, 1.08], [0.0, 0.04, 0.08, 0.12])
    assert segments == [0] * 4 and repaired == 1 and seconds[-1] < 0.15


def test_no_motion_across_minutes_of_silence_or_a_lost_connection() -> None:
    seconds, segments, repaired = placed([1.0, 1.04, 301.04, 301.08], [0.0, 0.04, 300.0, 300.04])
    np.testing.assert_allclose(seconds, [0, 0.04, 300.04, 300.08])
    assert segments == [0, 0, 1, 1] and repaired == 0
    timeline = Timeline()
    timeline.place(50.0, 10.0)
    timeline.reconnected()
    after = timeline.place(0.0, 17.5)
    assert (after.timestamp, after.segment, after.repaired) == (7.5, 1, False)
    assert timeline.place(0.04, 17.5).timestamp == pytest.approx(7.54)


def test_capture_is_told_from_the_fastest_packet() -> None:
    """Delays of 0 to 300 ms on the way, and a constant 50 s between the clocks."""
    clock, rng = SourceClock(), np.random.default_rng(0)
    arrival, lags = 0.0, []
    for i in range(200):
        sent = 100 + i * 0.04
        arrival = max(arrival, sent - 50 + (0.0 if i % 20 == 0 else rng.uniform(0, 0.3)))
        lags.append(clock.observe(sent, arrival))
        assert clock.captured(sent, arrival) == pytest.approx(sent - 50)
        assert lags[-1] == pytest.approx(arrival - (sent - 50))
    assert max(lags) > 0.25


def test_the_clock_follows_drift_and_jumps() -> None:
    clock = SourceClock()
    for i in range(5000):  # 200 s of a crystal that is slow by 0.1 %
        lag = clock.observe(i * 0.04, i * 0.04 * 1.001)
    assert lag <= 0.061, "what drifts in the remembered minute, not in all the time"
    now = 5000 * 0.04 * 1.001
    assert clock.observe(9e6, now) == 0.0 and clock.captured(9e6, now) == pytest.approx(now)
    assert clock.observe(3.0, now + 0.04) == 0.0
    assert clock.captured(None, now) == now and clock.captured(500.0, now) == now


def test_stamps_that_stall_are_no_lag() -> None:
    clock = SourceClock()
    clock.observe(0.0, 0.0)
    assert [clock.observe(stamp, 0.04 * i) for i, stamp in enumerate([0.04] * 200, 1)][-1] == 0.0


@pytest.mark.parametrize(
    "values",
    [{"attempts": -1}, {"silence_seconds": 0}, {"first_wait": -1}, {"connect_seconds": float("nan")}],
)
def test_impossible_patience_is_refused(values: dict) -> None:
    with pytest.raises(InputError):
        LiveOptions(**values)


# Pushed frames


def image(value: int = 0, size: tuple[int, int] = (8, 16)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def test_pushed_frames_come_out_in_order_then_end() -> None:
    source = PushSource(policy="block", depth=3)
    assert [source.push(image(i), i * 0.1, discontinuity=i == 2) for i in range(3)] == [0, 1, 2]
    source.end()
    frames = list(source)
    assert [frame.image[0, 0, 0] for frame in frames] == [0, 1, 2]
    assert [frame.timestamp for frame in frames] == [0.0, 0.1, 0.2]
    assert [frame.segment for frame in frames] == [0, 0, 1] and source.dropped == 0
    with pytest.raises(InputError, match="ended"):
        source.push(image(), 9.0)


def test_latest_drops_the_oldest_and_keeps_the_break() -> None:
    source = PushSource(depth=2)
    for i in range(6):
        source.push(image(i), i * 0.1, discontinuity=i == 3)
    source.end()
    frames = list(source)
    assert [frame.index for frame in frames] == [4, 5] and source.dropped == 4
    assert [frame.segment for frame in frames] == [1, 1], "the frame that began it was dropped"


def test_without_time_stamps_the_time_of_the_push_counts() -> None:
    source = PushSource(policy="block", depth=4)
    before = time.perf_counter()
    source.push(image())
    time.sleep(0.02)
    source.push(image(), captured=before)
    source.end()
    first, second = source
    assert first.timestamp == 0.0 and 0.02 <= second.timestamp < 1.0
    assert first.captured is not None and first.captured >= before and second.captured == before


def test_block_waits_for_room() -> None:
    source = PushSource(policy="block", depth=1)
    source.push(image(), 0.0)
    with pytest.raises(InputError, match="No room"):
        source.push(image(), 0.1, timeout=0.01)
    taken: list[int] = []
    reader = threading.Thread(target=lambda: taken.extend(frame.index for frame in source))
    reader.start()
    for i in range(1, 20):
        source.push(image(), i * 0.1)
    source.end()
    reader.join(5)
    assert taken == list(range(20))


def waiting_pushes(source: PushSource, stamps: list[float | None]) -> tuple[list[threading.Thread], list]:
    """Threads that push while there is no room, each once the one before it waits; and what was refused."""
    refused: list[InputError] = []

    def push(value: int, stamp: float | None) -> None:
        try:
            source.push(image(value), stamp)
        except InputError as error:
            refused.append(error)

    threads = []
    for value, stamp in enumerate(stamps, 1):
        threads.append(threading.Thread(target=push, args=(value, stamp)))
        threads[-1].start()
        while len(source._line) < value:
            assert threads[-1].is_alive()
            time.sleep(0.001)
    return threads, refused


@pytest.mark.parametrize("stamps", [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [None] * 6])
def test_pushes_that_wait_are_taken_in_the_order_of_their_calls(stamps: list[float | None]) -> None:
    source = PushSource(policy="block", depth=1)
    source.push(image(), 0.0)
    threads, refused = waiting_pushes(source, stamps)
    frames = [frame for _, frame in zip(range(7), source, strict=False)]
    for thread in threads:
        thread.join(60)
    assert [frame.image[0, 0, 0] for frame in frames] == list(range(7)) and not refused
    assert (np.diff([frame.timestamp for frame in frames]) > 0).all()


def test_a_push_that_comes_too_late_by_waiting_is_refused() -> None:
    """Both were later than the last frame when they were called; the one taken first decides."""
    source = PushSource(policy="block", depth=1)
    source.push(image(), 0.0)
    threads, refused = waiting_pushes(source, [2.0, 1.0])
    taken = iter(source)
    assert [next(taken).timestamp, next(taken).timestamp] == [0.0, 2.0]
    for thread in threads:
        thread.join(60)
    (error,) = refused
    assert "not later" in error.message
    assert source.push(image(), 3.0) == 2 and next(taken).timestamp == 3.0


def test_a_push_that_gave_up_holds_up_no_other() -> None:
    source = PushSource(policy="block", depth=1)
    source.push(image(), 0.0)
    with pytest.raises(InputError, match="No room"):
        source.push(image(), 5.0, timeout=0.01)
    threads, refused = waiting_pushes(source, [0.1])
    assert [frame.timestamp for _, frame in zip(range(2), source, strict=False)] == [0.0, 0.1]
    threads[0].join(60)
    assert not refused


def test_time_stamps_of_numpy_become_plain_numbers() -> None:
    source = PushSource()
    source.push(image(), np.float32(0.5))
    assert type(next(iter(source)).timestamp) is float


def test_a_push_that_is_refused_changes_nothing() -> None:
    source = PushSource()
    source.push(image(), 1.0)
    bad_pushes: list[Any] = [(image(), 1.0), (image(), float("nan")), (image()[..., 0], 2.0)]
    for bad, seconds in [*bad_pushes, (image(), "2"), (image(), np.datetime64(2, "s")), (image(), 10**400)]:
        with pytest.raises(InputError):
            source.push(bad, seconds)
    assert source.push(image(), 1.1) == 1
    for options in ({"policy": "newest"}, {"depth": 0}):
        with pytest.raises(InputError):
            PushSource(**options)


def test_close_forgets_what_waits_and_wakes_a_reader() -> None:
    source = PushSource()
    source.push(image(), 0.0)
    source.close()
    assert list(source) == []
    waiting = PushSource()
    reader = threading.Thread(target=lambda: list(waiting))
    reader.start()
    waiting.close()
    reader.join(5)
    assert not reader.is_alive()
