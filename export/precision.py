"""Mixed precision as a property of the module, so that the exported graph is strongly typed.

Matrix products, convolutions and attention go down; the residual stream, norms, position tables and output
heads stay in float32, and so do the inputs and outputs of every stage. No builder flag decides a type later:
TensorRT 11 has none left, and TensorRT 10's `FP16` flag on transformers gave NaN (LESSONS.md, "What users
suffer from" 2 and 5).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import InputError
from ..training.dynamic import DynamicHeads
from ..training.matching import MatchingDecoder, MatchingLevel
from ..training.modules import Attention
from ..training.static import StaticHeads

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of the matrix products -> torch's type."""

# Positions, colours and motion: a step of fp16 near 1 is half a pixel of a 1000-pixel image.
_FULL_PRECISION = (StaticHeads, DynamicHeads)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_PRODUCTS = (nn.Linear, *_CONVOLUTIONS)
_BF16_CONV_OPSET = 22
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)  # TensorRT-RTX 1.7 has no bf16 kernels for them


def check_precision(precision: str) -> None:
    """Raise InputError for a precision that graphs are not exported in."""
    if precision not in PRECISIONS:
        hint = f"Use one of {', '.join(PRECISIONS)}."
        if precision in ("int8", "fp8", "fp4"):
            hint += " Quantised graphs come out of `streamsplat-edge calibrate`."
        raise InputError(f"Precision {precision!r} cannot be exported.", hint)


def lowered(module: nn.Module, precision: str, opset: int = 20) -> nn.Module:
    """A copy of `module` whose products compute in `precision`; the module itself for fp32.

    Args:
        module: stage whose forward casts back to float32 wherever it adds to the residual stream (as ours
            and, through its float32 layer scales, DINOv2 do). Modules listed in its attribute
            `full_precision`, if it has one, stay in float32.
        precision: one of `PRECISIONS`.
        opset: ONNX operator set it is for; convolutions have no bf16 before 22 and stay in float32 there,
            transposed ones always.

    Raises:
        InputError: unknown precision, or a weight that it cannot hold.
    """
    check_precision(precision)
    if precision == "fp32":
        return module
    result = copy.deepcopy(module)
    # Layers that say a motion, which is added up from level to level, are output heads too.
    kept: list[nn.Module] = [part.flow for part in result.modules() if isinstance(part, MatchingLevel)]
    kept += getattr(result, "full_precision", ())
    if precision == "bf16":
        kinds = _CONVOLUTIONS if opset < _BF16_CONV_OPSET else _TRANSPOSED
        kept += [part for part in result.modules() if isinstance(part, kinds)]
    _lower(result, PRECISIONS[precision], "", tuple(kept))
    return result


def _lower(
    module: nn.Module, dtype: torch.dtype, name: str, kept: tuple[nn.Module, ...], widened: bool = False
) -> None:
    """Lowers the products in `module`; with `widened` each returns float32 again."""
    if isinstance(module, _FULL_PRECISION):
        return
    # Matching adds, compares and moves the results of its convolutions: between them it stays in float32.
    widened = widened or isinstance(module, MatchingDecoder)
    if module in kept:

        def widen_inputs(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(value.float() if isinstance(value, Tensor) else value for value in inputs)

        module.register_forward_pre_hook(widen_inputs)
        return
    if isinstance(module, _PRODUCTS):
        for leaf, parameter in module.named_parameters(recurse=False):
            parameter.data = _rounded(parameter.data, dtype, f"{name}.{leaf}")
    if isinstance(module, (*_PRODUCTS, Attention)):  # attention reads the weights of its projection itself

        def cast_inputs(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(value.to(dtype) if isinstance(value, Tensor) else value for value in inputs)

        module.register_forward_pre_hook(cast_inputs)
    if isinstance(module, _PRODUCTS) and widened:

        def widen_output(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return output.float()

        module.register_forward_hook(widen_output)
    for child_name, child in module.named_children():
        _lower(child, dtype, f"{name}.{child_name}" if name else child_name, kept, widened)


def _rounded(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    rounded = values.to(dtype)
    if bool((rounded.isinf() & values.isfinite()).any()):
        raise InputError(
            f"Weight {name} reaches {float(values.abs().max()):g}, which {dtype} cannot hold.",
            "Export with --precision bf16 or fp32.",
        )
    return rounded
