"""`run --display`: the pictures that are shown, how it ends, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from gl_surface import EglSurface
from video_samples import sample_clip
from xvfb import screen

from streamsplat_edge import cli
from streamsplat_edge.commands import run
from streamsplat_edge.runtime.display.observer import LiveDisplay
from streamsplat_edge.runtime.video import open_video

WIDTH, HEIGHT = 32, 16  # of the fake bundle

Shown = Callable[..., EglSurface]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    build_fake_bundle(tmp_path / "fake.bundle")
    clip = sample_clip(tmp_path / "clip.mp4", 14, height=32, width=64)
    options = ("run", clip, "--bundle", tmp_path / "fake.bundle", "--threads", 1, "--quiet", "--display")
    return [*map(str, options)]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Makes `run --display` draw without a screen; returns where."""

    def make(width: int = WIDTH, height: int = HEIGHT, **options: int) -> EglSurface:
        surface = EglSurface(width, height, **options)

        def open_display(title: str, width: int, height: int) -> LiveDisplay:
            assert title == "clip.mp4"
            return LiveDisplay(surface, width / height, clock=lambda: surface.now)

        monkeypatch.setattr(run, "open_display", open_display)
        return surface

    return make


def frames_of(path: Path) -> list[np.ndarray]:
    with open_video(path) as reader:
        return [frame.image for frame in reader]


def test_every_frame_is_shown_as_it_is_written(command: list[str], shown: Shown, tmp_path: Path) -> None:
    surface = shown()
    stats = tmp_path / "s.json"
    assert cli.main([*command, "-o", str(tmp_path / "out"), "--stats", str(stats)]) == 0
    written = frames_of(tmp_path / "out")
    assert len(surface.presented) == len(written) == 14
    np.testing.assert_array_equal(surface.presented, written)
    assert not surface.is_open
    settings = json.loads(stats.read_text())["settings"]
    assert settings["display"].endswith(", uploaded from the host")


def test_closing_the_window_ends_the_run(command: list[str], shown: Shown, tmp_path: Path) -> None:
    """As Ctrl-C does, but that is no interruption: the exit code is 0 and the file is whole."""
    surface = shown(close_after=6)
    stats = tmp_path / "s.json"
    assert cli.main([*command, "-o", str(tmp_path / "o.mp4"), "--stats", str(stats)]) == 0
    kept = len(frames_of(tmp_path / "o.mp4"))
    assert 6 <= kept < 14 and len(surface.presented) == 6, "nothing is drawn on a closed window"
    report = json.loads(stats.read_text())
    assert report["frames"]["total"] == kept and report["interrupted"] is False
    assert not surface.is_open


def test_a_window_that_changes_its_size_is_drawn_again(
    command: list[str], shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    surface = shown(40, 40)
    resized: list[int] = []

    def present() -> None:
        EglSurface.present(surface)
        if len(surface.presented) == 3:
            resized.append(surface.polls)
            surface.resize(WIDTH, HEIGHT)

    monkeypatch.setattr(surface, "present", present)
    assert cli.main(command) == 0
    assert resized and len(surface.presented) == 15, "the third picture twice"
    third, again = surface.presented[2:4]
    assert third.shape == (40, 40, 3) and again.shape == (HEIGHT, WIDTH, 3)
    assert third[:10].max() == 0 and third[10:30].max() > 0 and third[30:].max() == 0
    assert again.any()


def test_an_error_closes_the_window(
    command: list[str], shown: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surface = shown()
    assert cli.main([*command, "--precision", "int3"]) == 2
    assert not surface.is_open and not surface.presented
    assert "error: " in capsys.readouterr().err


def called(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    cleared = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, "-m", "streamsplat_edge", *command],
        capture_output=True,
        text=True,
        timeout=180,
        env=cleared | environment,
    )


def test_without_a_screen(command: list[str], tmp_path: Path) -> None:
    result = called([*command, "-o", str(tmp_path / "o.mp4")])
    assert result.returncode == 2 and not (tmp_path / "o.mp4").exists()
    assert "error: There is no screen to open a window on (" in result.stderr
    assert "hint: Run it in a desktop session" in result.stderr and "--view" in result.stderr
    assert "Warning" not in result.stderr


def test_without_the_extra(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("observer", "window"):
        monkeypatch.delitem(sys.modules, f"streamsplat_edge.runtime.display.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "glfw", None)
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "The window needs glfw and moderngl" in said and "streamsplat-edge[display]" in said


def test_several_inputs(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command[0], command[1], *command[1:]]) == 2
    assert "--display shows one input, and 2 were named." in capsys.readouterr().err


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    with screen(200, 150) as name:
        yield name


def test_the_whole_command_on_a_screen(command: list[str], display: str, tmp_path: Path) -> None:
    stats = tmp_path / "s.json"
    result = called([*command, "--stats", str(stats)], DISPLAY=display)
    assert result.returncode == 0, result.stderr
    report = json.loads(stats.read_text())
    assert report["frames"]["total"] == 14 and report["settings"]["display"]


def test_the_window_itself(display: str) -> None:
    """In a process of its own: contexts of EGL and of GLX do not mix in one thread."""
    environment = {k: v for k, v in os.environ.items() if k != "WAYLAND_DISPLAY"} | {"DISPLAY": display}
    program = Path(__file__).with_name("window_checks.py")
    result = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=120, env=environment
    )
    assert result.returncode == 0 and result.stdout == "checked\n", result.stderr
