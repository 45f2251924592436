"""`view`, and `run --view`: the page is there while frames flow and after; what cannot be is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from video_samples import sample_clip

pytest.importorskip("websockets")
from websockets.sync.client import connect

SECONDS = 60


def start(*arguments: object, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """The command, and the address it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "streamsplat_edge", *map(str, arguments), "--view-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        # Where the tests run in a shell's background, Ctrl-C is ignored, and so by what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(r"view: (http://\S+)\n", line)
    if not found:
        process.kill()
        pytest.fail(line + process.communicate()[1])
    return process, found[1]


def watch_to_the_end(url: str) -> tuple[int, dict]:
    """Binary messages that came (at least one), and the last status."""
    parts = urlsplit(url)
    count = 0
    with connect(
        f"ws://127.0.0.1:{parts.port}/stream?{parts.query}", proxy=None, max_size=None
    ) as connection:
        status: dict = {}
        while not (status.get("ended") and count):
            data = connection.recv(SECONDS)
            if isinstance(data, bytes):
                count += 1
            else:
                status = json.loads(data)
        return count, status


def test_view_stays_until_it_is_interrupted(tmp_path: Path, fake_bundle: Path) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 14)
    process, url = start("view", clip, "--bundle", fake_bundle)
    try:
        assert url.startswith("http://127.0.0.1:")
        status = watch_to_the_end(url)[1]
        assert status["counters"]["frames"] == 14
        assert process.stderr is not None
        while "Ctrl-C" not in process.stderr.readline():
            pass
        assert watch_to_the_end(url)[0] > 0, "still there, for those who come late"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0 and "Traceback" not in errors and "frames per second" in output
    finally:
        process.kill()
        process.communicate()


def test_run_with_a_view_ends_by_itself_and_writes_the_same(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 9)
    plain = call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / "plain")
    shown = call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / "shown", "--view", "--view-port", 0)
    assert plain.returncode == shown.returncode == 0, shown.stderr
    assert "view: http://" in shown.stderr
    pictures = sorted(path.name for path in (tmp_path / "plain").glob("*.png"))
    assert len(pictures) == 9
    for name in pictures:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "shown" / name).read_bytes()


def test_another_interface_gets_a_token(tmp_path: Path, fake_bundle: Path) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 5)
    for environment in ({}, {"STREAMSPLAT_VIEW_TOKEN": "s3cret-token"}):
        process, url = start("view", clip, "--bundle", fake_bundle, "--view-host", "0.0.0.0", **environment)
        try:
            token = url.partition("?token=")[2]
            assert token == "s3cret-token" if environment else len(token) >= 16
            assert watch_to_the_end(url)[1]["counters"]["frames"] == 5
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--view-port", "70000"), ("--view-port", "65535")),
        (("--view-port", "-1"), ("--view-port",)),
        (("--view-seconds", "0"), ("--view-seconds",)),
        (("--view-seconds", "nan"), ("--view-seconds",)),
        (("--view-memory", "0"), ("--view-memory",)),
        (("--view-host", "no.such.host.invalid"), ("no.such.host.invalid", "cannot listen")),
    ],
)
def test_impossible_values(tmp_path: Path, fake_bundle: Path, call, options: tuple, words: tuple) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 5)
    result = call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / "o.mp4", "--view", *options)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "hint: " in result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "o.mp4").exists()


def test_several_inputs_are_refused(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 5)
    result = call("run", clip, clip, "--bundle", fake_bundle, "--view")
    assert result.returncode == 2 and "one input" in result.stderr and "--view-port" in result.stderr


def test_without_websockets_the_extra_is_named(tmp_path: Path, fake_bundle: Path) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 5)
    code = (
        "import sys; sys.modules['websockets'] = None\n"
        "from streamsplat_edge.cli import main\n"
        f"sys.exit(main(['run', {str(clip)!r}, '--bundle', {str(fake_bundle)!r}, '--view']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 2 and "websockets" in result.stderr
    assert "hint: pip install 'streamsplat-edge[view]'" in result.stderr


def test_saved_tracks_can_be_looked_at(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 9)
    saved = call("run", clip, "--bundle", fake_bundle, "--save", tmp_path / "t.npz")
    assert saved.returncode == 0, saved.stderr
    process, url = start("view", tmp_path / "t.npz")
    try:
        assert watch_to_the_end(url)[1]["counters"]["key_frames"] == 3
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 0 and "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("name", "word"), [("a.ply", "tracks"), ("a.4dgs", "tracks"), ("a.npz", "cannot be read")]
)
def test_other_files_are_refused(tmp_path: Path, call, name: str, word: str) -> None:
    (tmp_path / name).write_bytes(b"something else")
    result = call("view", tmp_path / name, "--view-port", 0)
    assert result.returncode == 2 and word in result.stderr and "hint: " in result.stderr
