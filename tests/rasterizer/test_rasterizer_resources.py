"""What the rasterizer does with buffers, threads, processes and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from reference_renderer import PLANES, assert_identical, random_splats

from streamsplat_edge.runtime.rasterizer import Rasterizer, RenderBuffers, Splats, View

SWING = View.swing(0.4, -0.3, 1.0)


def test_buffers_are_reused_and_fully_overwritten() -> None:
    rasterizer = Rasterizer(50, 70)
    splats = random_splats(100, seed=24, height=50, width=70)
    fresh = rasterizer.render(splats)
    dirty = RenderBuffers.allocate(50, 70)
    for name in PLANES:
        getattr(dirty, name)[...] = np.nan
    assert rasterizer.render(splats, out=dirty) is dirty
    assert_identical(dirty, fresh)


def test_more_pairs_than_one_band_holds() -> None:
    """35 million tile-Gaussian pairs: tile lists are worked off in bands, with the same result."""
    count = 24000
    splats = Splats.allocate(count)
    splats.count = count
    splats.means[:, 1] = np.linspace(1, 2, count)
    splats.scales[:] = 100.0
    splats.opacity[:] = 0.006
    splats.rgb[:] = np.linspace(0, 1, count)[:, None]
    rasterizer = Rasterizer(512, 752)
    buffers = rasterizer.render(splats)
    assert buffers.stats.binned_pairs > 1 << 25
    assert np.ptp(buffers.rgb) < 1e-4
    small = Rasterizer(16, 16).render(splats)
    np.testing.assert_allclose(buffers.rgb[-1, -1], small.rgb[8, 8], atol=1e-4)


def test_threads_may_share_a_rasterizer() -> None:
    rasterizer = Rasterizer(64, 96, threads=2)
    scenes = [random_splats(500, seed=30 + k) for k in range(4)]
    expected = [rasterizer.render(splats) for splats in scenes]
    failures: list[int] = []

    def work(k: int) -> None:
        buffers = RenderBuffers.allocate(64, 96)
        for _ in range(30):
            rasterizer.render(scenes[k], out=buffers)
            if not np.array_equal(buffers.rgb, expected[k].rgb):
                failures.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_works_in_a_forked_child() -> None:
    """Worker threads do not survive a fork: the child must start its own instead of waiting for them."""
    program = """
import os, sys
import numpy as np
from reference_renderer import random_splats
from streamsplat_edge.runtime.rasterizer import Rasterizer
splats = random_splats(500, seed=1)
rasterizer = Rasterizer(64, 96, threads=3)
before = rasterizer.render(splats).rgb
child = os.fork()
same = np.array_equal(rasterizer.render(splats).rgb, before)
if child == 0:
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not same)
"""
    helpers = os.path.dirname(sys.modules["reference_renderer"].__file__ or "")  # noqa: PTH120
    environment = {**os.environ, "PYTHONPATH": helpers}
    result = subprocess.run([sys.executable, "-c", program], env=environment, timeout=60)
    assert result.returncode == 0


def run_program(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_threads_that_the_system_refuses_are_an_error_not_a_crash() -> None:
    program = """
import resource
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)  # stacks of 8 MB each
try:
    Rasterizer(16, 16, threads=200)
except InputError as error:
    print(error)
Rasterizer(16, 16, threads=2).render(Splats.allocate(1))
"""
    assert "200 threads cannot be started" in run_program(program)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_all_cores_are_those_the_process_may_use() -> None:
    program = """
import os
from streamsplat_edge.runtime.rasterizer import Rasterizer
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(Rasterizer(16, 16).threads)
"""
    assert run_program(program).strip() == "1"


def test_memory_does_not_grow() -> None:
    def resident_pages() -> int:
        with open("/proc/self/statm") as statm:  # noqa: PTH123
            return int(statm.read().split()[1])

    rasterizer = Rasterizer(144, 256)
    splats = random_splats(5000, seed=40, height=144, width=256)
    buffers = RenderBuffers.allocate(144, 256)
    for _ in range(5):
        rasterizer.render(splats, out=buffers)
    before = resident_pages()
    for step in range(300):
        splats.count = 5000 - 10 * step
        rasterizer.render(splats, out=buffers, view=SWING if step % 3 == 0 else None)
    assert resident_pages() - before < 100  # 400 kB; the working set is 700 kB
