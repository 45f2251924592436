"""The kernels' machine code: built with the package where nvcc was, else compiled here once and kept.

An installation with `STREAMSPLAT_CUDA=ON` has a fatbin for all architectures. Any other has the sources,
which NVRTC (package `nvidia-cuda-nvrtc`, extra `[gpu]`; on Jetson part of JetPack) compiles for the GPU at
hand in some seconds; the result is kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

from ... import _core
from ..errors import EngineError, OutputError
from ..video.output import write_bytes

FOLDER = Path(_core.__file__).with_name("kernels")
"""Sources, and where it was built the fatbin, beside the native module."""

ENTRY = "streamsplat.cu"
FATBIN = "streamsplat.fatbin"

# Contraction off: see raster_cuda.h.
_OPTIONS = ("--std=c++17", "--fmad=false")
_REINSTALL = "Install streamsplat-edge again."


def machine_code(capability: str) -> tuple[bytes, str]:
    """Code that the driver loads on a GPU of this compute capability ("8.7"), and where it came from.

    Raises:
        EngineError: the package has no kernels, or NVRTC is missing or cannot compile for this GPU.
    """
    fatbin = FOLDER / FATBIN
    if fatbin.is_file():
        return fatbin.read_bytes(), "fatbin"
    return compile_sources(capability), "NVRTC"


def read_sources() -> dict[str, bytes]:
    """Name -> text of the kernels' sources.

    Raises:
        EngineError: they are missing from the installation.
    """
    names = sorted(p.name for p in FOLDER.glob("*") if p.suffix in (".cu", ".cuh", ".h"))
    if ENTRY not in names:
        raise EngineError(f"The CUDA kernels are missing from {FOLDER}.", _REINSTALL)
    return {name: (FOLDER / name).read_bytes() for name in names}


def compile_sources(capability: str, *, cache: Path | None = None) -> bytes:
    """Compile with NVRTC, or take what was compiled from the same sources by the same version before.

    Args:
        capability: of the GPU, like "8.7".
        cache: folder; None is `cache_folder()`. Where it cannot be written to, every start compiles again.

    Raises:
        EngineError: NVRTC is missing, too old for this GPU, or refuses the sources.
    """
    sources = read_sources()
    nvrtc = _nvrtc()
    architecture = capability.replace(".", "")
    major, minor = nvrtc.getVersion()
    key = hashlib.sha256()
    for part in (f"{major}.{minor} {architecture} {' '.join(_OPTIONS)}".encode(), *sources.values()):
        key.update(hashlib.sha256(part).digest())
    path = (cache_folder() if cache is None else cache) / f"sm_{architecture}-{key.hexdigest()[:32]}.cubin"
    if path.is_file():
        return path.read_bytes()
    supported = [str(a) for a in nvrtc.getSupportedArchs()]
    if architecture not in supported:
        raise EngineError(
            f"NVRTC {major}.{minor} compiles for {', '.join(supported)}, but the GPU is {architecture}.",
            "Install a CuPy and nvidia-cuda-nvrtc of a CUDA release that knows this GPU.",
        )
    code = _compile(nvrtc, sources, architecture)
    with contextlib.suppress(OutputError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, code)
    return code


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$XDG_CACHE_HOME/streamsplat-edge` or `~/.cache/streamsplat-edge`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "streamsplat-edge" / "kernels"


def _nvrtc() -> Any:
    hint = "pip install 'streamsplat-edge[gpu]'; or build the kernels: CONTRIBUTING.md, STREAMSPLAT_CUDA."
    try:
        nvrtc: Any = importlib.import_module("cupy.cuda").nvrtc
        nvrtc.getVersion()
    except Exception as error:  # a missing library shows as one of several kinds
        raise EngineError(
            f"The CUDA kernels cannot be compiled: NVRTC is missing ({error}).", hint
        ) from error
    return nvrtc


def _compile(nvrtc: Any, sources: dict[str, bytes], architecture: str) -> bytes:
    headers = [name for name in sources if name != ENTRY]
    # The low-level interface: CuPy's own compiler would add its headers, which need more of the toolkit.
    program = nvrtc.createProgram(
        sources[ENTRY].decode(),
        ENTRY,
        [sources[name] for name in headers],
        [name.encode() for name in headers],
    )
    try:
        nvrtc.compileProgram(program, [*_OPTIONS, f"--gpu-architecture=sm_{architecture}"])
        return bytes(nvrtc.getCUBIN(program))
    except Exception as error:
        log = nvrtc.getProgramLog(program)
        raise EngineError(
            f"NVRTC cannot compile the CUDA kernels for sm_{architecture}: {error}\n{log}",
            "Report this with the output of `streamsplat-edge doctor`.",
        ) from error
    finally:
        nvrtc.destroyProgram(program)
