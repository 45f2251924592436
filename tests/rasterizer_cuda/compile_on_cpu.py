"""Compiles CUDA kernels for the CPU, with cuda_on_cpu.h in the place of a device."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

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
    command = [*compiler, *FLAGS, *options, f"-I{sources}", f"-I{HERE}", str(program), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return out
