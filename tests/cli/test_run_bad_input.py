"""All that can be wrong with a call of `run`: a clear message, the right exit code, nothing half-written."""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_samples import audio_only, moving_square, sample_clip, truncated_clip

from streamsplat_edge import cli
from streamsplat_edge.commands import arguments, stopping
from streamsplat_edge.commands import run as run_command
from streamsplat_edge.runtime.errors import BundleError
from streamsplat_edge.runtime.video import encode_png, open_video


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for outputs only, so that whatever is left behind shows."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def assert_refused(result: subprocess.CompletedProcess[str], out: Path, *words: str) -> None:
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    assert list(out.iterdir()) == []


def make_missing(path: Path) -> Path:
    return path / "missing.mp4"


def make_empty(path: Path) -> Path:
    (path / "empty.mp4").touch()
    return path / "empty.mp4"


def make_text(path: Path) -> Path:
    (path / "diary.mp4").write_text("Dear diary\n" * 100)
    return path / "diary.mp4"


def make_sound(path: Path) -> Path:
    return audio_only(path / "sound.wav")


def make_headless(path: Path) -> Path:
    data = sample_clip(path / "w.mp4", 30).read_bytes()
    (path / "cut.mp4").write_bytes(data[: len(data) // 2])
    return path / "cut.mp4"


def make_empty_folder(path: Path) -> Path:
    (path / "nothing").mkdir()
    return path / "nothing"


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (make_missing, "no such file"),
        (make_empty, "0 bytes"),
        (make_text, "not a video"),
        (make_sound, "no video stream"),
        (make_headless, "moov"),
        (make_empty_folder, "no images"),
        (lambda path: "camera:93", "/dev/video93"),
    ],
)
def test_bad_input(tmp_path: Path, out: Path, fake_bundle: Path, call, make, word: str) -> None:
    source = make(tmp_path)
    result = call(
        *("run", source, "--bundle", fake_bundle, "-o", out / "o.mp4"),
        *("--stats", out / "o.json", "--contact-sheet", out / "o.png"),
    )
    assert_refused(result, out, word, str(source))


def test_refusals_as_json(tmp_path: Path, fake_bundle: Path, call) -> None:
    result = call("run", tmp_path / "missing.mp4", "--bundle", fake_bundle, "--json")
    error = json.loads(result.stdout)["error"]
    assert result.returncode == 2 and error["kind"] == "VideoError" and error["hint"] and error["message"]


def test_truncated_video_is_processed_as_far_as_it_goes(
    tmp_path: Path, out: Path, fake_bundle: Path, call
) -> None:
    clip = truncated_clip(tmp_path / "t.mp4")
    result = call("run", clip, "--bundle", fake_bundle, "-o", out / "o.mp4", "--stats", out / "o.json")
    assert result.returncode == 3, "done, but not all of the input"
    assert "warning:" in result.stderr and "of about 60 frames" in result.stderr
    stats = json.loads((out / "o.json").read_text())
    assert "of about 60 frames" in stats["input_problems"]["truncated"]
    with open_video(out / "o.mp4") as reader:
        assert sum(1 for _ in reader) == stats["frames"]["total"] > 10


@pytest.mark.parametrize(("limit", "code"), [(5, 0), (1000, 3)])
def test_truncation_is_hidden_only_by_a_limit_that_was_reached(
    tmp_path: Path, fake_bundle: Path, call, limit: int, code: int
) -> None:
    clip = truncated_clip(tmp_path / "t.mp4")
    result = call("run", clip, "--bundle", fake_bundle, "--quiet", "--max-frames", limit)
    assert result.returncode == code and ("warning:" in result.stderr) == (code == 3)


def test_damaged_image_in_a_folder(tmp_path: Path, fake_bundle: Path, call) -> None:
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").write_bytes(encode_png(moving_square(i)))
    (tmp_path / "in" / "3.png").write_bytes(b"no picture")
    result = call("run", tmp_path / "in", "--bundle", fake_bundle, "--json")
    assert result.returncode == 3 and "3.png" in result.stderr
    assert json.loads(result.stdout)["frames"]["total"] == 5


