"""`run` with live sources and with several inputs, as a user calls it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rtsp_samples import RtspServer, encode, need_rtsp_server, script
from video_samples import sample_clip, truncated_clip, write_video

from streamsplat_edge import cli
from streamsplat_edge.commands.run import shown_name
from streamsplat_edge.runtime.errors import VideoError
from streamsplat_edge.runtime.sources import existing_path, parse_uri
from streamsplat_edge.runtime.video import open_video
from streamsplat_edge.runtime.video.file import FileReader


@pytest.mark.rtsp
def test_a_live_source_that_comes_back_in_another_size(tmp_path: Path, fake_bundle: Path, call: Any) -> None:
    need_rtsp_server()
    units = encode(20)
    big = script(encode(20, height=96, width=128), size=(96, 128), then="end")
    mounts = {"cam": [script(units, then="end"), big]}
    out = tmp_path / "o.mp4"
    with RtspServer(tmp_path, mounts) as server:
        url = server.url("cam").replace("://", "://admin:hunter2@")
        result = call(
            *("run", url, "--bundle", fake_bundle, "-o", out, "--json", "--silence", "2"),
            *("--layout", "side-by-side", "--max-frames", "35", "--policy", "block"),
        )
    assert result.returncode == 0, result.stderr
    stats = json.loads(result.stdout)
    assert stats["frames"]["total"] == 35 and stats["frames"]["dropped"] == 0
    source = stats["source"]
    assert source["live"] and source["policy"] == "block" and source["reconnects"] == 1
    assert source["breaks"] == 1 and source["sizes"] == 1
    assert "hunter2" not in result.stdout + result.stderr and "admin:***@" in stats["settings"]["input"]
    with open_video(out) as reader:
        assert sum(1 for _ in reader) == 35


@pytest.mark.rtsp
def test_a_live_source_that_is_lost(tmp_path: Path, fake_bundle: Path, call: Any) -> None:
    need_rtsp_server()
    with RtspServer(tmp_path, {"cam": [script(encode(20), then="end")]}) as server:
        result = call("run", server.url("cam"), "--bundle", fake_bundle, "--reconnect", "0")
    assert result.returncode == 3 and "was lost after" in result.stderr
    counted = re.search(r"(\d+) frames of .*\n  live \(latest\): (\d+) frames dropped", result.stdout)
    assert counted and 20 <= int(counted[1]) + int(counted[2]) <= 21, "every frame is accounted for"


def test_titles_of_pages_and_windows() -> None:
    """Everyone who looks sees them."""
    for text, title in (
        ("/home/me/clips/a.mp4", "a.mp4"),
        ("camera:0", "camera:0"),
        ("rtsp://admin:hunter2@10.0.0.5/x", "rtsp://admin:***@10.0.0.5/x"),
        ("gst:rtspsrc location=rtsp://10.0.0.5/x user-pw=hunter2", "GStreamer pipeline"),
    ):
        assert shown_name(parse_uri(text).shown) == title


def test_a_pipeline_longer_than_a_path_may_be(tmp_path: Path, fake_bundle: Path, call: Any) -> None:
    """Whether the output is the input is asked of files alone."""
    pipeline = f"gst:videotestsrc ! {'identity ! ' * 40}nothing-of-this-name user-pw=hunter2"
    (tmp_path / "o.mp4").write_bytes(b"earlier")
    out = ("-o", tmp_path / "o.mp4", "--save", tmp_path / "{:04d}.png", "--force")
    room = ("--bundle", fake_bundle, "--replicas", "1", "--streams-per-replica", "1")
    for options in (("run", pipeline, "--bundle", fake_bundle, *out), ("serve", pipeline, "b=x", *room)):
        result = call(*options)
        assert result.returncode == 2 and result.stderr.startswith("error: "), result.stderr
        assert "hunter2" not in result.stderr
    for text, found in ((pipeline, None), (str(tmp_path), tmp_path), (str(tmp_path / "none"), None)):
        assert existing_path(text) == found


@pytest.mark.rtsp
def test_ctrl_c_while_the_source_is_silent(tmp_path: Path, fake_bundle: Path) -> None:
    """What came before is kept, and it does not take until the silence is over."""
    need_rtsp_server()
    out = tmp_path / "o.mp4"
    with RtspServer(tmp_path, {"cam": [script(encode(10), pace=0.02)]}) as server:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "streamsplat_edge", "run", server.url("cam")),
                *("--bundle", str(fake_bundle), "-o", str(out), "--silence", "600", "--policy", "block"),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".o.mp4.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.0)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - start < 15
    assert process.returncode == 130 and "interrupted after" in errors, errors
    with open_video(out) as reader:
        assert sum(1 for _ in reader) >= 9, "also those that waited for the next key frame"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--policy", "latest"), "recording"),
        (("--reconnect", "-1"), "--reconnect"),
        (("--silence", "0"), "--silence"),
        (("--source-option", "x"), "NAME=VALUE"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], word: str
) -> None:
    clip = sample_clip(tmp_path / "a.mp4", 4)
    assert cli.main(["run", str(clip), "--bundle", str(fake_bundle), *options]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("inputs", [1, 2])
def test_to_reconnect_to_a_recording_over_http_is_refused(
    inputs: int, tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_clip(tmp_path / "a.mp4", 4, container_options={"movflags": "+faststart"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/a.mp4"
    out = tmp_path / "o-{}.mp4"
    try:
        command = ["run", *[url] * inputs, "--bundle", str(fake_bundle), "-o", str(out), "--quiet"]
        assert cli.main([*command, "--reconnect", "3"]) == 2
        assert "--reconnect has no effect here" in capsys.readouterr().err
        assert not list(tmp_path.glob("*o-*"))
        assert cli.main(command) == 0
    finally:
        server.shutdown()
        server.server_close()


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with contextlib.suppress(OSError):  # who reads only the beginning hangs up
            super().copyfile(source, outputfile)


def test_key_frames_by_motion(tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture stands still, then pans by a sixteenth of its width per frame."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    texture = noise.repeat(8, 0).repeat(8, 1)
    images = [texture] * 12 + [np.roll(texture, 4 * i, 1) for i in range(12)]
    clip = write_video(tmp_path / "a.mp4", images)
    code = cli.main(
        [*("run", str(clip), "--bundle", str(fake_bundle), "--json", "--gap", "12", "--key-frames", "motion")]
    )
    stats = json.loads(capsys.readouterr().out)
    assert code == 0 and stats["settings"]["key_frames"] == "motion"
    assert stats["frames"]["total"] == 24 and 12 <= stats["frames"]["key"] <= 14
    assert stats["frames"]["cuts"] == 0


# Several inputs


def test_several_inputs(tmp_path: Path, fake_bundle: Path, call: Any) -> None:
    """Each stream comes out as it does alone."""
    clips = [sample_clip(tmp_path / f"in{i}.mp4", 10 + 5 * i) for i in range(3)]
    out = tmp_path / "out"
    out.mkdir()
    several = ("-o", out / "o-{}", "--stats", out / "s-{}.json", "--json")
    result = call("run", *clips, "--bundle", fake_bundle, *several)
    assert result.returncode == 0, result.stderr
    streams = json.loads(result.stdout)["streams"]
    assert [stream["frames"]["total"] for stream in streams] == [10, 15, 20]
    assert all(stream["schedule"]["turns"] >= stream["frames"]["total"] for stream in streams)
    call("run", clips[1], "--bundle", fake_bundle, "-o", out / "alone")
    with open_video(out / "o-1") as many, open_video(out / "alone") as alone:
        for a, b in zip(many, alone, strict=True):
            np.testing.assert_array_equal(a.image, b.image)
    assert json.loads((out / "s-2.json").read_text())["settings"]["input"].endswith("in2.mp4")


def test_bad_inputs_among_several(
    tmp_path: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, cut = sample_clip(tmp_path / "good.mp4", 10), truncated_clip(tmp_path / "cut.mp4")
    lost = sample_clip(tmp_path / "lost.mp4", 10)
    frames = FileReader.__iter__

    def fail_on_one(reader: FileReader) -> Iterator[Any]:
        if reader.uri == str(lost):
            raise VideoError("lost.mp4: cannot be read on.", "Look after it.")
        return frames(reader)

    monkeypatch.setattr(FileReader, "__iter__", fail_on_one)
    inputs = map(str, (good, cut, lost))
    code = cli.main(["run", *inputs, "--bundle", str(fake_bundle), "-o", str(tmp_path / "o-{}.mp4")])
    said = capsys.readouterr().err
    assert code == 3 and "cut.mp4: only" in said and "lost.mp4: cannot be read on." in said
    with open_video(tmp_path / "o-0.mp4") as reader:
        assert sum(1 for _ in reader) == 10
    assert (tmp_path / "o-1.mp4").exists()


@pytest.mark.parametrize("option", ["-o", "--stats", "--contact-sheet"])
def test_several_inputs_need_several_names(
    tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    clip = str(sample_clip(tmp_path / "a.mp4", 4))
    assert cli.main(["run", clip, clip, "--bundle", str(fake_bundle), option, str(tmp_path / "x.mp4")]) == 2
    assert "x-{}.mp4" in capsys.readouterr().err
