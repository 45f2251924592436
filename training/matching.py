"""Deformation by matching: what the small presets use in place of the attention decoder.

The published decoder finds motion by cross-attention alone, which it learns from millions of pairs. A model
that is trained on a CPU has a few ten thousand, so this one is given what is known about motion: that it is
local and smooth, that it shows as correlation of features of both frames, and that it is best found from
coarse to fine. At 1/16, 1/8 and 1/4 of the resolution the features of the other frame are moved by the motion
found so far and compared with their surroundings (cost volume), from which a few convolutions improve the
motion. What comes out is what the published decoder gives, features of every Gaussian for the dynamic heads,
and the motion that was found. Plain operators only; no engine needs a plug-in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .modules import PixelShuffle, RMSNorm

STRIDE = 4  # pixels per condition token


class ConvCondition(nn.Module):
    """RGB [B, 3, H, W] in [0, 1] -> condition tokens [B, M, C], one per 4x4 pixels, row-major.

    Overlapping receptive fields make the tokens change little when the picture moves by less than a token,
    which patch embeddings do not offer.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.conv_2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_4 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, rgb: Tensor) -> Tensor:
        x = F.silu(self.conv_1(2 * rgb - 1))
        x = F.silu(self.conv_2(x))
        x = x + F.silu(self.conv_3(x))
        return self.conv_4(x).flatten(2).transpose(1, 2)


