"""The plain C interface: a C99 program without Python renders the same bits as the Python module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats, View, evaluate_at

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "cuda"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c_api_example.c, compiled and linked with the rasterizer's sources by the plain compilers."""
    cxx, cc = os.environ.get("CXX") or shutil.which("c++"), os.environ.get("CC") or shutil.which("cc")
    if cxx is None or cc is None:
        pytest.skip("no compiler in PATH (the package itself was built elsewhere)")
    folder = tmp_path_factory.mktemp("c_api")
    objects = []
    jobs = []
    for source in sorted(NATIVE.glob("raster_cpu*.cpp")):
        objects.append(folder / f"{source.stem}.o")
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        jobs.append(subprocess.Popen([cxx, *flags, "-c", source, "-o", objects[-1]]))
        if len(jobs) % 2 == 0:
            assert jobs[-2].wait() == 0
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
    subprocess.run([cc, *flags, "-c", HERE / "c_api_example.c", "-o", folder / "example.o"], check=True)
    assert all(job.wait() == 0 for job in jobs)
    subprocess.run([cxx, folder / "example.o", *objects, "-pthread", "-o", folder / "example"], check=True)
    return folder / "example"


def test_same_bits_as_python(example: Path) -> None:
    result = subprocess.run([example], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2

    gaussians = np.array(
        [[0, 0.9, 0, 1, 0.2, 0.1, 0.2, 0.3, 0.6], [0.1, 0.1, -0.1, 0, 0.9, 0.4, 0.5, 0.4, 0.9]], np.float32
    )
    motion = np.array([[0.1, 0, 0], [0, 0.05, -0.1]], np.float32)
    fade = np.array([[4, 0.5], [0, 0.3]], np.float32)
    splats = Splats.allocate(2)
    splats.count = 2
    evaluate_at(gaussians, motion, fade, 0.25, "published", splats)
    turned = View(np.array([[1, 0, 0], [0, 0.1, -1], [0, 1, 0.1]], np.float32), np.zeros(3, np.float32))
    rasterizer = Rasterizer(48, 64)
    for line, view in zip(lines, (None, turned), strict=True):
        *values, pairs = line.split()
        buffers = rasterizer.render(splats, view=view)
        wanted = [*buffers.rgb[24, 32], buffers.depth[24, 32], buffers.alpha[24, 32]]
        assert [float.fromhex(value) for value in values] == [float(value) for value in wanted]
        assert int(pairs) == buffers.stats.pairs
        assert 0.5 < buffers.alpha[24, 32] < 1


def test_another_project_can_take_the_folder_in(tmp_path: Path) -> None:
    """`add_subdirectory` from a project that has neither Python nor nanobind (configured, not built)."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        pytest.skip("cmake is not installed")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(robot LANGUAGES C CXX)\n"
        f"add_subdirectory({NATIVE} raster)\nadd_executable(robot {HERE / 'c_api_example.c'})\n"
        "target_link_libraries(robot streamsplat_edge::raster)\n"
    )
    generator = ["-G", "Unix Makefiles"] if shutil.which("make") else []
    result = subprocess.run(
        [cmake, "-S", tmp_path, "-B", tmp_path / "build", *generator], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")
def test_no_instruction_set_leaks_through_shared_functions(example: Path) -> None:
    """Objects compiled for AVX export nothing but their entry point and hold no weak (mergeable) function.

    A weak function is merged by the linker with its twin from another object: the copy compiled for AVX-512
    could then be the one that runs on a CPU without it.
    """
    checked = 0
    for name in ("raster_cpu_avx2.o", "raster_cpu_avx512.o"):
        symbols = subprocess.run(
            ["readelf", "--symbols", "--wide", example.parent / name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert " WEAK " not in symbols
        if f"{name.split('_')[-1][:-2]}_kernels" in symbols:
            checked += 1
            functions = [line for line in symbols.splitlines() if " FUNC " in line and " GLOBAL " in line]
            assert len(functions) == 1
    assert checked in (0, 2)  # 0: not an x86-64 machine
