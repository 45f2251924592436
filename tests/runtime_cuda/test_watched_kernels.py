"""The kernels with every access to memory watched: races, misaligned addresses and foreign memory.

A GPU runs warps in step, or not, and blocks at the same time: what is in order there by luck only is not seen
in results, neither there nor in `test_kernels_on_cpu`. See `watch_on_cpu.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_cuda_rasterizer
import test_depth_range
import test_device_lifecycle
import test_prepare
from compile_on_cpu import compile_watched, edited_sources
from kernel_rasterizer import KernelRasterizer, upload
from on_cpu_device import HERE, OnCpuDevice
from reference_renderer import random_splats

from streamsplat_edge.runtime.cuda import layout
from streamsplat_edge.runtime.cuda.rasterizer import CudaRasterizer
from streamsplat_edge.runtime.errors import EngineError

PROGRAM = HERE / "runtime_on_cpu.cpp"


class WatchedDevice(OnCpuDevice):
    """Tells the kernels which memory is theirs."""

    def _told(self, array: np.ndarray) -> np.ndarray:
        if array.nbytes:
            self.native.on_cpu_allow(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        return array

    def _allocated(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return self._told(super()._allocated(shape, dtype))

    def adopt(self, array: Any) -> np.ndarray:
        return self._told(super().adopt(array))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_watched(PROGRAM, tmp_path_factory.mktemp("watched") / "runtime_on_cpu.so")


@pytest.fixture
def device(library: Path) -> Iterator[WatchedDevice]:
    made = WatchedDevice(library)
    yield made
    made.check_guards()


@pytest.mark.parametrize(("count", "slots"), [(257, 4096), (1024, 64), (3000, 4096), (3000, 1)])
def test_lists_of_every_length(device: WatchedDevice, count: int, slots: int) -> None:
    test_cuda_rasterizer.test_long_lists_and_tiles_with_more_keys_than_slots(device, count, slots)


def test_both_paths_several_views_and_frames(device: WatchedDevice) -> None:
    test_cuda_rasterizer.test_several_views_in_one_launch(device)
    splats = random_splats(60, seed=3)
    rasterizer = CudaRasterizer(device, 17, 33, 60)
    for _ in range(2):
        assert rasterizer.render(upload(device, splats)).stats[0].rendered > 0


def test_the_lifecycle(device: WatchedDevice) -> None:
    both = test_device_lifecycle.Both(device, times=2)
    for number in range(3):
        both.spawn(number, float(number), cut=number == 1)
        both.compare([float(number)] * 2)
    both.compare([1.2, 1.9], test_device_lifecycle.VIEW)


def test_the_range_of_depth(device: WatchedDevice) -> None:
    test_depth_range.test_frames_that_are_not_finite_or_flat(device)
    test_depth_range.test_more_blocks_than_threads(device)


@pytest.mark.parametrize("name", ["nv12", "p010le"])
def test_pictures(device: WatchedDevice, name: str) -> None:
    test_prepare.test_turned_and_resized(device, name, test_prepare.TURNS[1])
    test_prepare.test_resizes_as_swscale(device, (9, 333), test_prepare.noise)
    if name == "nv12":  # with an odd number of rows
        test_prepare.test_other_formats_are_near_libav_and_nearer_the_truth(
            device, name, (49, 63), test_prepare.BT709, False
        )


BROKEN = {
    "a barrier": ("raster_cuda_sort.cuh", r"__syncthreads\(\);  // the keys of the last exchange.*", ""),
    "a barrier that lanes in step would not miss": (
        "raster_cuda_sort.cuh",
        r"(shared->high = 0;\s+\}\s+)__syncthreads\(\);",
        r"\1",
    ),
    "an atomic": (
        "raster_cuda_project.cuh",
        r"atomicAdd\(&(p.filled\[first \+ tile\[k\]\]), (.*)\);",
        r"(\1 += \2) - 1;",
    ),
    "blocks that read what others write": (
        "depth_range_cuda.cuh",
        r"const DepthPart part = p.parts\[b\];",
        r"p.parts[blockIdx.x].finite = 1; \g<0>",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_missing_is_seen(tmp_path: Path, what: str) -> None:
    broken = WatchedDevice(
        compile_watched(PROGRAM, tmp_path / "b.so", edited_sources(tmp_path, *BROKEN[what]))
    )
    with pytest.raises(EngineError, match=r"(a write after a read|a read after a write|two writes): thread"):
        if BROKEN[what][0].startswith("depth"):
            test_depth_range.Both(broken, (50, 60)).frame(np.zeros((50, 60)), 0.0, fresh=True)
        else:
            test_cuda_rasterizer.test_long_lists_and_tiles_with_more_keys_than_slots(broken, 3000, 4096)


def test_foreign_and_misaligned_addresses_are_seen(device: WatchedDevice) -> None:
    splats = random_splats(300, seed=2)
    KernelRasterizer(device).render(splats)
    given, rasterizer = upload(device, splats), CudaRasterizer(device, 64, 96, 300)
    for name, off, problem in (
        ("means", 2, "a misaligned address: thread 0 of block 0"),
        ("means", 12, "an address outside of all arrays: thread 43 of block 1"),
        ("splats", 48, "an address outside of all arrays: thread 43 of block 1"),
    ):
        params = rasterizer.params.copy()
        params["count"] = rasterizer._bind(given, params)[0]
        params[name] += np.uint64(off)
        with pytest.raises(EngineError, match=problem):
            device.launch("project_given_canonical", (layout.blocks(300), 1, 1), params)
