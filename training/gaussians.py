"""Gaussians at a time, and their rendering, for training (REFERENCE.md section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from .rasterizer import rasterize


def inverse_depth_to_depth(y: Tensor, mapping: str) -> Tensor:
    """Normalised inverse depth in [0, 1] to depth, same shape; values outside map behind the camera.

    "published": 1 / (0.2 + 9.8 y + 1e-6); "paper": g(z) = 2 / (1 + z).

    Raises:
        ValueError: another mapping.
    """
    if mapping not in ("published", "paper"):
        raise ValueError(f"unknown depth mapping {mapping!r}")
    inside = (y >= 0) & (y <= 1)
    safe = torch.where(inside, y, torch.zeros_like(y))
    depth = 1.0 / (0.2 + 9.8 * safe + 1e-6) if mapping == "published" else 2.0 / (1.0 + safe)
    return torch.where(inside, depth, y - 10.0)


def fade_factor(fade: Tensor, dt: Tensor) -> Tensor:
    """sigmoid(-g0 (|dt| - g1)) / sigmoid(g0 g1) for fade [..., 2] and dt broadcastable to [...]."""
    g0, g1 = fade[..., 0], fade[..., 1]
    return torch.sigmoid(-g0 * (dt.abs() - g1)) / torch.sigmoid(g0 * g1)


def render_static(
    gaussians: Tensor, background: Tensor, size: tuple[int, int], mapping: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians at rest [B, G, 9] -> rgb [B, H, W, 3], accumulated depth [B, H, W], alpha [B, H, W]."""
    return rasterize(
        gaussians[..., 0:3:2],
        inverse_depth_to_depth(gaussians[..., 1], mapping),
        gaussians[..., 6:8],
        gaussians[..., 8],
        gaussians[..., 3:6],
        background,
        *size,
    )


def render_pair(
    gaussians: Tensor,
    motion: Tensor,
    fade: Tensor,
    times: Tensor,
    background: Tensor,
    size: tuple[int, int],
    mapping: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render pairs at several times.

    Args:
        gaussians: [B, 2, G, 9], index 0 the earlier frame; motion [B, 2, G, 3]; fade [B, 2, G, 2].
        times: [B, T] in [0, 1].
        background: [B, 3].

    Returns:
        rgb [B, T, H, W, 3], accumulated depth [B, T, H, W], alpha [B, T, H, W].
    """
    batch, count = times.shape
    anchor = times.new_tensor([0.0, 1.0])
    dt = (times[:, :, None] - anchor)[..., None]  # [B, T, 2, 1]
    xyz = gaussians[:, None, ..., 0:3] + motion[:, None] * dt[..., None]
    opacity = gaussians[:, None, ..., 8] * fade_factor(fade[:, None], dt)
    constant = gaussians[:, None].expand(-1, count, -1, -1, -1)

    def flat(x: Tensor) -> Tensor:
        return x.reshape(batch * count, -1, *x.shape[4:])

    rgb, depth, alpha = rasterize(
        flat(xyz[..., 0::2]),
        flat(inverse_depth_to_depth(xyz[..., 1], mapping)),
        flat(constant[..., 6:8]),
        flat(opacity),
        flat(constant[..., 3:6]),
        background[:, None].expand(-1, count, -1).reshape(batch * count, 3),
        *size,
    )
    return (
        rgb.unflatten(0, (batch, count)),
        depth.unflatten(0, (batch, count)),
        alpha.unflatten(0, (batch, count)),
    )
