"""The kernels of the runtime on the CPU, built once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rasterizer_cuda"))

from on_cpu_device import OnCpuDevice, build

from streamsplat_edge.runtime.cuda.device import Device


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runtime_on_cpu"))


@pytest.fixture
def device(kernels: Path) -> Iterator[OnCpuDevice]:
    made = OnCpuDevice(kernels)
    yield made
    made.schedule(0)
    made.check_guards()


@pytest.fixture(params=["on_cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def any_device(request: pytest.FixtureRequest) -> Device:
    if request.param == "on_cpu":
        return request.getfixturevalue("device")
    from streamsplat_edge.runtime.cuda.cupy_device import CupyDevice

    device = CupyDevice()
    if os.environ.get("STREAMSPLAT_NO_POOL"):  # for sanitizers, which see single allocations only
        device.cupy.cuda.set_allocator(None)
    return device
