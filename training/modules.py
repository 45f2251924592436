"""Building blocks of the published architecture (REFERENCE.md section 1), with its parameter names.

The residual stream and every RMSNorm stay in float32 whatever the precision of the matrix products, so that
the same modules serve training under autocast and the strongly typed export.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32, cast back to the input's type."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def sinusoidal_table(length: int, dim: int, div_term: Tensor | None = None) -> Tensor:
    """Fixed sinusoidal position table [length, dim], interleaved sine and cosine, in float32 throughout.

    The rounding of the frequencies matters for parity (REFERENCE.md section 1): `div_term` [dim / 2] takes
    stored ones.
    """
    if div_term is None:
        div_term = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    table = torch.empty(length, dim)
    table[:, 0::2] = torch.sin(position * div_term)
    table[:, 1::2] = torch.cos(position * div_term)
    return table


class PositionalEncoding(nn.Module):
    """Adds the sinusoidal table; a persistent buffer because the published checkpoint carries it."""

    pe: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoidal_table(length, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe


class Attention(nn.Module):
    """Multi-head attention with one packed q | k | v projection; a `condition` makes it cross-attention."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.heads = dim // head_dim
        self.head_dim = head_dim
        self.packed_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, N, D]; condition [B, M, D] or None -> [B, N, D]."""
        if condition is None:
            q, k, v = self.packed_proj(x).chunk(3, dim=-1)
        else:
            weight, bias, d = self.packed_proj.weight, self.packed_proj.bias, self.dim
            q = F.linear(x, weight[:d], bias[:d])
            k, v = F.linear(condition, weight[d:], bias[d:]).chunk(2, dim=-1)
        out = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))
        return self.out_proj(out.transpose(-3, -2).flatten(-2))


class MLP(nn.Module):
    """Linear D -> 4D, SiLU, Linear 4D -> D, both without bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(dim, 4 * dim, bias=False)
        self.c_proj = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.silu(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm transformer block, [B, N, D] to the same.

    `window` restricts attention to runs of that many tokens of the row-major sequence; `roll` shifts the
    normalised sequence cyclically by half a window before attending and back afterwards, without a mask.
    """

    def __init__(self, dim: int, head_dim: int, window: int | None = None, roll: bool = False) -> None:
        super().__init__()
        self.attn = Attention(dim, head_dim)
        self.layernorm1 = RMSNorm(dim)
        self.mlp = MLP(dim)
        self.layernorm2 = RMSNorm(dim)
        self.window = window
        self.shift = window // 2 if window is not None and roll else 0

    def _attend(self, x: Tensor) -> Tensor:
        if self.window is None:
            return self.attn(x)
        batch, tokens, dim = x.shape
        if self.shift:
            x = torch.roll(x, self.shift, dims=1)
        x = self.attn(x.reshape(-1, self.window, dim)).reshape(batch, tokens, dim)
        return torch.roll(x, -self.shift, dims=1) if self.shift else x

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.layernorm1(x)).float()
        return x + self.mlp(self.layernorm2(x)).float()


class Transformer(nn.Module):
    """A stack of blocks under the published name `resblocks`."""

    def __init__(self, dim: int, head_dim: int, depth: int, window: int | None = None) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(dim, head_dim, window, roll=i % 2 == 1) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class PixelShuffle(nn.Module):
    """Linear D -> 2D, then x2 pixel shuffle of the token grid: [B, h*w, D] -> [B, 4*h*w, D/2], row-major."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.residual_fc = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = self.grid
        x = self.residual_fc(x).float()
        channels = x.shape[-1] // 4
        # Channel c*4 + i*2 + j of token (r, q) goes to channel c of token (2r + i, 2q + j).
        x = x.reshape(-1, rows, cols, channels, 2, 2).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(-1, 4 * rows * cols, channels)


class Upsampler(nn.Module):
    """Tokens [B, N, D] -> features [B, N * 4**S, D / 2**S]: S stages of pixel shuffle and windowed blocks."""

    def __init__(
        self,
        dim: int,
        head_dim: int,
        grid: tuple[int, int],
        windows: tuple[int, ...],
        blocks: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.stages = len(windows)
        rows, cols = grid
        for i, (window, depth) in enumerate(zip(windows, blocks, strict=True)):
            self.add_module(f"upsampler_{i}", PixelShuffle(dim, (rows, cols)))
            dim, rows, cols = dim // 2, rows * 2, cols * 2
            self.add_module(f"attention_{i}", Transformer(dim, min(head_dim, dim), depth, window))
        self.layernorm2 = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.stages):
            x = self.get_submodule(f"upsampler_{i}")(x)
            x = self.get_submodule(f"attention_{i}")(x)
        return self.layernorm2(x)
