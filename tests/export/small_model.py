"""The smallest models that have every part: one like `tiny`, one like `base` without other networks."""

from __future__ import annotations

from pathlib import Path

import torch

from streamsplat_edge.training.checkpoint import save_weights
from streamsplat_edge.training.config import ModelConfig, preset
from streamsplat_edge.training.model import StreamSplat

MATCHING = preset(
    "tiny", height=32, width=64, dim=32, head_dim=16, encoder_depth=1, decoder_depth=1,
    upsample_windows=(32,), upsample_blocks=(2,),
)  # fmt: skip
ATTENDING = preset(
    "tiny", height=32, width=64, dim=32, head_dim=16, encoder_depth=1, decoder_depth=1,
    upsample_windows=(32,), upsample_blocks=(1,), condition="tokens", condition_dim=0,
    decoder="attention", colour="absolute", depth_levels=0, depth_input="zeros",
)  # fmt: skip


def small_model(config: ModelConfig) -> StreamSplat:
    """Random weights, always the same."""
    torch.manual_seed(0)
    return StreamSplat(config).eval().requires_grad_(False)


def write_checkpoint(config: ModelConfig, path: Path) -> Path:
    save_weights(small_model(config), path, {})
    return path
