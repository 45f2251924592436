"""Truncated-normal sampling of positions (paper: probabilistic position sampling; REFERENCE.md section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

_SQRT2 = 2.0**0.5


def _cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf(x / _SQRT2))


def sample_truncated_normal(
    mean: Tensor, log_scale: Tensor, bound: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw from N(mean, exp(log_scale)^2) truncated to [-bound, bound] by inverting the CDF; differentiable.

    Edge cases as published: u is clamped to [1e-3, 1 - 1e-3]; where the truncated mass is <= 1e-3 the lower
    bound is returned; where log_scale <= -5 the clamped mean is.

    Args:
        mean, log_scale: any equal shape.
        bound: half width of the support.
    """
    clamped = mean.clamp(-bound, bound)
    # Both limits lie inside the edge cases, which pick another value; they keep infinities out of gradients.
    sigma = torch.exp(log_scale.clamp(-5.0, 20.0))
    low, high = _cdf((-bound - mean) / sigma), _cdf((bound - mean) / sigma)
    mass = high - low
    u = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype).clamp(
        1e-3, 1 - 1e-3
    )
    p = (low + u * mass).clamp(1e-6, 1 - 1e-6)
    sample = mean + sigma * _SQRT2 * torch.erfinv(2.0 * p - 1.0)
    sample = sample.clamp(-bound, bound)
    sample = torch.where(mass <= 1e-3, torch.full_like(sample, -bound), sample)
    return torch.where(log_scale <= -5.0, clamped, sample)
