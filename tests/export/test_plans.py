"""Every stage of the presets, at full size, built by TensorRT-RTX without a GPU (`make test-plans`, minutes).

Each stage is exported with each operator set, and each preset is built for each compute capability; base for
two of them per operator set, which keeps the whole within minutes on two cores.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from keyed_weights import apply_keyed_weights
from torch import nn

pytest.importorskip("tensorrt_rtx", reason="plans need TensorRT-RTX")
pytest.importorskip("transformers", reason="base has stages of published networks")

from streamsplat_edge.export.graphs import write_graph
from streamsplat_edge.export.plan_builder import BuildOptions, build_plan
from streamsplat_edge.export.precision import lowered
from streamsplat_edge.export.published import DepthStage, DinoStage
from streamsplat_edge.export.small import ConvDepthStage
from streamsplat_edge.export.stages import ConditionStage, StageGraph, stage_graphs
from streamsplat_edge.runtime.bundle import StageVariant
from streamsplat_edge.runtime.engines import trt_api
from streamsplat_edge.training.condition import DinoCondition, dino_config
from streamsplat_edge.training.config import ModelConfig, preset
from streamsplat_edge.training.depth import DepthAnything, depth_config
from streamsplat_edge.training.model import StreamSplat

pytestmark = pytest.mark.plans

# Fused attentions of each stage in fp16: all that there are.
ATTENTIONS = {
    "tiny": {"depth": 0, "encode": 6, "condition": 0, "deform": 0},
    "base": {"depth": 12, "encode": 14, "condition": 12, "deform": 24},
}
PEAK_GB = 8.0


def stages_of(name: str) -> Iterator[StageGraph]:
    """The stages with keyed weights; those of base bring DINOv2 and the small Depth Anything V2."""
    config = preset(name)
    model = StreamSplat(config).eval().requires_grad_(False)
    apply_keyed_weights(model)
    condition: nn.Module
    depth: DepthStage | ConvDepthStage
    if name == "base":
        condition, depth = _published(config)
    else:
        condition = ConditionStage(model)
        depth = ConvDepthStage(model.depth_encoder, config.height, config.width)
    stages = stage_graphs(model, condition, depth)
    del model, condition, depth
    while stages:  # each is freed when it has been built
        yield stages.pop(0)


def _published(config: ModelConfig) -> tuple[DinoStage, DepthStage]:
    from transformers import DepthAnythingForDepthEstimation

    dino = DinoCondition(dino_config())
    apply_keyed_weights(dino, "condition_encoder.")
    depth = DepthAnythingForDepthEstimation(depth_config(384))
    apply_keyed_weights(depth, "depth.")
    return DinoStage(dino), DepthStage(DepthAnything(depth), config.height, config.width)


MATRIX = [
    ("tiny", "fp16", 20, ("8.0", "8.6", "8.9", "12.0")),
    ("tiny", "fp16", 23, ("8.6", "12.0")),
    ("tiny", "fp32", 20, ("8.0", "8.9")),
    ("tiny", "fp32", 23, ("8.6", "12.0")),
    ("tiny", "bf16", 23, ("8.6",)),
    ("base", "fp16", 20, ("8.0", "12.0")),
    ("base", "fp16", 23, ("8.6", "8.9")),
]


@pytest.mark.parametrize(
    ("name", "precision", "opset", "capabilities"),
    MATRIX,
    ids=[f"{name}-{precision}-opset{opset}" for name, precision, opset, _ in MATRIX],
)
def test_every_stage_builds(
    tmp_path: Path, name: str, precision: str, opset: int, capabilities: tuple[str, ...]
) -> None:
    """All products are in the precision asked for but the heads', and half-precision attention is fused."""
    module = trt_api.load("tensorrt_rtx")
    attentions: dict[str, int] = {}
    for stage in stages_of(name):
        start = time.perf_counter()
        path = tmp_path / f"{stage.name}.onnx"
        graph = write_graph(replace(stage, module=lowered(stage.module, precision, opset)), path, opset)
        seconds = time.perf_counter() - start
        print(f"\n{name} {stage.name} {precision} opset {opset}: exported in {seconds:.1f} s")
        variant = StageVariant(stage.name, path, precision, (), graph.inputs, graph.outputs, "0" * 64)
        for capability in capabilities:
            start = time.perf_counter()
            options = BuildOptions("tensorrt_rtx", capabilities=(capability,))
            plan, found = build_plan(variant, module, options)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(
                f"  SM {capability}: {time.perf_counter() - start:.1f} s, peak {peak:.2f} GB, "
                f"{len(plan) / 1e6:.1f} MB, {found.attentions} fused attentions, products {found.products}"
            )
            assert peak < PEAK_GB
            assert attentions.setdefault(stage.name, found.attentions) == found.attentions
            assert max(found.products, key=found.products.__getitem__) == precision
        path.unlink()
    assert attentions.keys() == ATTENTIONS[name].keys()
    assert precision == "fp32" or attentions == ATTENTIONS[name]
