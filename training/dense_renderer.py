"""Dense torch renderer: every Gaussian at every pixel, plain tensor operations, differentiable by autograd.

Slow and obvious. In float64 it is the truth that the rasterizers are tested against; in float32 it is what
one would write without a rasterizer, and what the benchmark `raster_compare` times beside ours. Semantics of
REFERENCE.md section 3, canonical view, with the tile rectangles of the published model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 16
ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = 0.99
T_MIN = 1e-4
_CHUNK = 1 << 16  # pairs of a Gaussian and a pixel at a time: tensors that stay in a core's cache


class DenseImage(NamedTuple):
    """One image, [H, W] pixels, or [P] where pixels were chosen.

    Attributes:
        rgb: [..., 3]. depth: accumulated, not divided by alpha. alpha: sum of the weights.
        fragile: bool; a decision (1/255, 0.99, 1e-4, tile rectangle) lies within the relative margin, and
            float32 may decide otherwise. None where no margin was given.
        blended: int64; how many Gaussians were blended before the pixel was opaque.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    fragile: Tensor | None
    blended: Tensor


def tile_masks(
    u: Tensor, v: Tensor, var_x: Tensor, var_y: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns [N, W] and rows [N, H] of each Gaussian's tile rectangle, and [N] whether an edge of it is
    ambiguous."""
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
    return masks[0], masks[1], fragile


def render(
    xz: Tensor,
    depth: Tensor,
    scale: Tensor,
    opacity: Tensor,
    rgb: Tensor,
    background: Tensor,
    height: int,
    width: int,
    margin: float | None = 2e-4,
    *,
    pixels: Tensor | None = None,
) -> DenseImage:
    """Renders one image in the precision of its inputs.

    Args:
        xz, depth, scale, opacity, rgb, background: as for `training.rasterizer.rasterize`, without the batch
            dimension: [N, 2], [N], [N, 2], [N], [N, 3], [3]. Gaussians that are not finite or not in front
            of the camera add nothing.
        height, width: of the image.
        margin: relative, for `DenseImage.fragile`; None leaves it out.
        pixels: int64 [P], only these, row by row (row * width + column); None is all.
    """
    shape = (height, width) if pixels is None else tuple(pixels.shape)
    rows = torch.cat([xz, depth[:, None], scale, opacity[:, None], rgb], 1).detach()
    keep = (torch.isfinite(rows).all(1) & (depth.detach() > 0)).nonzero()[:, 0]
    order = keep[torch.sort(depth.detach()[keep], stable=True).indices]
    xz, depth, scale, opacity, rgb = (t[order] for t in (xz, depth, scale, opacity, rgb))

    homogeneous = 1.0 - 2.0**-23  # what 1 / (1 + 1e-7) is in float32, as in the published projection
    u = ((xz[:, 0] * homogeneous + 1.0) * width - 1.0) * 0.5
    v = ((-xz[:, 1] * homogeneous + 1.0) * height - 1.0) * 0.5
    var_x = (0.5 * width * scale[:, 0]) ** 2 + 0.3
    var_y = (0.5 * height * scale[:, 1]) ** 2 + 0.3
    columns, lines, edge = tile_masks(u.detach(), v.detach(), var_x.detach(), var_y.detach(), height, width)
    # The exponent separates: two factors per Gaussian, opacity with one of them; outside the rectangle 0.
    dx = u[:, None] - torch.arange(width, dtype=u.dtype)
    dy = v[:, None] - torch.arange(height, dtype=u.dtype)
    across = torch.where(columns, (-0.5 * dx**2 / var_x[:, None]).exp(), 0.0)
    down = torch.where(lines, opacity[:, None] * (-0.5 * dy**2 / var_y[:, None]).exp(), 0.0)

    count = height * width if pixels is None else int(pixels.numel())
    t = torch.ones(count, dtype=u.dtype)
    alive = torch.ones(count, dtype=torch.bool)
    fragile = torch.zeros(count, dtype=torch.bool)
    blended = torch.zeros(count, dtype=torch.int64)
    values = torch.cat([rgb, depth[:, None]], 1)
    total = torch.zeros(count, 4, dtype=u.dtype)
    step = max(1, _CHUNK // max(1, count))
    for first in range(0, len(order), step):
        part = slice(first, first + step)
        if pixels is None:
            raw = (down[part, :, None] * across[part, None, :]).flatten(1)
        else:
            raw = down[part][:, pixels // width] * across[part][:, pixels % width]
        seen = raw.detach() >= ALPHA_MIN
        alpha = torch.where(seen, raw.clamp(max=ALPHA_MAX), 0.0)
        after = t * torch.cumprod(1.0 - alpha, 0)
        before = torch.cat([t[None], after[:-1]])
        # Transmittance never grows: whoever comes after the one that would end a pixel fails the same test.
        blend = seen & alive & (after.detach() >= T_MIN)
        weight = torch.where(blend, before * alpha, 0.0)
        if margin is not None:
            fragile |= ((raw.detach() / ALPHA_MIN - 1).abs() < margin).any(0)
            fragile |= (seen & ((raw.detach() / ALPHA_MAX - 1).abs() < margin)).any(0)
            fragile |= (seen & edge[part, None]).any(0)
            near_end = (after.detach() / T_MIN - 1).abs() < margin
            fragile |= (seen & alive & (before.detach() >= T_MIN) & near_end).any(0)
        total = total + weight.T @ values[part]
        t = t * torch.where(blend, 1.0 - alpha, 1.0).prod(0)
        alive = alive & ~(seen & (after.detach() < T_MIN)).any(0)
        blended += blend.sum(0)
    colour = total[:, :3] + t[:, None] * background
    return DenseImage(
        colour.view(*shape, 3),
        total[:, 3].view(shape),
        (1.0 - t).view(shape),
        None if margin is None else fragile.view(shape),
        blended.view(shape),
    )
