"""The kernels of the runtime compile for every architecture, without warnings or spilled registers."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from cmake_configure import configure
from compile_on_cpu import CUDA

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "100", "110", "120")
SOURCE = CUDA / "streamsplat.cu"
KERNELS = set(re.findall(r"^SS_(?:BLEND_)?KERNEL (\w+)\(", SOURCE.read_text(), re.MULTILINE))
REGISTERS = 64  # at this number four blocks of 256 threads are resident (kBlocksPerSm)
BLEND_REGISTERS = 48  # and at this five (kBlendBlocksPerSm), where an SM has room for so many threads
SHARED = 48 * 1024  # bytes that need no request
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not in PATH")


def report(architecture: str, out: Path) -> dict[str, dict[str, int]]:
    """Per kernel: registers, bytes of shared memory, stack frame, spill stores and spill loads."""
    command = [str(NVCC), "-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v"]
    command += ["-Xcompiler=-Wall,-Wextra,-Werror", f"-arch=sm_{architecture}", "-cubin"]
    result = subprocess.run(
        [*command, str(SOURCE), "-o", str(out)], capture_output=True, text=True, timeout=600
    )
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    pattern = (
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\s.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?"
    )
    return {
        name: {
            "registers": int(registers),
            "shared": int(shared or 0),
            "frame": int(frame),
            "stores": int(stores),
            "loads": int(loads),
        }
        for name, frame, stores, loads, registers, shared in re.findall(pattern, text)
    }


def check(architecture: str, out: Path) -> None:
    found = report(architecture, out)
    assert len(KERNELS) == 16 and found.keys() == KERNELS, found
    for name, used in found.items():
        assert (used["frame"], used["stores"], used["loads"]) == (0, 0, 0), (name, used)
        limit = BLEND_REGISTERS if name.startswith("blend") and architecture != "75" else REGISTERS
        assert used["registers"] <= limit and used["shared"] <= SHARED, (name, used)
        print(f"sm_{architecture} {name}: {used['registers']} registers, {used['shared']} bytes shared")


def test_kernels_compile_and_spill_nothing(tmp_path: Path) -> None:
    check("87", tmp_path / "kernels.cubin")


@pytest.mark.nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    check(architecture, tmp_path / "kernels.cubin")


def images(fatbin: bytes) -> set[tuple[str, int]]:
    """Kind and architecture of every image: after a header of 16 bytes, each has a header of its own."""
    magic, _, at, size = struct.unpack_from("<IHHQ", fatbin, 0)
    assert magic == 0xBA55ED50
    end, found = at + size, set()
    while at < end:
        kind, _, header, payload = struct.unpack_from("<HHIQ", fatbin, at)
        (architecture,) = struct.unpack_from("<I", fatbin, at + 28)
        found.add(({1: "ptx", 2: "elf"}[kind], architecture))
        at += header + payload
    return found


@pytest.mark.nvcc
def test_cmake_builds_a_fatbin_of_the_architectures_asked_for(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=75-real;87;90-virtual")
    assert done.returncode == 0, done.stdout + done.stderr
    target = ("--target", "streamsplat_fatbin")
    subprocess.run(["cmake", "--build", str(tmp_path), *target], check=True, timeout=600, capture_output=True)
    (fatbin,) = tmp_path.rglob("streamsplat.fatbin")
    assert images(fatbin.read_bytes()) == {("elf", 75), ("elf", 87), ("ptx", 87), ("ptx", 90)}


@pytest.mark.nvcc
def test_cmake_takes_every_architecture_by_itself(tmp_path: Path) -> None:
    done = configure(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = ";".join(f"{a}-real" for a in ARCHITECTURES) + f";{ARCHITECTURES[-1]}-virtual"
    assert f"CUDA code for {wanted} by" in done.stdout
