"""Dense float64 torch renderer: every Gaussian at every pixel, by autograd. The truth in tests."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 16
ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = 0.99
T_MIN = 1e-4


def tile_mask(
    u: Tensor, v: Tensor, var_x: Tensor, var_y: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """[M, H, W] pixels inside each Gaussian's tile rectangle, and [M] whether an edge is ambiguous."""
    mid = 0.5 * (var_x + var_y)
    disc = (mid * mid - var_x * var_y).clamp(min=0.1)
    exact = 3.0 * (mid + disc.sqrt()).sqrt()
    radius = exact.ceil()
    fragile = (exact - exact.round()).abs() < 1e-4
    masks = []
    for centre, size in ((u, width), (v, height)):
        tiles = (size + TILE - 1) // TILE
        low = (centre - radius) / TILE
        high = (centre + radius + TILE - 1) / TILE
        for edge in (low, high):
            fragile = fragile | ((edge - edge.round()).abs() < 1e-5)
        pixel_tile = torch.arange(size) // TILE
        first = low.trunc().clamp(0, tiles)[:, None]
        last = high.trunc().clamp(0, tiles)[:, None]
        masks.append((pixel_tile >= first) & (pixel_tile < last))
    return masks[1][:, :, None] & masks[0][:, None, :], fragile


def render(
    xz: Tensor,
    depth: Tensor,
    scale: Tensor,
    opacity: Tensor,
    rgb: Tensor,
    background: Tensor,
    height: int,
    width: int,
    margin: float = 2e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Renders one image from [N, ...] float64 inputs.

    Returns rgb [H, W, 3], accumulated depth [H, W], alpha [H, W] and a bool mask [H, W] of fragile pixels:
    a decision (1/255, 0.99, 1e-4, tile rectangle) lies within the relative ``margin`` and float32 may decide
    otherwise.
    """
    rows = torch.cat([xz, depth[:, None], scale, opacity[:, None], rgb], 1).detach()
    keep = (torch.isfinite(rows).all(1) & (depth.detach() > 0)).nonzero()[:, 0]
    order = keep[torch.sort(depth.detach()[keep], stable=True).indices]
    xz, depth, scale, opacity, rgb = (t[order] for t in (xz, depth, scale, opacity, rgb))

    homogeneous = 1.0 - 2.0**-23  # what 1 / (1 + 1e-7) is in float32, as in the published projection
    u = ((xz[:, 0] * homogeneous + 1.0) * width - 1.0) * 0.5
    v = ((-xz[:, 1] * homogeneous + 1.0) * height - 1.0) * 0.5
    var_x = (0.5 * width * scale[:, 0]) ** 2 + 0.3
    var_y = (0.5 * height * scale[:, 1]) ** 2 + 0.3
    covered, edge = tile_mask(u.detach(), v.detach(), var_x.detach(), var_y.detach(), height, width)
    dx = u[:, None] - torch.arange(width, dtype=u.dtype)
    dy = v[:, None] - torch.arange(height, dtype=u.dtype)
    power = -0.5 * (dx**2 / var_x[:, None])[:, None, :] - 0.5 * (dy**2 / var_y[:, None])[:, :, None]
    raw = opacity[:, None, None] * power.exp()
    seen = covered & (raw.detach() >= ALPHA_MIN)
    fragile = (covered & ((raw.detach() / ALPHA_MIN - 1).abs() < margin)).any(0)
    fragile |= (seen & ((raw.detach() / ALPHA_MAX - 1).abs() < margin)).any(0)
    fragile |= (edge[:, None, None] & (raw.detach() >= ALPHA_MIN)).any(0)
    alpha = torch.where(raw < ALPHA_MAX, raw, torch.full_like(raw, ALPHA_MAX))

    t = torch.ones(height, width, dtype=u.dtype)
    alive = torch.ones(height, width, dtype=torch.bool)
    colour = torch.zeros(height, width, 3, dtype=u.dtype)
    z = torch.zeros(height, width, dtype=u.dtype)
    for i in range(len(order)):
        after = t * (1.0 - alpha[i])
        fragile |= alive & seen[i] & ((after.detach() / T_MIN - 1).abs() < margin)
        alive = alive & ~(seen[i] & (after.detach() < T_MIN))
        blend = alive & seen[i]
        weight = torch.where(blend, t * alpha[i], torch.zeros_like(t))
        colour = colour + weight[..., None] * rgb[i]
        z = z + weight * depth[i]
        t = torch.where(blend, after, t)
    return colour + t[..., None] * background, z, 1.0 - t, fragile
