"""The pair model: static predictor, dynamic decoder and heads under the published parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .conv_depth import ConvDepth
from .dynamic import DynamicDecoder, DynamicHeads
from .matching import ConvCondition, MatchingDecoder, flow_to_motion
from .modules import Upsampler
from .static import StaticPredictor

_FILTERS = ("gs_predictor.predictor.colour_filter.", "gs_predictor.predictor.order_filter")


class StreamSplat(nn.Module):
    """Two frames -> Gaussians with motion and fade.

    `encode` depends on one frame only and `deform` on the per-frame results of a pair: they are the two
    engines of the runtime, and the split here is the split of the exported graphs.
    """

    def __init__(
        self, config: ModelConfig, probabilistic: bool = False, sampled_motion: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.gs_predictor = StaticPredictor(config, probabilistic)
        if config.depth_input == "conv":
            self.depth_encoder = ConvDepth()
        self.decoder: DynamicDecoder | MatchingDecoder
        if config.decoder == "matching":
            self.condition_encoder = ConvCondition(config.condition_dim)
            self.decoder = MatchingDecoder(config)
        else:
            self.decoder = DynamicDecoder(config)
            self.gaussian_upsampler = Upsampler(
                config.dim,
                config.head_dim,
                config.token_grid,
                config.upsample_windows,
                config.upsample_blocks,
            )
        self.gs_dynamic_predictor = DynamicHeads(config, sampled_motion)
        self.encoder_proj = nn.Linear(config.feature_dim, config.feature_dim, bias=False)

    def encode(self, rgbd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rgbd [B, 4, H, W] -> tokens [B, N, D], features [B, G, F], gaussians [B, G, 9]."""
        return self.gs_predictor(rgbd)

    def depth(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, H, W] -> inverse depth [B, 1, H, W], for models whose depth input is "conv"."""
        return self.depth_encoder(rgb)

    def condition(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, H, W] -> condition tokens [B, M, C], for models whose condition is "conv"."""
        return self.condition_encoder(rgb)

    def deform(
        self, tokens: Tensor, features: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Per-frame results of a pair -> motion and fade.

        Args:
            tokens: [B, 2, N, D], index 0 the earlier frame.
            features: [B, 2, G, F].
            condition: [B, 2, M, C] in frame order, or None for the encoder tokens (condition "tokens").

        Returns:
            motion [B, 2, G, 3] over the whole pair, fade [B, 2, G, 2].
        """
        condition = tokens if condition is None else condition
        base: Tensor | None = None
        if isinstance(self.decoder, MatchingDecoder):
            flow, upsampled = self.decoder(tokens, condition)
            base = flow_to_motion(flow, self.config)
        else:
            decoded = self.decoder(tokens, condition)
            upsampled = self.gaussian_upsampler(decoded.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        joined = torch.cat([self.encoder_proj(features).float(), upsampled.float()], dim=-1)
        with torch.autocast(joined.device.type, enabled=False):
            return self.gs_dynamic_predictor(joined, base)

    def parameters_of(self, stage: str) -> list[nn.Parameter]:
        """What a stage trains: "depth" the depth network, "static" the static predictor, "motion" what finds
        flow, "dynamic" all that is neither of the first two. "heads": those of the static predictor."""
        prefixes = {
            "heads": ("gs_predictor.predictor.gs_layer.", *_FILTERS),
            "depth": ("depth_encoder.",),
            "static": ("gs_predictor.",),
            "motion": ("condition_encoder.", "decoder.down_", "decoder.level_"),
        }
        named = self.named_parameters()
        if stage == "dynamic":
            frozen = (*prefixes["depth"], *prefixes["static"])
            return [p for name, p in named if not name.startswith(frozen)]
        return [p for name, p in named if name.startswith(prefixes[stage])]
