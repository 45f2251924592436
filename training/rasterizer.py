"""Differentiable rasterizer: ``torch.autograd`` around a native forward and backward pass.

Tensors on the CPU go to the C++ version (cuda/raster_grad.cpp), tensors on a GPU to the CUDA version
(cuda/raster_grad.cu), where the package was installed with it; nothing is moved from one to the other.
The canonical, axis-aligned view only, with the semantics of REFERENCE.md section 3 (cuda/splat_math.h).
The gradient is exact for the computation with its discrete decisions held fixed: the depth order, culling,
the tile rectangle, the 1/255 skip and the early stop. Depth receives a gradient through the accumulated
depth only. Where alpha is clamped to 0.99 nothing passes to position, scale and opacity. Results are the
same bits every time on the same kind of device, whatever the number of threads; between devices they differ
by rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from streamsplat_edge import _core
from streamsplat_edge.runtime.errors import InputError

from .rasterizer_cuda import RasterizeCuda, load

_NAMES = ("xz", "depth", "scale", "opacity", "rgb", "background")
_SIMD = ("avx512", "avx2", "scalar")
_MAX_SIDE = 32000  # pixel boxes are int16


class _RasterizeCpu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, height: int, width: int, simd: str, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        arrays = tuple(t.detach().contiguous() for t in inputs)
        batch = arrays[1].shape[0]
        rgb = torch.empty(batch, height, width, 3)
        depth = torch.empty(batch, height, width)
        alpha = torch.empty(batch, height, width)
        outputs = (rgb.numpy(), depth.numpy(), alpha.numpy())
        options = () if simd == "auto" else (simd,)
        ctx.state = _core.raster_grad_forward(
            *(t.numpy() for t in arrays), *outputs, torch.get_num_threads(), *options
        )
        ctx.save_for_backward(*arrays)
        return rgb, depth, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        arrays = ctx.saved_tensors
        grads = tuple(torch.empty_like(t) for t in arrays)
        _core.raster_grad_backward(
            ctx.state,
            *(t.numpy() for t in arrays),
            *(t.detach().float().contiguous().numpy() for t in upstream),
            *(t.numpy() for t in grads),
            torch.get_num_threads(),
        )
        return (None, None, None, *grads)


def _check(tensors: tuple[Tensor, ...], height: int, width: int) -> None:
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise InputError(
            f"image size {height}x{width} cannot be rendered.", f"Use sides from 1 to {_MAX_SIDE} pixels."
        )
    depth = tensors[1]
    if depth.device.type not in ("cpu", "cuda"):
        raise InputError(
            f"depth is on {depth.device}, where there is no rasterizer.",
            "Move all inputs to the CPU or a GPU.",
        )
    if depth.dim() != 2:
        raise InputError(f"depth has shape {tuple(depth.shape)}, not [B, N].", "Add a batch dimension.")
    b, n = depth.shape
    expected = ((b, n, 2), (b, n), (b, n, 2), (b, n), (b, n, 3), (b, 3))
    for name, tensor, shape in zip(_NAMES, tensors, expected, strict=True):
        if tensor.device != depth.device:
            raise InputError(
                f"{name} is on {tensor.device}, but depth on {depth.device}.", "Move all to one device."
            )
        if not tensor.is_floating_point():
            raise InputError(f"{name} is {tensor.dtype}, not floating point.", "Convert it with .float().")
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}, not {shape}.",
                "All inputs share the batch size and the number of Gaussians of depth [B, N].",
            )


def rasterize(
    xz: Tensor,
    depth: Tensor,
    scale: Tensor,
    opacity: Tensor,
    rgb: Tensor,
    background: Tensor,
    height: int,
    width: int,
    *,
    simd: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Renders a batch of Gaussian sets (REFERENCE.md section 3), differentiable in every tensor.

    Args:
        xz: ``[B, N, 2]`` centres in ndc, ``[-1, 1]`` over the image, x right, z up.
        depth: ``[B, N]`` view depth; Gaussians with depth <= 0 are dropped.
        scale: ``[B, N, 2]`` standard deviations along x and z in ndc.
        opacity: ``[B, N]`` in ``[0, 1]``.
        rgb: ``[B, N, 3]``, not clamped.
        background: ``[B, 3]`` colour behind everything.
        height: image rows in pixels.
        width: image columns in pixels.
        simd: ``"auto"`` (the best of this CPU), ``"avx512"``, ``"avx2"`` or ``"scalar"``; of no meaning on
            a GPU, where only ``"auto"`` is taken.

    Returns:
        rgb ``[B, H, W, 3]``; depth ``[B, H, W]``, accumulated (sum of depth times weight, not divided by
        alpha); alpha ``[B, H, W]``, the sum of the weights. All float32. A Gaussian with a NaN or an infinity
        in any of its values adds nothing and receives zero gradients.

    Raises:
        InputError: a shape, device or type that does not fit, a ``simd`` that this CPU lacks, or too many
            Gaussians for one call.
        EngineError: the tensors are on a GPU, and the CUDA version is not installed or a CUDA call failed.
    """
    tensors = (xz, depth, scale, opacity, rgb, background)
    _check(tensors, height, width)
    floats = [t.float() for t in tensors]
    result: tuple[Tensor, Tensor, Tensor]
    if depth.device.type == "cuda":
        if simd != "auto":
            raise InputError(f"simd {simd!r} was asked for on {depth.device}.", 'Use simd="auto" on a GPU.')
        result = RasterizeCuda.apply(load(), height, width, *floats)
        return result
    if simd != "auto" and not (simd in _SIMD and _core.simd_supported(simd)):
        raise InputError(f"simd {simd!r} is unknown or not supported by this CPU.", 'Use simd="auto".')
    result = _RasterizeCpu.apply(height, width, simd, *floats)
    return result
