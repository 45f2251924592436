"""What only the kernels on the CPU can show: orders of execution, and barriers that would be missed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compile_on_cpu import edited_sources
from kernel_rasterizer import KernelRasterizer
from on_cpu_device import OnCpuDevice, build
from reference_renderer import assert_identical, random_splats

from streamsplat_edge.runtime.rasterizer import RenderBuffers

SCENE = random_splats(1500, seed=1, height=20, width=30, sigma=8.0)
SCENE.opacity[:] = 0.02


def in_orders(device: OnCpuDevice, slots: int) -> list[RenderBuffers]:
    """Renders with warps and lanes in order, in reverse, and by chance."""
    buffers = []
    for number in range(3):
        device.schedule(number)
        buffers.append(KernelRasterizer(device, 20, 30, slots=slots).render(SCENE))
    return buffers


@pytest.mark.parametrize("slots", [2048, 64])
def test_the_order_of_threads_does_not_matter(device: OnCpuDevice, slots: int) -> None:
    first, *others = in_orders(device, slots)
    for other in others:
        assert_identical(first, other)


BARRIERS = {
    "a batch is tabulated before it is blended": (
        "raster_cuda_blend.cuh",
        r"(&shared->batch\);\s+)__syncthreads\(\);",
    ),
    "keys are written before they are exchanged": (
        "raster_cuda_sort.cuh",
        r"(= key\[k\];\s+)__syncthreads\(\);",
    ),
}


@pytest.mark.parametrize("what", BARRIERS)
def test_a_missing_barrier_would_show(tmp_path: Path, what: str) -> None:
    name, pattern = BARRIERS[what]
    sources = edited_sources(tmp_path, name, pattern, r"\1")
    # Keys that were lost index outside of the splats: in a process of its own, where that may end it.
    program = "import sys, test_kernels_on_cpu as t; t.print_orders(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(build(tmp_path, sources))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode != 0 or len(set(done.stdout.split())) > 1


def print_orders(library: str) -> None:
    for buffers in in_orders(OnCpuDevice(Path(library)), 64):
        print(hashlib.sha256(buffers.rgb.tobytes()).hexdigest())
