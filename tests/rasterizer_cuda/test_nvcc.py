"""The CUDA code compiles, without warnings and without spilling registers. No GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cmake_configure import configure
from kernels_on_cpu import CUDA

from streamsplat_edge.runtime.errors import EngineError
from streamsplat_edge.training.rasterizer_cuda import LIBRARY, GradLibrary, _Place, _Shape

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "100", "110", "120")
KERNELS = {"project_kernel", "list_kernel", "range_kernel", "blend_kernel", "unblend_kernel", "finish_kernel"}
# Of CUB's kernels, which NVIDIA has tuned: its radix sort spills two registers from SM 10.0 on (CUDA 13.0).
CUB_SPILL_BYTES = 16
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not in PATH")


def compile_report(source: str, architecture: str, out: Path) -> dict[str, tuple[int, int, int]]:
    """Per kernel (mangled) the bytes of stack frame, spill stores and spill loads."""
    options = ("-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v")
    host = "-Xcompiler=-Wall,-Wextra,-Werror,-fPIC"
    command = [
        str(NVCC),
        *options,
        host,
        f"-arch=sm_{architecture}",
        "-c",
        str(CUDA / source),
        "-o",
        str(out),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    pattern = (
        r"Function properties for (\S+)\s+"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    found = re.findall(pattern, result.stdout + result.stderr)
    return {name: (int(frame), int(stores), int(loads)) for name, frame, stores, loads in found}


def check_kernels(architecture: str, out: Path) -> None:
    report = compile_report("raster_grad.cu", architecture, out)
    assert {k for k in KERNELS for name in report if f"{len(k)}{k}E" in name} == KERNELS, report
    assert all(used == (0, 0, 0) for used in report.values()), report


def test_kernels_compile_and_spill_nothing(tmp_path: Path) -> None:
    check_kernels("90", tmp_path / "kernels.o")


@pytest.mark.nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:  # nvcc waits for no more than one core
        sort = pool.submit(compile_report, "raster_grad_sort.cu", architecture, tmp_path / "sort.o")
        check_kernels(architecture, tmp_path / "kernels.o")
        report = sort.result()  # of CUB
    assert report and all(max(used[1:]) <= CUB_SPILL_BYTES for used in report.values()), report


class NoStream(GradLibrary):
    def place(self, device: torch.device) -> _Place:
        return _Place(None, 0)


@pytest.mark.nvcc
def test_cmake_builds_a_library_that_loads(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=75")
    assert done.returncode == 0, done.stdout + done.stderr
    target = ("--target", "streamsplat_grad_cuda")
    subprocess.run(["cmake", "--build", str(tmp_path), *target], check=True, timeout=600, capture_output=True)
    (path,) = tmp_path.rglob(LIBRARY)
    needed = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=True).stdout
    assert "not found" not in needed and "cudart" not in needed
    library = NoStream(path)
    if Path("/dev/nvidia0").exists():
        return
    with pytest.raises(EngineError, match=r"ssgrad_scratch_bytes failed: .*driver.* update the driver"):
        library._scratch(library.place(torch.device("cpu")), _Shape(1, 1, 1, 1), 0, torch.device("cpu"))


@pytest.mark.nvcc
def test_cmake_says_how_to_get_nvcc(tmp_path: Path) -> None:
    hidden = ";".join({str(Path(str(NVCC)).parent), "/usr/local/cuda/bin"})
    done = configure(tmp_path / "none", f"-DCMAKE_IGNORE_PATH={hidden}", CUDACXX="")
    words = re.sub(r"\s+", " ", done.stderr)
    assert done.returncode != 0 and "needs nvcc, which was not found. Install the CUDA toolkit" in words
    done = configure(tmp_path / "wrong", CUDACXX="/nowhere/nvcc")
    assert done.returncode != 0 and "/nowhere/nvcc --list-gpu-arch failed" in re.sub(r"\s+", " ", done.stderr)
