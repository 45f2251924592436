"""The same checks for two ways to run the CUDA kernels: on a GPU, and on the CPU by `cuda_on_cpu.h`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from kernels_on_cpu import OnCpu, build  # noqa: E402
from torch import Tensor  # noqa: E402

from streamsplat_edge.training.rasterizer import rasterize  # noqa: E402
from streamsplat_edge.training.rasterizer_cuda import RasterizeCuda  # noqa: E402


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    return OnCpu(build(tmp_path_factory.mktemp("kernels_on_cpu")))


class Runner:
    """Renders with the CUDA kernels: on the CPU with a library, on the GPU without one."""

    def __init__(self, library: OnCpu | None) -> None:
        self.library = library

    def __call__(self, inputs: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        if self.library is not None:
            rgb, depth, alpha = RasterizeCuda.apply(self.library, height, width, *inputs)
        else:
            rgb, depth, alpha = rasterize(*(t.cuda() for t in inputs), height, width)
            assert rgb.is_cuda and depth.is_cuda and alpha.is_cuda
        return rgb.cpu(), depth.cpu(), alpha.cpu()


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
