"""Compiles the CUDA kernels for the CPU and stands in for the installed library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from compile_on_cpu import CUDA, compile_program
from torch import Tensor

from streamsplat_edge.training.rasterizer import rasterize
from streamsplat_edge.training.rasterizer_cuda import GradLibrary, RasterizeCuda, _Place

HERE = Path(__file__).parent


def build(folder: Path, sources: Path = CUDA) -> Path:
    """Returns the library made of the kernels in ``sources``."""
    return compile_program(HERE / "raster_grad_on_cpu.cpp", folder / "kernels_on_cpu.so", sources)


class OnCpu(GradLibrary):
    """Takes tensors on the CPU for tensors on a device."""

    def place(self, device: torch.device) -> _Place:
        assert device.type == "cpu"
        return _Place(None, 0)

    def schedule(self, number: int) -> None:
        """Order of warps and lanes: 0 in order, 1 in reverse, from 2 on a seed."""
        self._native.on_cpu_schedule(ctypes.c_uint64(number))


class Runner:
    """Renders with the CUDA kernels: on the CPU with a library, on the GPU without one."""

    def __init__(self, library: OnCpu | None) -> None:
        self.library = library

    def __call__(self, inputs: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        if self.library is not None:
            rgb, depth, alpha = RasterizeCuda.apply(self.library, height, width, *inputs)
        else:
            xz, view_depth, scale, opacity, colour, background = (t.cuda() for t in inputs)
            rgb, depth, alpha = rasterize(xz, view_depth, scale, opacity, colour, background, height, width)
            assert rgb.is_cuda and depth.is_cuda and alpha.is_cuda
        return rgb.cpu(), depth.cpu(), alpha.cpu()
