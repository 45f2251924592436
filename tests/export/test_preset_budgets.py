"""The runtime's table of presets is that of training: sizes, shapes and numbers of parameters."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="base has stages of published networks")

from streamsplat_edge.export.export import runtime_config
from streamsplat_edge.export.published import DepthStage, DinoStage
from streamsplat_edge.export.small import ConvDepthStage
from streamsplat_edge.export.stages import ConditionStage, stage_graphs
from streamsplat_edge.runtime.cuda.presets import PRESETS
from streamsplat_edge.training import config
from streamsplat_edge.training.condition import DinoCondition, dino_config
from streamsplat_edge.training.depth import DepthAnything, depth_config
from streamsplat_edge.training.model import StreamSplat


def test_there_are_no_others() -> None:
    assert set(PRESETS) == set(config.PRESETS)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_described_as_it_is(name: str) -> None:
    made = config.preset(name)
    parts: list[torch.nn.Module] = []
    condition: torch.nn.Module
    depth: DepthStage | ConvDepthStage
    with torch.device("meta"):  # no weights, only their shapes
        model = StreamSplat(made)
        if name == "base":
            from transformers import DepthAnythingForDepthEstimation

            condition = DinoStage(DinoCondition(dino_config()))
            anything = DepthAnythingForDepthEstimation(depth_config(384))
            depth = DepthStage(DepthAnything(anything), made.height, made.width)
            parts = [condition, depth]
        else:
            condition = ConditionStage(model)
            depth = ConvDepthStage(model.depth_encoder, made.height, made.width)
        graphs = {graph.name: graph for graph in stage_graphs(model, condition, depth)}
    described = PRESETS[name]
    assert described.model == runtime_config(made)
    assert described.inputs == {s: tuple(graphs[s].inputs["rgb"].shape) for s in ("depth", "condition")}
    assert described.condition == tuple(graphs["deform"].inputs["condition_0"].shape)
    whole = [model, *parts]
    assert described.parameters == sum(p.numel() for part in whole for p in part.parameters())