def cost_volume(a: Tensor, b: Tensor, radius: int) -> Tensor:
    """Correlation of each place of `a` with the places of `b` within `radius`.

    Args:
        a, b: [B, C, h, w].

    Returns:
        [B, (2 radius + 1)^2, h, w]: at (dy, dx) row-major, a[y, x] . b[y + dy, x + dx] / sqrt(C); places
        outside count as zero.
    """
    batch, channels, rows, cols = a.shape
    span = 2 * radius + 1
    # Whole rows are multiplied and the diagonal band is kept: more arithmetic than needed, but in matrix
    # products, which every engine is fastest at. Of rows of w + 2 radius, (x, x + dx) lies at
    # (w + 2 radius + 1) x + dx.
    padded = F.pad(b, (radius, radius, radius, radius)).permute(0, 2, 1, 3)
    windows = torch.stack([padded[:, i : i + rows] for i in range(span)], 1)
    products = torch.matmul(a.permute(0, 2, 3, 1)[:, None] * channels**-0.5, windows)
    band = F.pad(products.flatten(3), (0, cols)).reshape(batch, span, rows, cols, cols + span)[..., :span]
    return band.permute(0, 1, 4, 2, 3).reshape(batch, span * span, rows, cols)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """x [B, C, h, w] seen at p + flow[p], flow [B, 2, h, w] in places (x, y); bilinear, borders repeated."""
    rows, cols = x.shape[-2:]
    gx = torch.arange(cols, dtype=x.dtype, device=x.device)[None, None, :] + flow[:, 0]
    gy = torch.arange(rows, dtype=x.dtype, device=x.device)[None, :, None] + flow[:, 1]
    grid = torch.stack([(2 * gx + 1) / cols - 1, (2 * gy + 1) / rows - 1], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class MatchingLevel(nn.Module):
    """One resolution: features of both frames, motion and context of the coarser level -> better ones."""

    def __init__(self, dim: int, hidden: int, context: int, radius: int, first: bool) -> None:
        super().__init__()
        self.radius = radius
        self.first = first
        self.norm = RMSNorm(dim)
        inputs = (2 * radius + 1) ** 2 + dim + (0 if first else 2 + context)
        self.conv_1 = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_3 = nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2)
        self.conv_4 = nn.Conv2d(hidden, context, 3, padding=1)
        self.flow = nn.Conv2d(context, 2, 3, padding=1)

    def _normed(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(
        self, a: Tensor, b: Tensor, flow: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """a, b [B, C, h, w]; flow [B, 2, h/2, w/2], context of the coarser level -> flow, context of this."""
        extra: list[Tensor] = []
        if flow is not None and context is not None:
            flow, context = 2 * _double(flow), _double(context)
            b = warp(b, flow)
            extra = [flow, context]
        cost = F.silu(cost_volume(self._normed(a), self._normed(b), self.radius))
        x = F.silu(self.conv_1(torch.cat([cost, a, *extra], 1)))
        x = x + F.silu(self.conv_2(x))
        x = x + F.silu(self.conv_3(x))
        context = F.silu(self.conv_4(x))
        change = self.flow(context)
        return (change if flow is None else flow + change), context


class MatchingDecoder(nn.Module):
    """Tokens and condition of a pair -> flow and dynamic features of every Gaussian."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.condition_dim
        self.grid = (config.height // STRIDE, config.width // STRIDE)
        self.down_8 = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
        self.down_16 = nn.Conv2d(2 * dim, 2 * dim, 3, stride=2, padding=1)
        context = 32
        self.level_16 = MatchingLevel(2 * dim, 64, context, 3, first=True)
        self.level_8 = MatchingLevel(2 * dim, 64, context, 3, first=False)
        self.level_4 = MatchingLevel(dim, 32, context, 2, first=False)
        # From the condition's grid to the Gaussians' by the published pixel shuffle, without attention.
        self.shuffles = nn.ModuleList()
        width, (rows, cols) = config.dim // 2, self.grid
        self.token_shuffle = PixelShuffle(config.dim, config.token_grid)
        self.widen = nn.Linear(context + dim, width)
        while (rows, cols) != config.grid:
            self.shuffles.append(PixelShuffle(width, (rows, cols)))
            width, rows, cols = width // 2, rows * 2, cols * 2
        self.layernorm = RMSNorm(width)
        self.cls_embedding = nn.Parameter(torch.zeros(1, 2, 1, width))

    def flows(self, condition: Tensor) -> tuple[list[Tensor], Tensor]:
        """condition [B, 2, M, C] -> flow at 1/16, 1/8, 1/4 [B, 2, 2, h, w], context at 1/4 [B, 2, K, h, w].

        Flow is in places of its own grid (x right, y down): index 0 from the earlier frame to the later one,
        index 1 back.
        """
        batch = condition.shape[0]
        a = condition.flatten(0, 1).transpose(1, 2).unflatten(2, self.grid)
        a_8 = F.silu(self.down_8(F.silu(a)))
        a_16 = self.down_16(a_8)
        other = [self._swapped(x, batch) for x in (a_16, a_8, a)]
        flow_16, context = self.level_16(a_16, other[0])
        flow_8, context = self.level_8(a_8, other[1], flow_16, context)
        flow_4, context = self.level_4(a, other[2], flow_8, context)
        return [x.unflatten(0, (batch, 2)) for x in (flow_16, flow_8, flow_4)], context.unflatten(
            0, (batch, 2)
        )

    @staticmethod
    def _swapped(x: Tensor, batch: int) -> Tensor:
        return x.unflatten(0, (batch, 2)).flip(1).flatten(0, 1)

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Motion and features.

        Args:
            tokens: [B, 2, N, D] of the static encoder: what is where.
            condition: [B, 2, M, C].

        Returns:
            flow [B, 2, G, 2] in places of the condition's grid, dynamic features [B, 2, G, F].
        """
        pair = condition.shape[:2]
        flows, context = self.flows(condition)
        found = torch.cat([context.flatten(3).transpose(2, 3), condition], -1).flatten(0, 1)
        x = self.widen(found) + self.token_shuffle(tokens.flatten(0, 1))
        for shuffle in self.shuffles:
            x = shuffle(F.silu(x))
        x = self.layernorm(x).unflatten(0, pair) + self.cls_embedding
        flow = flows[-1].flatten(0, 1)
        if self.shuffles:
            scale = 2.0 ** len(self.shuffles)
            flow = F.interpolate(flow, scale_factor=scale, mode="bilinear", align_corners=False)
        return flow.unflatten(0, pair).flatten(3).transpose(2, 3), x


def flow_to_motion(flow: Tensor, config: ModelConfig) -> Tensor:
    """Flow [B, 2, G, 2] in condition tokens -> motion [B, 2, G, 3] in canonical units (x, y, z), y at rest.

    A Gaussian of the earlier frame goes where its flow points; one of the later frame comes from there, so
    its motion over the pair is minus its flow (REFERENCE.md section 2: position = static + motion * dt).
    """
    unit = flow.new_tensor([[2 * STRIDE / config.width, -2 * STRIDE / config.height]])
    direction = flow.new_tensor([1.0, -1.0])[:, None, None]
    x, z = (flow.float() * unit * direction).unbind(-1)
    return torch.stack([x, torch.zeros_like(x), z], -1)
