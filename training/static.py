"""Static encoder, heads and probabilistic position sampling: one frame -> Gaussians at rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .modules import PositionalEncoding, RMSNorm, Transformer, Upsampler
from .prior import sample_truncated_normal


class _TransformerEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, config.dim, config.patch, stride=config.patch, bias=False)
        self.positional_encoding = PositionalEncoding(config.tokens, config.dim)
        self.layernorm1 = RMSNorm(config.dim)
        self.transformer = Transformer(config.dim, config.head_dim, config.encoder_depth)
        self.layernorm2 = RMSNorm(config.dim)

    def forward(self, rgbd: Tensor) -> Tensor:
        x = self.conv(rgbd).float().flatten(2).transpose(1, 2)
        x = self.layernorm1(self.positional_encoding(x))
        return self.layernorm2(self.transformer(x))


class StaticEncoder(nn.Module):
    """RGB and inverse depth [B, 4, H, W] in [0, 1] -> tokens [B, N, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transformer_encoder = _TransformerEncoder(config)

    def forward(self, rgbd: Tensor) -> Tensor:
        return self.transformer_encoder(rgbd)


class StaticHeads(nn.Module):
    """Features [B, G, F] -> Gaussians [B, G, 9] = x, y, z, r, g, b, scale_x, scale_z, opacity.

    The activations are those of REFERENCE.md section 1. With `probabilistic` (paper: probabilistic position
    sampling) the offset inside the cell is drawn from a truncated normal during training, whose mean is
    0.999 tanh(.) and whose log-scale is a head of its own; in eval the offset is tanh(.) as without.
    """

    x_map: Tensor
    z_map: Tensor

    def __init__(self, config: ModelConfig, probabilistic: bool = False) -> None:
        super().__init__()
        rows, cols = config.grid
        xs = (torch.arange(cols, dtype=torch.float32) + 0.5) * 2 / cols - 1
        zs = 1 - (torch.arange(rows, dtype=torch.float32) + 0.5) * 2 / rows
        self.register_buffer("z_map", zs.repeat_interleave(cols))
        self.register_buffer("x_map", xs.repeat(rows))
        self.cell = (1.0 / cols, 0.5, 1.0 / rows)
        f = config.feature_dim
        self.gs_layer = nn.ModuleDict(
            {
                "rgb": nn.Linear(f, 3),
                "opacity": nn.Linear(f, 1),
                "scale": nn.Linear(f, 2),
                "xyz_static": nn.Linear(f, 3),
            }
        )
        self.probabilistic = probabilistic
        if probabilistic:
            self.mix_layer = nn.ModuleDict({"xyz_static_scale": nn.Linear(f, 3)})

    def _offset(self, features: Tensor) -> Tensor:
        raw = self.gs_layer["xyz_static"](features)
        if not (self.probabilistic and self.training):
            return torch.tanh(raw)
        log_scale = self.mix_layer["xyz_static_scale"](features)
        return sample_truncated_normal(0.999 * torch.tanh(raw), log_scale, 0.999)

    def forward(self, features: Tensor) -> Tensor:
        features = features.float()
        offset = self._offset(features)
        base = torch.stack([self.x_map, torch.full_like(self.x_map, 0.5), self.z_map], dim=-1)
        xyz = base + offset * offset.new_tensor(self.cell)
        rgb = torch.sigmoid(self.gs_layer["rgb"](features))
        scale = 0.1 * F.softplus(self.gs_layer["scale"](features))
        opacity = 0.05 + 0.95 * torch.sigmoid(self.gs_layer["opacity"](features))
        return torch.cat([xyz, rgb, scale, opacity], dim=-1)


class StaticPredictor(nn.Module):
    """Encoder, upsampler and heads of one frame (the published `gs_predictor`); what stage 1 trains."""

    def __init__(self, config: ModelConfig, probabilistic: bool = False) -> None:
        super().__init__()
        self.encoder = StaticEncoder(config)
        self.gaussian_upsampler = Upsampler(
            config.dim, config.head_dim, config.token_grid, config.upsample_windows, config.upsample_blocks
        )
        self.predictor = StaticHeads(config, probabilistic)

    def forward(self, rgbd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rgbd [B, 4, H, W] -> tokens [B, N, D], features [B, G, F], gaussians [B, G, 9]."""
        tokens = self.encoder(rgbd)
        features = self.gaussian_upsampler(tokens)
        with torch.autocast(features.device.type, enabled=False):
            return tokens, features, self.predictor(features)
