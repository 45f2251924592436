"""The published front ends as stages: DINOv2 for `condition`, Depth Anything V2 for `depth`.

Both interpolate a position embedding by antialiased or offset bicubics, which no engine has an operator
for; at a fixed size the result is a constant and is computed here. Their attention has no mask, which
`transformers` does not know while it is traced: its own attention would bring a mask of ones and a search
for rows of NaN into the graph.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training.condition import DinoCondition
from ..training.depth import DepthAnything

_ATTENTION = "streamsplat_plain"


class DinoStage(nn.Module):
    """rgb [1, 3, H, W] -> condition [1, M, C]: patch tokens of DINOv2 with registers, M = rows x columns."""

    def __init__(self, condition: DinoCondition) -> None:
        """Takes `condition` over: its position embedding is fixed to its size."""
        super().__init__()
        self.model = condition
        _attend_plainly(condition.model)
        _fix_positions(condition.model.embeddings, *condition.size)

    def forward(self, rgb: Tensor) -> Tensor:
        tokens: Tensor = self.model(rgb)
        return tokens.float()


class DepthStage(nn.Module):
    """rgb [1, 3, h, w] -> depth [1, 1, H, W]: relative inverse depth of Depth Anything V2.

    The runtime resizes its source image straight to h x w, the size that the network sees.
    """

    def __init__(self, depth: DepthAnything, height: int, width: int) -> None:
        """Takes `depth` over: its position embedding is fixed to its size for a `height` x `width` image."""
        super().__init__()
        self.model = depth.model
        self.output_size = (height, width)
        self.input_size = depth.network_size(height, width)
        # The last layer, one number per pixel: depths of a frame spread over its whole range of values.
        self.full_precision = (depth.model.head.conv3,)
        _attend_plainly(depth.model)
        _fix_positions(depth.model.backbone.embeddings, *self.input_size)

    def forward(self, rgb: Tensor) -> Tensor:
        depth = self.model(pixel_values=rgb).predicted_depth[:, None].float()
        return F.interpolate(depth, self.output_size, mode="bilinear", align_corners=True)


def _attend_plainly(model: Any) -> None:
    """Let a model of `transformers` attend by torch's function without a mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _plain_attention)
    model.set_attn_implementation(_ATTENTION)


def _plain_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float, **__: Any
) -> tuple[Tensor, None]:
    """query, key, value [B, heads, N, d] -> [B, N, heads, d], as `transformers` wants attention."""
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None


def _fix_positions(embeddings: Any, height: int, width: int) -> None:
    """Replace the interpolation of the position embedding by its result for an image of this size."""
    patch_rows, patch_cols = embeddings.patch_embeddings.patch_size
    tokens = 1 + (height // patch_rows) * (width // patch_cols)
    blank = torch.zeros(1, tokens, embeddings.position_embeddings.shape[-1])
    with torch.no_grad():
        table = embeddings.interpolate_pos_encoding(blank, height, width).clone()
    embeddings.interpolate_pos_encoding = lambda *_: table
