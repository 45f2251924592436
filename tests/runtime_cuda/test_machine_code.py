"""The kernels as machine code: from the build, or by NVRTC at first use, cached; what is refused, and how."""

from __future__ import annotations

import re
import sys

import pytest
from compile_on_cpu import CUDA

from streamsplat_edge.runtime.cuda import kernels
from streamsplat_edge.runtime.errors import EngineError


class FakeNvrtc:
    """NVRTC that compiles by counting."""

    def __init__(self) -> None:
        self.compiled = 0
        self.problem: Exception | None = None
        self.version = (13, 0)

    def getVersion(self) -> tuple[int, int]:
        return self.version

    def getSupportedArchs(self) -> list[int]:
        return [75, 87, 90]

    def createProgram(self, source: str, name: str, headers: list[bytes], names: list[bytes]) -> int:
        assert "project_given_canonical" in source and name == "streamsplat.cu"
        assert b"raster_cuda.h" in names and len(names) == len(headers)
        return 5

    def compileProgram(self, program: int, options: list[str]) -> None:
        self.options = options
        if self.problem is not None:
            raise self.problem
        self.compiled += 1

    def getCUBIN(self, program: int) -> bytes:
        return b"cubin %d" % self.compiled

    def getProgramLog(self, program: int) -> str:
        return "line 7: oh no"

    def destroyProgram(self, program: int) -> None:
        pass


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path) -> FakeNvrtc:
    fake = FakeNvrtc()
    monkeypatch.setattr(kernels, "_nvrtc", lambda: fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return fake


def test_compiled_once_per_gpu_version_and_source(nvrtc: FakeNvrtc, tmp_path, monkeypatch) -> None:
    assert kernels.compile_sources("8.7") == kernels.compile_sources("8.7") == b"cubin 1"
    assert nvrtc.options == ["--std=c++17", "--fmad=false", "--gpu-architecture=sm_87"]
    assert kernels.compile_sources("9.0") == b"cubin 2"
    nvrtc.version = (13, 1)
    assert kernels.compile_sources("8.7") == b"cubin 3"
    sources = kernels.read_sources() | {"splat_math.h": b"other"}
    monkeypatch.setattr(kernels, "read_sources", lambda: sources)
    assert kernels.compile_sources("8.7") == b"cubin 4"
    kept = list((tmp_path / "streamsplat-edge" / "kernels").iterdir())
    assert len(kept) == 4 and all(p.suffix == ".cubin" for p in kept)


def test_a_cache_that_cannot_be_written_is_no_obstacle(nvrtc: FakeNvrtc, tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert kernels.compile_sources("8.7", cache=blocked) == b"cubin 1"
    assert kernels.compile_sources("8.7", cache=blocked) == b"cubin 2"


def test_what_nvrtc_refuses(nvrtc: FakeNvrtc) -> None:
    with pytest.raises(EngineError, match=r"compiles for 75, 87, 90, but the GPU is 121"):
        kernels.compile_sources("12.1")
    nvrtc.problem = RuntimeError("NVRTC_ERROR_COMPILATION")
    with pytest.raises(EngineError, match=r"cannot compile .* sm_87: NVRTC_ERROR_COMPILATION\nline 7: oh no"):
        kernels.compile_sources("8.7")


def test_without_nvrtc_or_sources(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(EngineError, match=r"NVRTC is missing.*streamsplat-edge\[gpu\]"):
        kernels.compile_sources("8.7")
    monkeypatch.setattr(kernels, "FOLDER", tmp_path)
    with pytest.raises(EngineError, match=r"kernels are missing from .*Install streamsplat-edge again"):
        kernels.read_sources()


def test_a_fatbin_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(kernels, "FOLDER", tmp_path)
    (tmp_path / kernels.FATBIN).write_bytes(b"fat")
    assert kernels.machine_code("8.7") == (b"fat", "fatbin")


def test_sources_are_installed_with_all_that_they_include() -> None:
    installed = kernels.read_sources()
    for name, text in installed.items():
        assert text == (CUDA / name).read_bytes(), f"{name} was changed: install again"
        assert set(re.findall(rb'#include "(.+)"', text)) <= {n.encode() for n in installed}


def test_nvrtc_is_told_every_type_of_a_fixed_width() -> None:
    """It has no <stdint.h>; nvcc and the CPU would not notice."""
    texts = kernels.read_sources()
    told = set(re.findall(rb"typedef [a-z ]+ (\w+_t);", texts["splat_math.h"]))
    used = {name for text in texts.values() for name in re.findall(rb"\bu?int\d+_t\b", text)}
    assert used <= told


def test_nvrtc_itself_compiles_the_installed_sources(tmp_path) -> None:
    """The real one, where it is installed; it needs no GPU."""
    pytest.importorskip("cupy.cuda", reason="CuPy (extra [gpu]) is not installed")
    try:
        code = kernels.compile_sources("8.7", cache=tmp_path)
    except EngineError as error:
        if "NVRTC is missing" in str(error):
            pytest.skip(str(error))
        raise
    assert code.startswith(b"\x7fELF")
    for kernel in ("project_ring_canonical", "blend_given_general", "lifecycle_compact"):
        assert kernel.encode() in code
