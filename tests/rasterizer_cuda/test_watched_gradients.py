"""The kernels of training with every access to memory watched, as the runtime's (`test_watched_kernels`)."""

from __future__ import annotations

from pathlib import Path

import grad_scenes
import pytest
import test_cuda_gradients
from compile_on_cpu import CUDA, compile_watched, edited_sources
from kernels_on_cpu import HERE, OnCpu, Runner

from streamsplat_edge.runtime.errors import EngineError


def watched(folder: Path, sources: Path = CUDA) -> Runner:
    program = HERE / "raster_grad_on_cpu.cpp"
    return Runner(OnCpu(compile_watched(program, folder / "kernels_on_cpu.so", sources)))


def test_no_two_threads_get_into_each_others_way(tmp_path: Path) -> None:
    render = watched(tmp_path)
    many = grad_scenes.scene(31, 300, sigma=3.0, opaque=0.02, size=(9, 11))  # more than a block of threads
    test_cuda_gradients.everything(render, many, 9, 11)
    test_cuda_gradients.everything(render, grad_scenes.scene(30, 40, batch=2), 13, 37)
    grad_scenes.check_empty(render, 0, 5)


def test_a_missing_barrier_is_seen(tmp_path: Path) -> None:
    barrier = r"__syncthreads\(\);(\s+for \(int k = thread; k < count)"
    render = watched(tmp_path, edited_sources(tmp_path, "raster_grad_kernels.cuh", barrier, r"\1"))
    with pytest.raises(EngineError, match="ssgrad_unblend failed: a read after a write: thread"):
        test_cuda_gradients.everything(render, grad_scenes.scene(30, 60), 13, 37)
