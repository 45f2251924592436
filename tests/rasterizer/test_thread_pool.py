"""The rasterizer's thread pool: programs in C++ that end with 0 where all is as it should be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "cuda"


def compile_with_pool(source: str, folder: Path, *flags: str) -> Path:
    """A program of this folder with the pool; skips where there is no compiler, or none for `flags`."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler in PATH (the package itself was built elsewhere)")
    program = folder / source.removesuffix(".cpp")
    sources = [HERE / source, NATIVE / "raster_cpu_pool.cpp", NATIVE / "raster_cpu_placement.cpp"]
    command = [compiler, "-std=c++17", "-O1", "-pthread", f"-I{NATIVE}", *flags, *sources, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0 and flags and "tsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer library")
    assert built.returncode == 0, built.stderr
    return program


def test_every_task_runs_once_and_nothing_races(tmp_path: Path) -> None:
    program = compile_with_pool("pool_stress.cpp", tmp_path, "-fsanitize=thread")
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux is asked")
def test_a_worker_is_not_woken_on_the_core_of_its_caller(tmp_path: Path) -> None:
    program = compile_with_pool("placement_check.cpp", tmp_path)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    if result.returncode == 77:
        pytest.skip("one core only, or affinity is forbidden")
    assert result.returncode == 0, f"step {result.returncode}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is placed elsewhere")
def test_workers_keep_what_somebody_else_gives_all_threads(tmp_path: Path) -> None:
    program = compile_with_pool("placement_machines.cpp", tmp_path)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"step {result.returncode}"
