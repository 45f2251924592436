"""The stages of the design as modules with named inputs and outputs: what each engine computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..training.config import ModelConfig
from ..training.conv_depth import normalised
from ..training.model import StreamSplat


class ConvDepthStage(nn.Module):
    """rgb [1, 3, H, W] -> depth [1, 1, H, W], relative inverse depth, of a model with its own network."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model.depth_encoder

    def forward(self, rgb: Tensor) -> Tensor:
        depth: Tensor = self.model(rgb)
        return depth.float()


class EncodeStage(nn.Module):
    """rgbd [1, 4, H, W] -> tokens [1, N, D], features [1, G, F], gaussians [1, G, 9]."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model.gs_predictor

    def forward(self, rgbd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model(rgbd)


class ConditionStage(nn.Module):
    """rgb [1, 3, H, W] -> condition tokens [1, M, C]."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model.condition_encoder

    def forward(self, rgb: Tensor) -> Tensor:
        return self.model(rgb)


class DeformStage(nn.Module):
    """tokens, features and condition (where the model has one) of both key frames -> motion [2, G, 3], fade
    [2, G, 2]; 0 is the earlier frame."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens_0: Tensor,
        features_0: Tensor,
        tokens_1: Tensor,
        features_1: Tensor,
        condition_0: Tensor | None = None,
        condition_1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        condition = None
        if condition_0 is not None and condition_1 is not None:
            condition = torch.stack([condition_0, condition_1], dim=1)
        motion, fade = self.model.deform(
            torch.stack([tokens_0, tokens_1], dim=1), torch.stack([features_0, features_1], dim=1), condition
        )
        return motion[0], fade[0]


@dataclass(frozen=True)
class StageGraph:
    """One stage ready for export: its module, example inputs by name, and output names."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def stage_graphs(model: StreamSplat) -> list[StageGraph]:
    """The stages of `model` in the order the runtime runs them, with example inputs from a fixed seed.

    The examples are smooth random pictures and what `encode` makes of them, so that tracing and verification
    see values of the right magnitude.
    """
    config: ModelConfig = model.config
    model.eval()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, config.height // 16, config.width // 16, generator=generator)
    rgb = nn.functional.interpolate(
        coarse, (config.height, config.width), mode="bilinear", align_corners=False
    )
    stages: list[StageGraph] = []
    planes = torch.zeros_like(rgb[:, :1])
    if config.depth_input == "conv":
        stages.append(StageGraph("depth", ConvDepthStage(model), {"rgb": rgb[:1]}, ("depth",)))
        with torch.no_grad():
            planes = normalised(model.depth(rgb))
    rgbd = torch.cat([rgb, planes], dim=1)
    with torch.no_grad():
        (tokens_0, features_0, _), (tokens_1, features_1, _) = (
            model.encode(rgbd[i : i + 1]) for i in range(2)
        )
    pair = {"tokens_0": tokens_0, "features_0": features_0, "tokens_1": tokens_1, "features_1": features_1}
    if config.condition == "conv":
        condition = ConditionStage(model)
        stages.append(StageGraph("condition", condition, {"rgb": rgb[:1]}, ("condition",)))
        with torch.no_grad():
            pair |= {f"condition_{i}": condition(rgb[i : i + 1]).contiguous() for i in range(2)}
    outputs = ("tokens", "features", "gaussians")
    return [
        *stages,
        StageGraph("encode", EncodeStage(model), {"rgbd": rgbd[:1]}, outputs),
        StageGraph("deform", DeformStage(model), pair, ("motion", "fade")),
    ]
