"""The CUDA half of the differentiable rasterizer: loads the native library and calls its kernels.

``cuda/raster_grad.cu`` is compiled where the package is installed with ``STREAMSPLAT_CUDA=ON`` and lies
beside the other native module. It is called through ctypes with the addresses of torch's tensors, on torch's
current stream; torch allocates all memory (cuda/raster_grad_cuda.h gives the interface and the reasons).
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from streamsplat_edge import _core
from streamsplat_edge.runtime.errors import EngineError, InputError

LIBRARY = "libstreamsplat_grad_cuda.so"
_ABI = 1  # kGradAbi
_SPLAT_BYTES = 48  # kGradSplatBytes
_SUMS = 9  # kGradSums
_TILE = 16  # kTile
_LIMIT = 2**31 - 1  # rows, tiles and list entries are int32

_BUILD = "pip install . -C cmake.define.STREAMSPLAT_CUDA=ON"
_HINTS = {
    35: "There is no NVIDIA driver, or it is older than the CUDA toolkit of the build: update the driver.",
    100: "No CUDA device is visible to this process.",
    209: "The package was built for other GPUs; build it here: "
    f"{_BUILD} -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native",
}


class _Shape(ctypes.Structure):
    _fields_ = [("batch", c_int32), ("count", c_int32), ("height", c_int32), ("width", c_int32)]


class _Place(ctypes.Structure):
    _fields_ = [("stream", c_void_p), ("device", c_int32)]


class _Scratch(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("bytes", c_int64)]


class _Pairs(ctypes.Structure):
    _fields_ = [("count", c_int64), ("keys", c_void_p * 2), ("rows", c_void_p * 2), ("current", c_int32)]


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs besides the inputs; names, shapes and order as in ``GradSaved``."""

    splats: Tensor
    rows: Tensor
    ranges: Tensor
    transmittance: Tensor
    stop: Tensor


