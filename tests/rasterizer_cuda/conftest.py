"""The same checks for two ways to run the CUDA kernels: on a GPU, and on the CPU by `cuda_on_cpu.h`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from kernels_on_cpu import OnCpu, Runner, build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    return OnCpu(build(tmp_path_factory.mktemp("kernels_on_cpu")))


@pytest.fixture(params=["on_cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def render(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device, or a torch without CUDA")
        yield Runner(None)
        return
    library: OnCpu = request.getfixturevalue("library")
    yield Runner(library)
    library.schedule(0)
