"""The stages of the design as modules with named inputs and outputs: what each engine computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..training.config import ModelConfig
from ..training.matching import STRIDE
from ..training.model import StreamSplat
from .published import DepthStage
from .small import ConvDepthStage


class EncodeStage(nn.Module):
    """rgbd [1, 4, H, W] -> tokens [1, N, D], features [1, G, F], gaussians [1, G, 9]."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model.gs_predictor

    def forward(self, rgbd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model(rgbd)


class ConditionStage(nn.Module):
    """rgb [1, 3, H, W] -> condition [1, M, C], of a model that brings its own condition encoder."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model.condition_encoder

    def forward(self, rgb: Tensor) -> Tensor:
        condition: Tensor = self.model(rgb)
        return condition.float()


class DeformStage(nn.Module):
    """tokens, features of both key frames -> motion [2, G, 3], fade [2, G, 2]; 0 is the earlier frame."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens_0: Tensor, features_0: Tensor, tokens_1: Tensor, features_1: Tensor
    ) -> tuple[Tensor, Tensor]:
        motion, fade = self.model.deform(
            torch.stack([tokens_0, tokens_1], dim=1), torch.stack([features_0, features_1], dim=1)
        )
        return motion.flatten(0, 1), fade.flatten(0, 1)


class ConditionedDeformStage(nn.Module):
    """tokens, features, condition of both key frames -> motion [2, G, 3], fade [2, G, 2]; 0 is earlier."""

    def __init__(self, model: StreamSplat) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens_0: Tensor,
        features_0: Tensor,
        condition_0: Tensor,
        tokens_1: Tensor,
        features_1: Tensor,
        condition_1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        motion, fade = self.model.deform(
            torch.stack([tokens_0, tokens_1], dim=1),
            torch.stack([features_0, features_1], dim=1),
            torch.stack([condition_0, condition_1], dim=1),
        )
        return motion.flatten(0, 1), fade.flatten(0, 1)


TENSORS = {
    "rgb": "Colours in [0, 1], channel order RGB.",
    "depth": "Relative inverse depth, larger is nearer; the runtime scales it to [0, 1].",
    "rgbd": "RGB in [0, 1], then inverse depth in [0, 1] (zeros where the model has no depth input).",
    "condition": "What the other key frame of a pair attends to.",
    "tokens": "One token per patch, row-major.",
    "features": "One row per Gaussian, for deform.",
    "gaussians": "x, y, z, r, g, b, scale x, scale z, opacity. y is normalised inverse depth.",
    "tokens_0": "tokens of the earlier key frame.",
    "tokens_1": "tokens of the later key frame.",
    "features_0": "features of the earlier key frame.",
    "features_1": "features of the later key frame.",
    "condition_0": "condition of the earlier key frame.",
    "condition_1": "condition of the later key frame.",
    "motion": "x, y, z over the whole pair; row 0 the earlier key frame's Gaussians, row 1 the later's.",
    "fade": "gamma0, gamma1 of the opacity over time; rows as in motion.",
}
"""What the files say about their inputs and outputs."""


@dataclass(frozen=True)
class StageGraph:
    """One stage ready for export: its module, example inputs by name, and output names."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def stage_graphs(
    model: StreamSplat, condition: nn.Module | None = None, depth: DepthStage | ConvDepthStage | None = None
) -> list[StageGraph]:
    """The stages of `model` in the order the runtime runs them, with example inputs of the right shapes.

    Tracing reads shapes only, and verification feeds what a stream records, so the examples are random
    numbers and no stage has to run for the next.

    Args:
        condition: rgb [1, 3, H, W] -> [1, M, C], for a model whose condition is a stage of its own.
        depth: for a model whose depth channel is filled by a stage.
    """
    config: ModelConfig = model.config
    model.eval()
    generator = torch.Generator().manual_seed(0)

    def example(*shape: int) -> Tensor:
        return torch.rand(1, *shape, generator=generator)

    size = (config.height, config.width)
    stages: list[StageGraph] = []
    if depth is not None:
        stages.append(StageGraph("depth", depth, {"rgb": example(3, *depth.input_size)}, ("depth",)))
    outputs = ("tokens", "features", "gaussians")
    stages.append(StageGraph("encode", EncodeStage(model), {"rgbd": example(4, *size)}, outputs))
    if condition is not None:
        stages.append(StageGraph("condition", condition, {"rgb": example(3, *size)}, ("condition",)))
    inputs: dict[str, Tensor] = {}
    for i in range(2):
        inputs[f"tokens_{i}"] = example(config.tokens, config.dim)
        inputs[f"features_{i}"] = example(config.gaussians, config.feature_dim)
        if condition is not None:
            inputs[f"condition_{i}"] = example(*condition_shape(config))
    kind = DeformStage if condition is None else ConditionedDeformStage
    stages.append(StageGraph("deform", kind(model), inputs, ("motion", "fade")))
    return stages


def condition_shape(config: ModelConfig) -> tuple[int, int]:
    """Number M and width C of condition tokens."""
    if config.condition == "conv":
        return config.height // STRIDE * (config.width // STRIDE), config.condition_dim
    return config.condition_len or config.tokens, config.condition_dim or config.dim
