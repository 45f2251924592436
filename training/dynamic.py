"""Dynamic decoder and heads: two frames' tokens -> bidirectional motion and fade of every Gaussian."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .modules import MLP, Attention, PositionalEncoding, RMSNorm
from .prior import sample_truncated_normal


class DecoderBlock(nn.Module):
    """Joint self-attention over both frames, cross-attention per frame to its condition, MLP."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, head_dim)
        self.self_attn_ln = RMSNorm(dim)
        self.cross_attn = Attention(dim, head_dim)
        self.cross_attn_ln = RMSNorm(dim)
        self.mlp = MLP(dim)
        self.mlp_ln = RMSNorm(dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, 2N, D]; condition [2B, M, D], rows (b, frame) -> [B, 2N, D]."""
        x = x + self.self_attn(self.self_attn_ln(x)).float()
        batch, tokens, dim = x.shape
        per_frame = self.cross_attn_ln(x).reshape(2 * batch, tokens // 2, dim)
        x = x + self.cross_attn(per_frame, condition).float().reshape(batch, tokens, dim)
        return x + self.mlp(self.mlp_ln(x)).float()


class _DecoderTransformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            DecoderBlock(config.dim, config.head_dim) for _ in range(config.decoder_depth)
        )


class _TransformerDecoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, n = config.dim, config.tokens
        self.tokens = n
        condition_dim = config.condition_dim or dim
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(1, 2 * n, dim))
        self.cls_embedding = nn.Parameter(0.02 * torch.randn(1, 2, dim))
        self.layernorm1 = RMSNorm(dim)
        self.transformer = _DecoderTransformer(config)
        self.layernorm2 = RMSNorm(dim)
        self.positional_encoding = PositionalEncoding(config.condition_len or n, dim)
        self.condition_proj = nn.Linear(condition_dim, dim, bias=False)
        self.condition_ln = RMSNorm(dim)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        batch, n = tokens.shape[0], self.tokens
        x = tokens.reshape(batch, 2 * n, -1) + self.positional_embedding
        x = x + self.cls_embedding.repeat_interleave(n, dim=1)
        # Swapped as published: the tokens of frame 0 attend to the condition of frame 1, and vice versa.
        swapped = condition.flip(1).flatten(0, 1)
        swapped = self.condition_ln(self.positional_encoding(self.condition_proj(swapped).float()))
        x = self.layernorm1(x)
        for block in self.transformer.resblocks:
            x = block(x, swapped)
        return self.layernorm2(x).reshape(batch, 2, n, -1)


class DynamicDecoder(nn.Module):
    """tokens [B, 2, N, D], condition [B, 2, M, C] (frame order) -> tokens [B, 2, N, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transformer_decoder = _TransformerDecoder(config)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        return self.transformer_decoder(tokens, condition)


class _HeadMLP(nn.Module):
    """Linear, SiLU, Linear, SiLU, Linear under the published Sequential indices 1, 4 and 7."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                [
                    ("1", nn.Linear(inputs, hidden)),
                    ("2", nn.SiLU()),
                    ("4", nn.Linear(hidden, hidden)),
                    ("5", nn.SiLU()),
                    ("7", nn.Linear(hidden, outputs)),
                ]
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DynamicHeads(nn.Module):
    """Features [..., 2F] -> motion [..., 3] over the pair, fade [..., 2]: gamma0 >= 0, gamma1 in [0, 1].

    motion = dynamic_scalar * 0.999 tanh(head(features) + base / dynamic_scalar), where `base` is the motion
    that matching has found (none in the published model). Matching sees the image plane only: there, motion
    along y is one learned value for all Gaussians, which keeps their order. With `sampled`, in training the
    factor of dynamic_scalar is drawn from a truncated normal about it, as positions at rest are (REFERENCE.md
    section 6).
    """

    dynamic_scalar: Tensor

    def __init__(self, config: ModelConfig, sampled: bool = False) -> None:
        super().__init__()
        f = config.feature_dim
        self.sampled = sampled
        self.shared_y = nn.Parameter(torch.zeros(())) if config.decoder == "matching" else None
        self.register_buffer("dynamic_scalar", torch.tensor(config.dynamic_scalar))
        self.gs_layer = nn.ModuleDict(
            {
                "xyz_dynamic": _HeadMLP(2 * f, f, 3),
                # Only read where motion is sampled in training; part of the published checkpoint.
                "xyz_dynamic_scale": nn.Linear(2 * f, 3, bias=False),
                "opacity_dynamic": _HeadMLP(2 * f, f, 2),
            }
        )

    def forward(self, features: Tensor, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = features.float()
        raw = self.gs_layer["xyz_dynamic"](features)
        if base is not None:
            raw = raw + base / self.dynamic_scalar
        if self.shared_y is not None:
            raw = torch.stack([raw[..., 0], self.shared_y.expand_as(raw[..., 1]), raw[..., 2]], -1)
        unit = 0.999 * torch.tanh(raw)
        if self.sampled and self.training:
            unit = sample_truncated_normal(unit, self.gs_layer["xyz_dynamic_scale"](features), 0.999)
        fade = self.gs_layer["opacity_dynamic"](features)
        return unit * self.dynamic_scalar, torch.cat(
            [F.relu(fade[..., :1]), torch.sigmoid(fade[..., 1:])], -1
        )