def test_bundle_is_missing(tmp_path: Path, out: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    assert_refused(
        call("run", clip, "--bundle", tmp_path / "no.bundle", "-o", out / "o.mp4"), out, "no.bundle"
    )


def test_a_file_is_not_a_bundle(tmp_path: Path, out: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    assert_refused(call("run", clip, "--bundle", clip, "-o", out / "o.mp4"), out, "clip.mp4")


@pytest.mark.parametrize("damage", ["flipped byte", "manifest", "missing file", "other version"])
def test_damaged_bundle(tmp_path: Path, out: Path, fake_bundle: Path, call, damage: str) -> None:
    bundle = tmp_path / "damaged.bundle"
    shutil.copytree(fake_bundle, bundle)
    if damage == "flipped byte":
        data = bytearray((bundle / "encode.onnx").read_bytes())
        data[100] ^= 255
        (bundle / "encode.onnx").write_bytes(data)
    elif damage == "manifest":
        (bundle / "bundle.json").write_text((bundle / "bundle.json").read_text()[:200])
    elif damage == "missing file":
        (bundle / "deform.onnx").unlink()
    else:
        manifest = json.loads((bundle / "bundle.json").read_text())
        (bundle / "bundle.json").write_text(json.dumps({**manifest, "version": 99}))
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    assert_refused(call("run", clip, "--bundle", bundle, "-o", out / "o.mp4"), out)


def test_without_any_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "DEMO_BUNDLE", "not-shipped.bundle")
    with pytest.raises(BundleError) as caught:
        arguments.find_bundle(None)
    assert "--bundle" in caught.value.hint and "not-shipped.bundle" in caught.value.hint


def test_the_demo_bundle_is_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "DEMO_BUNDLE", "mine.bundle")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "mine.bundle").mkdir(parents=True)
    assert arguments.find_bundle(None) == Path("demo/mine.bundle")
    assert arguments.find_bundle("named.bundle") == Path("named.bundle")


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path, out: Path, fake_bundle: Path, call) -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    result = call("run", clip, "--bundle", fake_bundle, "-o", out / "o.mp4", "--device", "cuda")
    assert_refused(result, out, "CUDA")


@pytest.mark.parametrize("option", ["-o", "--stats", "--contact-sheet"])
@pytest.mark.parametrize("place", ["under a file", "missing folder", "a folder", "proc"])
def test_unwritable_output(
    tmp_path: Path, out: Path, fake_bundle: Path, call, option: str, place: str
) -> None:
    name = {"-o": "x.mp4", "--stats": "x.json", "--contact-sheet": "x.png"}[option]
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    if place == "under a file":
        target = clip / name
    elif place == "missing folder":
        target = tmp_path / "missing" / name
    elif place == "a folder":
        target = tmp_path / name
        target.mkdir()
    else:
        target = Path("/proc") / name
    result = call("run", clip, "--bundle", fake_bundle, option, target)
    assert_refused(result, out, str(target))
    if place == "missing folder":
        assert "mkdir -p" in result.stderr


@pytest.mark.parametrize("name", [".", "..", "/", "link"])
def test_folders_that_cannot_be_made(tmp_path: Path, out: Path, fake_bundle: Path, call, name: str) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    (tmp_path / "link").symlink_to(out)
    target = tmp_path / "link" if name == "link" else name
    result = call("run", clip, "--bundle", fake_bundle, "-o", target, cwd=out)
    assert_refused(result, out, "Give the name of a new folder")


@pytest.mark.parametrize("name", ["o.gif", "o.avi", "o.jpg"])
def test_unknown_output_type(tmp_path: Path, out: Path, fake_bundle: Path, call, name: str) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    assert_refused(call("run", clip, "--bundle", fake_bundle, "-o", out / name), out, ".mp4")


