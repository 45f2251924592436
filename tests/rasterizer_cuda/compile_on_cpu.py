"""Compiles CUDA kernels for the CPU, with cuda_on_cpu.h in the place of a device."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "cuda"
# Contraction off as on the device (-fmad=false). A fortified longjmp refuses to change stacks as fibers do.
FLAGS = shlex.split(
    "-std=c++17 -O2 -ffp-contract=off -U_FORTIFY_SOURCE -fvisibility=hidden -shared -fPIC "
    "-Wall -Wextra -Werror -Wno-unknown-pragmas"
)


def compile_program(program: Path, out: Path, sources: Path = CUDA, *options: str) -> Path:
    """A shared library of ``program`` with the kernels in ``sources``; returns ``out``."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    _run([*compiler, *FLAGS, *options, f"-I{sources}", f"-I{HERE}", str(program), "-o", str(out)])
    return out


def compile_watched(program: Path, out: Path, sources: Path = CUDA) -> Path:
    """The same, with every access to memory watched (``watch_on_cpu.h``). By g++, whose calls those are."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    single = out.with_suffix(".o")
    watched = ["-O1", "-fsanitize=thread", "-fno-threadsafe-statics", "-c"]
    _run(["g++", *FLAGS, *watched, f"-I{sources}", f"-I{HERE}", str(program), "-o", str(single)])
    _run(["g++", "-shared", str(single), "-o", str(out)])  # without the sanitizer's own library
    return out


def edited_sources(folder: Path, name: str, pattern: str, replacement: str) -> Path:
    """A copy of the kernels in ``folder``/cuda, with the first place in file ``name`` that fits changed."""
    sources = folder / "cuda"
    sources.mkdir()
    for path in CUDA.glob("*.[hc]*"):
        (sources / path.name).write_text(path.read_text())
    text, changes = re.subn(pattern, replacement, (sources / name).read_text(), count=1)
    assert changes == 1, pattern
    (sources / name).write_text(text)
    return sources


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