def _addresses(*tensors: Tensor) -> Any:
    """A C structure of nothing but pointers."""
    return (c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


class GradLibrary:
    """The functions of cuda/raster_grad_cuda.h on tensors.

    Raises:
        EngineError: the library is missing, does not load, or belongs to another version of this module; in
            methods: a CUDA call failed.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise EngineError(
                "This installation has no CUDA rasterizer, and tensors on a GPU are not rendered on the CPU.",
                f"Install it where nvcc is: {_BUILD}; or move the tensors with .cpu().",
            )
        try:
            self._native = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineError(
                f"The CUDA rasterizer {path} does not load: {error}.", f"Install it again: {_BUILD}"
            ) from error
        self._native.ssgrad_error.restype = ctypes.c_char_p
        found = self._native.ssgrad_abi()
        if found != _ABI:
            raise EngineError(
                f"{path} has interface {found}, but {_ABI} is needed.", f"Install it again: {_BUILD}"
            )

    def place(self, device: torch.device) -> _Place:
        """Where kernels start: torch's current stream of ``device``."""
        return _Place(torch.cuda.current_stream(device).cuda_stream, device.index)

    def _call(self, name: str, *arguments: Any) -> None:
        by_address = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        status = getattr(self._native, name)(*by_address)
        if status != 0:
            text = self._native.ssgrad_error(status).decode()
            raise EngineError(f"CUDA rasterizer: {name} failed: {text}.", _HINTS.get(status, ""))

    def _scratch(self, place: _Place, shape: _Shape, pairs: int, device: torch.device) -> Tensor:
        size = c_int64()
        self._call("ssgrad_scratch_bytes", place, shape, c_int64(pairs), ctypes.byref(size))
        return torch.empty(max(1, size.value), dtype=torch.uint8, device=device)

    def forward(
        self, arrays: tuple[Tensor, ...], height: int, width: int
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Saved]:
        """Renders ``arrays`` (the fields of ``GradInputs``) to rgb, depth, alpha; also the saved state."""
        batch, count = arrays[1].shape
        device = arrays[1].device
        tiles = batch * -(-height // _TILE) * -(-width // _TILE)
        if max(batch * count, tiles) >= _LIMIT:
            raise InputError(
                f"{batch} images of {count} Gaussians and {height}x{width} pixels are too many for one call.",
                "Use a smaller batch.",
            )

        def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        place, shape = self.place(device), _Shape(batch, count, height, width)
        inputs = _addresses(*arrays)
        splats = empty(batch * count, _SPLAT_BYTES, dtype=torch.uint8)
        pair_begin = empty(batch * count + 1, dtype=torch.int64)
        scratch = self._scratch(place, shape, 0, device)
        self._call(
            "ssgrad_project",
            *(place, shape, inputs, c_void_p(splats.data_ptr()), c_void_p(pair_begin.data_ptr())),
            _Scratch(scratch.data_ptr(), scratch.numel()),
        )
        pairs = int(pair_begin[-1])  # the only wait for the device
        if pairs >= _LIMIT:
            raise InputError(
                f"{pairs} pairs of a Gaussian and a 16x16 tile are too many for one call.",
                "Use a smaller batch, or smaller Gaussians.",
            )

        keys = [empty(pairs, dtype=torch.int64) for _ in range(2)]
        rows = [empty(pairs, dtype=torch.int32) for _ in range(2)]
        scratch = self._scratch(place, shape, pairs, device)
        saved = Saved(
            splats,
            rows[0],
            torch.zeros(tiles, 2, dtype=torch.int32, device=device),
            empty(batch, height, width),
            empty(batch, height, width, dtype=torch.int32),
        )
        outputs = (empty(batch, height, width, 3), empty(batch, height, width), empty(batch, height, width))
        buffers = _Pairs(pairs, _addresses(*keys), _addresses(*rows), 0)
        self._call(
            "ssgrad_blend",
            *(place, shape, inputs, c_void_p(pair_begin.data_ptr()), buffers),
            *(_addresses(*vars(saved).values()), _addresses(*outputs)),
            _Scratch(scratch.data_ptr(), scratch.numel()),
        )
        return outputs, Saved(**(vars(saved) | {"rows": rows[buffers.current]}))

    def backward(
        self, arrays: tuple[Tensor, ...], saved: Saved, upstream: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """dL/d(``arrays``) from dL/d(rgb, depth, alpha)."""
        batch, count = arrays[1].shape
        height, width = saved.stop.shape[1:]
        device = arrays[1].device
        grads = tuple(torch.empty_like(t) for t in arrays[:-1])
        # A plain sum over pixels, which torch takes in the same order every time.
        background = (saved.transmittance[..., None] * upstream[0]).sum((1, 2))
        sums = torch.empty(len(saved.rows), _SUMS, device=device)
        self._call(
            "ssgrad_unblend",
            *(self.place(device), _Shape(batch, count, height, width), _addresses(*arrays)),
            *(_addresses(*vars(saved).values()), _addresses(*upstream), c_void_p(sums.data_ptr())),
            _addresses(*grads, background),
        )
        return (*grads, background)


@cache
def load() -> GradLibrary:
    """The installed library.

    Raises:
        EngineError: see `GradLibrary`.
    """
    return GradLibrary(Path(_core.__file__).with_name(LIBRARY))


class RasterizeCuda(torch.autograd.Function):
    """``apply(library, height, width, xz, depth, scale, opacity, rgb, background)``, all float32."""

    @staticmethod
    def forward(
        ctx: Any, library: GradLibrary, height: int, width: int, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        arrays = tuple(t.detach().contiguous() for t in inputs)
        outputs, saved = library.forward(arrays, height, width)
        ctx.library = library
        ctx.save_for_backward(*arrays, *vars(saved).values())
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        rgb, depth, alpha = (t.detach().float().contiguous() for t in upstream)
        grads = ctx.library.backward(tensors[:6], Saved(*tensors[6:]), (rgb, depth, alpha))
        return (None, None, None, *grads)