def test_the_input_is_never_overwritten(tmp_path: Path, out: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    before = clip.read_bytes()
    result = call("run", clip, "--bundle", fake_bundle, "-o", clip, "--force")
    assert_refused(result, out, "input itself")
    assert clip.read_bytes() == before


def test_two_outputs_of_one_name(tmp_path: Path, out: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    result = call("run", clip, "--bundle", fake_bundle, "--stats", out / "x", "--contact-sheet", out / "x")
    assert_refused(result, out, "same file")


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (20_000, ("-o", "o.mp4", "--layout", "side-by-side")),
        (3_000, ("-o", "images")),
        (1_000, ("--stats", "o.json")),
        (20_000, ("--contact-sheet", "o.png")),
    ],
)
def test_full_disk(tmp_path: Path, out: Path, fake_bundle: Path, call, limit: int, arguments: tuple) -> None:
    """The limit on the size of files makes writes fail just as a full disk does."""
    noise = np.random.default_rng(3).integers(0, 255, (24, 48, 64, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(noise):
        (tmp_path / "in" / f"{i:02d}.png").write_bytes(encode_png(image))
    if arguments[1] == "images":
        limit = 300  # one PNG of 32 x 16 noise is larger
    result = call(
        *("run", tmp_path / "in", "--bundle", fake_bundle, "--quiet", *arguments),
        cwd=out,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_refused(result, out, "cannot be written", "nothing was left behind")


def test_really_full_disk(tmp_path: Path, fake_bundle: Path, call) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a file system here")
    try:
        clip = sample_clip(tmp_path / "clip.mp4", 60)
        result = call(
            *(
                "run",
                clip,
                "--bundle",
                fake_bundle,
                "-o",
                place / "o.mp4",
                "--layout",
                "side-by-side",
                "--quiet",
            )
        )
        assert_refused(result, place, "No space left", "nothing was left behind")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def start_long_run(tmp_path: Path, out: Path, fake_bundle: Path, **options: Any) -> subprocess.Popen[str]:
    """A run of many seconds, returned once frames are being written. `options`: of the process."""
    clip = sample_clip(tmp_path / "long.mp4", 3000)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "streamsplat_edge", "run", str(clip), "--bundle", str(fake_bundle)),
            *("-o", str(out / "o.mp4"), "--layout", "side-by-side", "--stats", str(out / "o.json")),
        ],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any(p.stat().st_size > 4096 for p in out.glob(".o.mp4.*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_keeps_what_was_done(
    tmp_path: Path, out: Path, fake_bundle: Path, number: signal.Signals, code: int
) -> None:
    process = start_long_run(tmp_path, out, fake_bundle)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "interrupted after" in errors and "Traceback" not in errors
    assert sorted(p.name for p in out.iterdir()) == ["o.json", "o.mp4"]
    stats = json.loads((out / "o.json").read_text())
    assert stats["interrupted"] is True
    with open_video(out / "o.mp4") as reader:
        assert sum(1 for _ in reader) == stats["frames"]["total"] < 3000
        assert reader.truncated is None


def test_a_lost_terminal_ends_a_run_and_keeps_what_was_done(
    tmp_path: Path, out: Path, fake_bundle: Path
) -> None:
    terminal, of_run = os.openpty()
    process = start_long_run(tmp_path, out, fake_bundle, stdout=of_run, stderr=of_run)
    os.close(of_run)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 129
    assert sorted(p.name for p in out.iterdir()) == ["o.json", "o.mp4"]
    with open_video(out / "o.mp4") as reader:
        assert sum(1 for _ in reader) > 0 and reader.truncated is None


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path, out: Path, fake_bundle: Path) -> None:
    process = start_long_run(
        tmp_path, out, fake_bundle, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors


def test_two_interruptions_leave_no_torn_file(tmp_path: Path, out: Path, fake_bundle: Path) -> None:
    process = start_long_run(tmp_path, out, fake_bundle)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    if (out / "o.mp4").exists():
        with open_video(out / "o.mp4") as reader:
            assert sum(1 for _ in reader) > 0 and reader.truncated is None


def test_an_interruption_before_the_first_frame_writes_nothing(
    tmp_path: Path,
    out: Path,
    fake_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Stopped(stopping.Stop):
        def __enter__(self) -> stopping.Stop:
            self.signal = signal.SIGINT
            self.event.set()
            return self

    monkeypatch.setattr(run_command, "Stop", Stopped)
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    files = ("-o", out / "o.mp4", "--stats", out / "o.json", "--contact-sheet", out / "o.png")
    code = cli.main([*map(str, ("run", clip, "--bundle", fake_bundle, *files))])
    assert code == 130 and "nothing was written" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_before_frames_flow_an_interruption_is_immediate() -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background job starts with it ignored
    with stopping.Stop() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stop.armed = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.event.is_set() and stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
