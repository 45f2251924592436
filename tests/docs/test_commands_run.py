"""Every `streamsplat-edge` command line of the documents runs on the demo bundle, or is listed with a reason.

The commands of a page run in its order in one empty folder, as a reader would type them: later ones take what
earlier ones wrote. Only `--force` is added, because examples write to the same names.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from documents import DEMO_BUNDLE, PAGES, ROOT, commands
from video_samples import sample_clip, sample_photo

from streamsplat_edge.cli import build_parser, main

# What is not run: pattern of the command line -> why not, and what tests it instead.
NOT_RUN = {
    r"run .*(camera:|rtsp://|gst:)": "needs a camera or a network (tests/runtime/test_sources*.py)",
    r"run .*--display": "needs a screen (tests/display)",
    r"run .*--device cuda": "needs a GPU (tests/runtime_cuda)",
    r"view ": "serves until Ctrl-C (tests/cli/test_view.py)",
    r"serve ": "starts Ray (make test-serve)",
    r"build ": "needs TensorRT (tests/export/test_build.py, make test-plans)",
    r"calibrate (?!.*--list-layers)": "takes minutes (tests/calibration/test_calibrate.py)",
    r"export ": "needs PyTorch and a checkpoint (tests/export/test_export.py)",
    r"bench ": "minutes (tests/benchmarks/test_bench.py)",
    r"train ": "takes hours (tests/training/test_training_cli.py)",
    r"eval ": "needs PyTorch and held-out clips (tests/training/test_evaluate.py)",
}


def reason_not_to_run(command: list[str]) -> str | None:
    line = " ".join(command[1:])
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, line)), None)


def of_program(page: Path) -> list[list[str]]:
    return [command for command in commands(page) if command[0] == "streamsplat-edge"]


def to_run() -> dict[str, list[list[str]]]:
    """Page to commands. What writes nothing runs once, though several pages show it."""
    seen: set[str] = set()
    found: dict[str, list[list[str]]] = {}
    for page in PAGES:
        for command in of_program(page):
            line = " ".join(command)
            if reason_not_to_run(command) is None and line not in seen:
                if command[1] in ("info", "doctor"):
                    seen.add(line)
                found.setdefault(page.name, []).append(command)
    return found


RUN = to_run()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the demo bundle and a second of video, under the names that documents use."""
    for name in (DEMO_BUNDLE, "tiny.bundle", "base.bundle", "mine.bundle"):
        shutil.copytree(ROOT / DEMO_BUNDLE, tmp_path / name)
    sample_clip(tmp_path / "clip.mp4", frames=9, rate=8)  # three key frames
    for name in ("INPUT.mp4", "a.mp4", "b.mp4"):
        shutil.copy(tmp_path / "clip.mp4", tmp_path / name)
    sample_photo(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", sorted(RUN))
def test_commands_run(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in RUN[page]:
        forced = ["--force"] if hasattr(build_parser().parse_args(command[1:]), "force") else []
        code = main([*command[1:], *forced])
        assert code == 0, f"{' '.join(command)}\n{capsys.readouterr().err}"
        named = [part for part in command if re.search(r"\.(mp4|ply|splat|4dgs|npz|png|exr|json)$", part)]
        for name in named:
            assert list(folder.glob(re.sub(r"%0\dd|\{\}", "*", name))), f"{' '.join(command)} left no {name}"


def test_most_kinds_of_commands_are_run() -> None:
    ran = {command[1] for page in RUN.values() for command in page}
    assert {"run", "convert", "info", "doctor", "calibrate", "verify"} <= ran


def test_every_reason_is_needed() -> None:
    lines = [" ".join(command[1:]) for page in PAGES for command in of_program(page)]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in lines), f"no document shows {pattern}"


def test_reconstruction_of_the_page_can_be_looked_at(folder: Path) -> None:
    """The first command of the readme is not only accepted: its video shows the input."""
    from streamsplat_edge.runtime.video import open_video

    (command,) = [c for c in of_program(ROOT / "README.md") if c[1:3] == ["run", "INPUT.mp4"] and "-o" in c]
    assert main(command[1:]) == 0
    with open_video("OUT.mp4") as reader:
        frames = [frame.image.copy() for frame in reader]
    assert len(frames) == 9 and all(np.ptp(image) > 60 for image in frames)
