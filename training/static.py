"""Static encoder, heads and probabilistic position sampling: one frame -> Gaussians at rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .modules import PositionalEncoding, RMSNorm, Transformer, Upsampler
from .prior import sample_truncated_normal

COLOUR_FILTER = 7  # taps along x and y
NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


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

    The activations are those of REFERENCE.md section 1. With colour "residual",

        rgb = filter(frame) at the Gaussian's cell + tanh(.) / 4,

    so that detail need not pass through the tokens; the filter undoes the blur of the rasterizer, whose
    low-pass makes neighbours overlap. How they overlap depends on their order: with `depth_levels`,

        y = 1/2 + span (d - 1/2),   d the input's depth at the Gaussian's cell, rounded to 1 / levels

    so that nearly equal depths are equal and Gaussians of a level are drawn in the order of the grid in every
    frame. Where two levels meet, a neighbour may be drawn before the Gaussian instead of after it, or after
    instead of before, which changes what it contributes to the pixel. Colours are corrected for that to first
    order (`order_filter`, which starts as what the rasterizer does):

        colour += sum_k order_filter[k] [order with neighbour k reversed] (colour of k - colour)

    What is left of [0, 1] on either side is for motion: beyond it a Gaussian is behind the camera.

    With `probabilistic` (paper: probabilistic position sampling) the offset inside the cell is drawn from a
    truncated normal during training, whose mean is 0.999 tanh(.) and whose log-scale is a head of its own; in
    eval the offset is tanh(.) as without.
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
        self.depth_levels, self.depth_span = config.depth_levels, config.depth_span
        self.residual = config.colour == "residual"
        self.cell_pixels = (config.height // rows, config.width // cols)
        if self.residual:
            self.colour_filter = nn.Conv2d(1, 1, COLOUR_FILTER, bias=False)
            if self.depth_levels:
                self.order_filter = nn.Parameter(torch.zeros(len(NEIGHBOURS)))
        self.probabilistic = probabilistic
        if probabilistic:
            self.mix_layer = nn.ModuleDict({"xyz_static_scale": nn.Linear(f, 3)})

    def _offset(self, features: Tensor) -> Tensor:
        raw = self.gs_layer["xyz_static"](features)
        if not (self.probabilistic and self.training):
            return torch.tanh(raw)
        log_scale = self.mix_layer["xyz_static_scale"](features)
        return sample_truncated_normal(0.999 * torch.tanh(raw), log_scale, 0.999)

    def _colour(self, features: Tensor, rgb: Tensor, levels: Tensor | None) -> Tensor:
        raw = self.gs_layer["rgb"](features)
        if not self.residual:
            return torch.sigmoid(raw)
        reach = COLOUR_FILTER // 2
        cells = F.avg_pool2d(rgb.float(), self.cell_pixels)
        padded = F.pad(cells, (reach, reach, reach, reach), mode="replicate")
        colour = self.colour_filter(padded.flatten(0, 1)[:, None]).reshape(cells.shape)
        if levels is not None:
            colour = self._in_order(colour, levels)
        return colour.flatten(2).transpose(1, 2) + 0.25 * torch.tanh(raw)

    def _in_order(self, colour: Tensor, levels: Tensor) -> Tensor:
        """colour [B, 3, h, w] corrected where levels [B, 1, h, w] (whole numbers) reverse the order."""
        rows, cols = colour.shape[-2:]
        colours, depths = (F.pad(x, (1, 1, 1, 1), mode="replicate") for x in (colour, levels))
        change = torch.zeros_like(colour)
        for weight, (dy, dx) in zip(self.order_filter, NEIGHBOURS, strict=True):
            window = (..., slice(1 + dy, 1 + dy + rows), slice(1 + dx, 1 + dx + cols))
            # Earlier in the grid is drawn first, unless it is farther (a smaller level).
            nearer = depths[window] - levels
            reversed_ = (-nearer if (dy, dx) < (0, 0) else nearer).clamp(0, 1)
            change = change + weight * reversed_ * (colours[window] - colour)
        return colour + change

    def forward(self, features: Tensor, rgbd: Tensor) -> Tensor:
        """features [B, G, F] of the frame rgbd [B, 4, H, W]."""
        features = features.float()
        offset = self._offset(features)
        base = torch.stack([self.x_map, torch.full_like(self.x_map, 0.5), self.z_map], dim=-1)
        xyz = base + offset * offset.new_tensor(self.cell)
        levels = None
        if self.depth_levels:
            depth = F.avg_pool2d(rgbd[:, 3:].float(), self.cell_pixels)
            levels = torch.round(depth * self.depth_levels)
            y = 0.5 + self.depth_span * (levels.flatten(1) / self.depth_levels - 0.5)
            xyz = torch.stack([xyz[..., 0], y, xyz[..., 2]], -1)
        colour = self._colour(features, rgbd[:, :3], levels)
        scale = 0.1 * F.softplus(self.gs_layer["scale"](features))
        opacity = 0.05 + 0.95 * torch.sigmoid(self.gs_layer["opacity"](features))
        return torch.cat([xyz, colour, scale, opacity], dim=-1)


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
            return tokens, features, self.predictor(features, rgbd)
