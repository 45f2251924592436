"""The package on other Pythons than that of these tests, with what pip brings in there: a dependency's newest
release may need a newer Python, and the oldest Python gets the oldest ones."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_install import call, source

from streamsplat_edge.runtime.video import open_video

__all__ = ["source"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 10)  # `requires-python`

pytestmark = pytest.mark.install


def version(python: str) -> tuple[int, int] | None:
    """Major and minor number; None where it does not start, as pyenv's shims may not."""
    code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    return None if found.returncode else (int(found.stdout.split()[0]), int(found.stdout.split()[1]))


@functools.cache
def others() -> list[str]:
    """Pythons in PATH and of pyenv that are supported and not this one, from old to new."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += sorted((Path.home() / ".pyenv" / "versions").glob("*/bin"))
    found: dict[tuple[int, int], str] = {}
    for folder in folders:
        for minor in range(OLDEST[1], 30):
            python = shutil.which(f"python3.{minor}", path=str(folder))
            number = None if python is None or (3, minor) in found else version(python)
            if python is not None and number == (3, minor) != sys.version_info[:2]:
                found[number] = python
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("place", [0, -1], ids=["oldest", "newest"])
def test_the_demo_runs(place: int, source: Path, tmp_path: Path) -> None:
    if len(others()) < 2 and (place or not others()):
        pytest.skip("no other Python from 3.10 on in PATH or of pyenv")
    python = others()[place]
    call(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin_ = tmp_path / "venv" / "bin"
    call(bin_ / "python", "-m", "pip", "--disable-pip-version-check", "-q", "install", source, cwd=tmp_path)
    options = ("--max-frames", 9, "-o", tmp_path / "o.mp4", "--save", tmp_path / "tracks.npz")
    demo = source / "demo"
    call(
        bin_ / "streamsplat-edge",
        "run",
        demo / "clip.mp4",
        "--bundle",
        demo / "tiny.bundle",
        *options,
        cwd=tmp_path,
    )
    with open_video(tmp_path / "o.mp4") as reader:
        assert sum(1 for _ in reader) == 9
    assert (tmp_path / "tracks.npz").stat().st_size > 0
    assert '"onnxruntime"' in call(bin_ / "streamsplat-edge", "doctor", "--json", cwd=tmp_path)
