"""`make gpu-check` without a GPU: which tests it runs, with what, and that they are found without extras."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compile_on_cpu import CUDA

ROOT = CUDA.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TESTS = re.findall(r"^GPU_TESTS := (.*)$", MAKEFILE, re.MULTILINE)[0].split()
# In no extra that .venv-gpu has, or not on a machine where nothing can be installed.
MISSING = ("openvino", "tensorrt", "tensorrt_rtx", "polygraphy", "ray", "gsplat", "glfw", "moderngl")
MISSING += ("websockets", "fourdgs", "mkdocs", "transformers", "cupy")

BLOCKER = f"""
import importlib.util, sys
MISSING = {MISSING!r}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in MISSING else find(name, *rest)
sys.meta_path.insert(0, Missing())
"""


def test_all_tests_of_a_gpu_are_among_them() -> None:
    marked = [p for p in (ROOT / "tests").rglob("*.py") if re.search(r"\bmark\.gpu\b", p.read_text())]
    assert len(marked) >= 5
    for path in marked:
        assert any(path.is_relative_to(ROOT / place) for place in TESTS), f"{path} is not in GPU_TESTS"


def test_they_are_found_without_other_packages(tmp_path: Path) -> None:
    """A module that cannot be imported would end the run before its first test."""
    (tmp_path / "blocker.py").write_text(BLOCKER)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "blocker", "-m", "gpu", "--collect-only", *TESTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "test_matches_published[gpu" in done.stdout and "test_golden_render[gpu" in done.stdout


@pytest.mark.parametrize("python", ["python3", ""])
def test_an_environment_that_is_there_is_left_as_it_is(python: str) -> None:
    setting = [f"GPU_PYTHON={python}"] if python else []
    done = subprocess.run(
        ["make", "-nB", "gpu-test", "gpu-sanitize", "gpu-bench", *setting],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ("pip" in done.stdout) == (".venv-gpu" in done.stdout) == (not python)
    assert done.stdout.count("compute-sanitizer --error-exitcode 9 --report-api-errors no --tool $tool") == 2
    assert "benchmarks.raster_cuda" in done.stdout
