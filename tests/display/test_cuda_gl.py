"""The driver's calls, made of a library in C whose functions are declared by CUDA's own headers."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from streamsplat_edge.runtime.display.cuda_gl import GlDriver, Mapped
from streamsplat_edge.runtime.errors import DeviceLostError, EngineError, InputError

DEVICES, REGISTER, MAP, POINTER, UNMAP, UNREGISTER = range(6)
STREAM = 0x7F00_0000_1234  # more than 32 bits


def compiled(folder: Path) -> Path:
    out, nvcc = folder / "driver.so", shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and str(Path(nvcc).resolve().parents[1])]
    headers = [f"-I{root}/include" for root in roots if root and Path(root, "include", "cudaGL.h").is_file()]
    command = [
        *shlex.split(os.environ.get("CC", "gcc")),
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        *headers[:1],
    ]
    source = Path(__file__).with_name("driver_of_a_test.c")
    result = subprocess.run([*command, source, "-o", out], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def library_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("driver"))


class Library:
    def __init__(self, path: Path) -> None:
        self.native = ctypes.CDLL(str(path))
        eight = ctypes.c_int * 8
        self.calls, self.answer = eight.in_dll(self.native, "calls"), eight.in_dll(self.native, "answer")
        self.said = (ctypes.c_ulonglong * 8).in_dll(self.native, "said")
        self.on_devices = ctypes.c_int.in_dll(self.native, "on_devices")
        for i in range(8):
            self.calls[i] = self.answer[i] = self.said[i] = 0
        self.on_devices.value = 1


@pytest.fixture
def library(library_file: Path) -> Library:
    return Library(library_file)


@pytest.fixture
def driver(library: Library) -> GlDriver:
    return GlDriver(library.native)


def test_a_buffer_is_registered_once_and_mapped_in_the_stream(driver: GlDriver, library: Library) -> None:
    driver.check_device(0, "Mesa")
    assert library.said[DEVICES] == 64 * 10 + 1
    handle = driver.register(9, 0, "Mesa")
    assert library.said[REGISTER] == 9 * 10 + 2
    for _ in range(3):
        with driver.mapped(handle, STREAM) as (address, size):
            assert size == 64
            ctypes.memset(address, 7, size)  # memory that is there
            assert library.calls[UNMAP] == library.calls[MAP] - 1
    driver.unregister(handle)
    assert list(library.calls[:6]) == [1, 1, 3, 3, 3, 1]
    assert library.said[MAP] == library.said[UNMAP] == STREAM


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*libcuda\.so\.1.*--device cpu"):
        GlDriver()


def test_a_window_of_another_gpu_is_refused(driver: GlDriver, library: Library) -> None:
    driver.check_device(0, "NVIDIA A")
    with pytest.raises(InputError, match=r"drawn by NVIDIA A.*CUDA device 1 cannot.*CUDA_VISIBLE_DEVICES"):
        driver.check_device(1, "NVIDIA A")
    library.on_devices.value = 2
    driver.check_device(1, "NVIDIA A")
    library.answer[DEVICES] = 219
    with pytest.raises(
        InputError, match=r"drawn by llvmpipe.*not by the NVIDIA driver.*__NV_PRIME_RENDER_OFFLOAD=1.*--view"
    ):
        driver.check_device(0, "llvmpipe")
    library.answer[DEVICES] = 801  # a board that cannot say: registering tells
    driver.check_device(0, "Tegra")
    library.answer[REGISTER] = 304
    with pytest.raises(InputError, match=r"drawn by Tegra.*CUDA error 304.*__GLX_VENDOR_LIBRARY_NAME=nvidia"):
        driver.register(9, 0, "Tegra")


@pytest.mark.parametrize("call", [MAP, POINTER, UNMAP])
def test_a_refusal_and_a_loss(driver: GlDriver, library: Library, call: int) -> None:
    handle = driver.register(9, 0, "NVIDIA")
    library.answer[call] = 400
    with (
        pytest.raises(EngineError, match=r"cuGraphics\w+ failed: CUDA error 400") as refused,
        driver.mapped(handle, STREAM),
    ):
        pass
    assert not isinstance(refused.value, DeviceLostError)
    assert library.calls[UNMAP] == (call != MAP), "what was mapped is not left so"
    library.answer[call] = 719
    with (
        pytest.raises(DeviceLostError, match=r"lost while its window was drawn: a kernel failed"),
        driver.mapped(handle, STREAM),
    ):
        pass
    library.answer[UNREGISTER] = 719
    driver.unregister(handle)  # nobody can do anything about it any more


def test_an_error_while_it_is_mapped_is_the_one_that_is_told(driver: GlDriver, library: Library) -> None:
    handle = driver.register(9, 0, "NVIDIA")
    library.answer[UNMAP] = 719
    with pytest.raises(ZeroDivisionError), driver.mapped(handle, STREAM):
        raise ZeroDivisionError
    assert library.calls[UNMAP] == 1


def test_what_other_libraries_see() -> None:
    interface = Mapped(0x1234, (2, 3, 3)).__cuda_array_interface__
    assert interface == {"version": 3, "shape": (2, 3, 3), "typestr": "|u1", "data": (0x1234, False)}
