"""Configures the whole project with CUDA, as an installation does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from compile_on_cpu import CUDA


def configure(build: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    nanobind = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    command = ["cmake", "-S", str(CUDA.parent), "-B", str(build), "-DSTREAMSPLAT_CUDA=ON"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={nanobind}", *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )
