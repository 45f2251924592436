"""What surrounds the kernels: memory, errors, and who gets which device."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import grad_scenes
import pytest
import torch
from compile_on_cpu import edited_sources
from grad_scenes import scene, upstream
from kernels_on_cpu import CUDA, OnCpu, build
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from streamsplat_edge.runtime.errors import EngineError, InputError
from streamsplat_edge.training import rasterizer, rasterizer_cuda

GUARD, FILL = 256, 0xA5  # bytes


class Guarded:
    """Makes tensors that are full of NaN and lie between bytes that nobody may write."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []

    def empty(self, *size: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        count = math.prod(size) * dtype.itemsize
        memory = torch.full((count + 2 * GUARD,), FILL, dtype=torch.uint8)
        inside = memory[GUARD : GUARD + count]
        inside.fill_(0xFF)
        self.made.append(memory)
        return inside.view(dtype).view(size)

    def empty_like(self, other: Tensor) -> Tensor:
        return self.empty(*other.shape, dtype=other.dtype)

    def zeros(self, *size: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        return self.empty(*size, dtype=dtype).zero_()

    def check(self) -> None:
        for memory in self.made:
            assert (memory[:GUARD] == FILL).all() and (memory[-GUARD:] == FILL).all()


def test_everything_is_written_and_nothing_beside_it(library: OnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scene(40, 150, batch=2, size=(37, 50))
    up = upstream(0, 2, 37, 50)
    call = rasterizer_cuda.RasterizeCuda.apply

    def render(tensors: Any, height: int, width: int) -> Any:
        return call(library, height, width, *tensors)

    want = [*render(inputs, 37, 50), *grad_scenes.gradients(render, inputs, up, 37, 50)]
    guarded = Guarded()
    monkeypatch.setattr(rasterizer_cuda, "torch", _Torch(guarded))
    got = [*render(inputs, 37, 50), *grad_scenes.gradients(render, inputs, up, 37, 50)]
    guarded.check()
    assert len(guarded.made) > 20
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


class _Torch:
    """torch with guarded memory."""

    def __init__(self, guarded: Guarded) -> None:
        self.empty, self.empty_like, self.zeros = guarded.empty, guarded.empty_like, guarded.zeros

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def test_a_gpu_without_the_library_is_refused_and_never_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rasterizer_cuda._core, "__file__", str(tmp_path / "_core.so"))
    rasterizer_cuda.load.cache_clear()
    with FakeTensorMode():
        inputs = [torch.empty(t.shape, device="cuda") for t in scene(0, 3)]
        with pytest.raises(EngineError, match=r"no CUDA rasterizer.*STREAMSPLAT_CUDA=ON.*\.cpu\(\)"):
            rasterizer.rasterize(*inputs, 8, 8)
        with pytest.raises(InputError, match=r"avx2.*GPU"):
            rasterizer.rasterize(*inputs, 8, 8, simd="avx2")
        with pytest.raises(InputError, match="scale is on cpu, but depth on cuda"):
            rasterizer.rasterize(*inputs[:2], torch.empty(1, 3, 2), *inputs[3:], 8, 8)
    with pytest.raises(InputError, match="depth is on meta"):
        rasterizer.rasterize(*(t.to("meta") for t in scene(0, 3)), 8, 8)


def test_damaged_and_foreign_libraries_are_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"does not load.*STREAMSPLAT_CUDA=ON"):
        rasterizer_cuda.GradLibrary(damaged)


def test_another_interface_is_refused(library: OnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterizer_cuda, "_ABI", 7)
    with pytest.raises(EngineError, match=r"has interface 1, but 7 is needed\. Install it again"):
        OnCpu(Path(library._native._name))


def test_constants_are_those_of_the_sources() -> None:
    text = "\n".join(
        (CUDA / f"{name}.h").read_text() for name in ("raster_grad_cuda", "raster_grad_math", "splat_math")
    )
    for name, value in (
        ("kGradAbi", rasterizer_cuda._ABI),
        ("kGradSplatBytes", rasterizer_cuda._SPLAT_BYTES),
        ("kGradSums", rasterizer_cuda._SUMS),
        ("kTile", rasterizer_cuda._TILE),
    ):
        assert re.search(rf"constexpr int {name} = {value};", text), name


def test_too_much_for_one_call_is_refused(library: OnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scene(41, 30, sigma=3.0)
    call = rasterizer_cuda.RasterizeCuda.apply
    monkeypatch.setattr(rasterizer_cuda, "_LIMIT", 31)
    with pytest.raises(InputError, match=r"pairs of a Gaussian and a 16x16 tile.*smaller batch"):
        call(library, 50, 70, *inputs)
    monkeypatch.setattr(rasterizer_cuda, "_LIMIT", 30)
    with pytest.raises(InputError, match=r"1 images of 30 Gaussians and 50x70 pixels are too many"):
        call(library, 50, 70, *inputs)


def test_errors_of_the_native_side_are_put_into_words(
    library: OnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = torch.empty(1, dtype=torch.uint8)
    monkeypatch.setattr(library, "_scratch", lambda *_: short)
    with pytest.raises(EngineError, match="CUDA rasterizer: ssgrad_project failed: too little scratch"):
        rasterizer_cuda.RasterizeCuda.apply(library, 50, 70, *scene(42, 5))


def test_a_missing_barrier_would_show(tmp_path: Path) -> None:
    """The last barrier of a round of unblend, which keeps fast warps from overwriting what slow ones read."""
    barrier = r"__syncthreads\(\);  // before the next round.*"
    library = OnCpu(build(tmp_path, edited_sources(tmp_path, "raster_grad_kernels.cuh", barrier, "")))
    inputs, up = scene(37, 300, sigma=3.0, opaque=0.7, size=(40, 50)), upstream(3, 1, 40, 50)
    results = []
    for number in range(3):
        library.schedule(number)
        results.append(
            grad_scenes.gradients(
                lambda t, h, w: rasterizer_cuda.RasterizeCuda.apply(library, h, w, *t), inputs, up, 40, 50
            )
        )
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
