"""The rasterizer's thread pool under ThreadSanitizer, whose program fails where threads race."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "cuda"


def test_every_task_runs_once_and_nothing_races(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler in PATH (the package itself was built elsewhere)")
    program = tmp_path / "stress"
    command = [compiler, "-std=c++17", "-O1", "-pthread", f"-I{NATIVE}", "-fsanitize=thread"]
    command += [HERE / "pool_stress.cpp", NATIVE / "raster_cpu_pool.cpp", "-o", program]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0 and "tsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer library")
    assert built.returncode == 0, built.stderr
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert result.returncode == 0, result.stderr
