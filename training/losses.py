"""The published loss terms, each a scalar tensor, differentiable with respect to its first argument.

    stage 1: mse + 0.05 ssi_depth + 0.05 LPIPS
    stage 2: mse + 3 masked_mse + 0.01 ssi_depth(ignore_large=0.3) + 0.05 LPIPS

LPIPS is in `perceptual.py`; from which epoch on a term counts is the business of the trainer. Images are
float RGB in [0, 1], channels last. Terms are computed in float32 whatever autocast says: the depth terms
divide by 1e-8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.errors import InputError

EPSILON = 1e-8
# Where the weight of a large difference has fallen to one half, how fast it falls, and where it stops.
_SOFTNESS = 0.2  # of `ignore_large`: 0.06 at the published 0.3
_LEAST_WEIGHT = 0.1
# Variance over mean square below which a prediction counts as constant: float32 cannot tell.
_FLAT = 1e-12


def _check_shape(name: str, array: Tensor, shape: torch.Size) -> None:
    """Broadcasting would hide a mistaken shape behind a plausible number."""
    if array.shape != shape:
        raise InputError(f"{name} has the shape {list(array.shape)} where {list(shape)} is needed.")


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, mean((prediction - target)^2) over all elements.

    Args:
        prediction, target: of one shape.

    Raises:
        InputError: the shapes differ.
    """
    _check_shape("target", target, prediction.shape)
    return (prediction.float() - target.float()).square().mean()


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of moving objects, the published mask term.

        sum(m |prediction - target|^2) / (3 sum(m)), m the mask; 0 where sum(m) = 0

    The mean is over the masked pixels of the whole batch: a sample counts by the size of its objects. The
    published code takes the mean of nothing, NaN, where no sample has a mask.

    Args:
        prediction, target: [B, T, H, W, 3].
        mask: [B, T, H, W], bool, or float weights of at least 0.

    Raises:
        InputError: shapes that do not belong together.
    """
    _check_shape("target", target, prediction.shape)
    _check_shape("mask", mask, prediction.shape[:-1])
    weight = mask.float()
    error = (prediction.float() - target.float()).square().mean(-1)
    total = weight.sum()
    return (error * weight).sum() / torch.where(total > 0, total, 1.0)


def ssi_depth(
    rendered_depth: Tensor, target: Tensor, mask: Tensor | None = None, ignore_large: float = 0.0
) -> Tensor:
    """Scale- and shift-invariant depth loss ("ssitrim"; despite its name nothing is trimmed).

        p = m / (depth + 1e-8),  y = m target                       all views of a sample as one vector
        n(x) = (x - median(x)) / (mean |x - median(x)| + 1e-8)
        d = |n(p) - n(y)|
        loss = mean(w d),  w = 1, or with ignore_large = L > 0
                           w = max(0.1, sigmoid(-(d^2 - L) / (0.2 L))), held constant in the gradient

    Masked pixels count as zeros in median, deviation and mean, as published. The median is the lower one of
    an even count. A constant p or y has n = 0. The mean is over all samples and pixels.

    Args:
        rendered_depth: [B, V, H, W], distance, at least 0 (accumulated, not divided by alpha).
        target: [B, V, H, W], inverse depth up to scale and shift, larger is nearer.
        mask: [B, V, H, W], bool or 0/1, where depth counts (stage 2: alpha > 0.1); None is everywhere.
        ignore_large: squared difference whose weight is halved; stage 2 is published with 0.3, 0 is off.

    Raises:
        InputError: shapes that do not belong together, or a negative `ignore_large`.
    """
    if not ignore_large >= 0:
        raise InputError(f"ignore_large is {ignore_large}.", "Give 0 or more.")
    p, y, _ = _inverse_depths(rendered_depth, target, mask)
    difference = (_normalised(p) - _normalised(y)).abs()
    if ignore_large:
        fall = (difference.detach().square() - ignore_large) / (_SOFTNESS * ignore_large)
        difference = difference * torch.sigmoid(-fall).clamp(min=_LEAST_WEIGHT)
    return difference.mean()


def ssi_mse(rendered_depth: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale- and shift-invariant depth loss ("ssimse"): the prediction is fitted to the target first.

        p = 1 / (depth + 1e-8);  (a, b) = argmin sum(m (a p + b - y)^2)     one fit per sample, all its views
        loss = mean over samples of sum(m (a p + b - y)^2) / sum(m); 0 for a sample with an empty mask

    The fit is part of the gradient. A constant p is fitted by its shift alone (a = 0).

    Args:
        rendered_depth, target, mask: as of `ssi_depth`.

    Raises:
        InputError: shapes that do not belong together.
    """
    p, y, weight = _inverse_depths(rendered_depth, target, mask)
    total = weight.sum(1, keepdim=True)
    total = torch.where(total > 0, total, 1.0)

    def centred(x: Tensor) -> Tensor:
        return (x - x.sum(1, keepdim=True) / total) * weight

    power = p.square().sum(1, keepdim=True)
    p, y = centred(p), centred(y)
    variance = p.square().sum(1, keepdim=True)
    # Rounding leaves a constant a variance of about 1e-14 of its power; the second `where` keeps 0/0 out of
    # the gradient as well.
    flat = variance <= _FLAT * power
    scale = torch.where(flat, 0.0, (p * y).sum(1, keepdim=True) / torch.where(flat, 1.0, variance))
    return ((scale * p - y).square().sum(1, keepdim=True) / total).mean()


def _inverse_depths(depth: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction and target times the mask, and the mask: each float32 [B, V H W]."""
    _check_shape("target", target, depth.shape)
    if mask is not None:
        _check_shape("mask", mask, depth.shape)
    weight = torch.ones_like(depth, dtype=torch.float32) if mask is None else mask.float()
    inverse = 1.0 / (depth.float() + EPSILON)
    return (inverse * weight).flatten(1), (target.float() * weight).flatten(1), weight.flatten(1)


def _normalised(x: Tensor) -> Tensor:
    """[B, M] shifted by its median and divided by its mean absolute deviation."""
    shifted = x - x.median(1, keepdim=True).values
    return shifted / (shifted.abs().mean(1, keepdim=True) + EPSILON)
