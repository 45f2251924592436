"""The networks that are measured: a checkpoint's, or a preset's with random weights, which cost as much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ...export.export import runtime_config
from ...export.graphs import write_graph
from ...export.load import LoadedModel, Source, load
from ...export.precision import lowered
from ...export.published import DepthStage, DinoStage
from ...export.small import ConvDepthStage
from ...export.stages import ConditionStage, StageGraph
from ...runtime.bundle import Bundle, TensorSpec
from ...runtime.bundle_writing import VariantSource, write_bundle
from ...training.config import ModelConfig, preset
from ...training.model import StreamSplat

_OPSET = 20
_DEPTH_WIDTH = 384  # the smallest Depth Anything V2


def loaded_model(source: Source | None, name: str) -> LoadedModel:
    """The model of a checkpoint, or where there is none of a preset with random weights, always the same.

    Raises:
        InputError: as `export.load.load`; there is no such preset.
    """
    return random_model(preset(name)) if source is None else load(source)


def random_model(config: ModelConfig) -> LoadedModel:
    """A model with random weights and what feeds it; those of `base` have the published networks' sizes."""
    torch.manual_seed(0)
    model = StreamSplat(config).eval().requires_grad_(False)
    condition: torch.nn.Module | None = None
    if config.condition == "conv":
        condition = ConditionStage(model)
    elif config.condition == "dino":
        from ...training.condition import DinoCondition, dino_config

        condition = DinoStage(DinoCondition(dino_config())).eval().requires_grad_(False)
    depth: DepthStage | ConvDepthStage | None = None
    if config.depth_input == "conv":
        depth = ConvDepthStage(model.depth_encoder, config.height, config.width)
    elif config.depth_input == "stage":
        from transformers import DepthAnythingForDepthEstimation

        from ...training.depth import DepthAnything, depth_config

        network = DepthAnythingForDepthEstimation(depth_config(_DEPTH_WIDTH))
        depth = DepthStage(DepthAnything(network), config.height, config.width)
        depth.eval().requires_grad_(False)
    return LoadedModel(model, condition, depth)


def at_precision(graph: StageGraph, precision: str, device: str) -> StageGraph:
    """The stage with its products in `precision`, as exported, on a device of torch."""
    # 22 is the first operator set in which bf16 has convolutions: here torch computes them.
    return replace(graph, module=lowered(graph.module, precision, 22).to(device))


def specs(graph: StageGraph, device: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a stage, found by running it once on its examples."""
    with torch.no_grad():
        results = graph.module(*(value.to(device) for value in graph.inputs.values()))
    results = results if isinstance(results, tuple) else (results,)
    return (
        tuple(TensorSpec(name, tuple(value.shape), "float32") for name, value in graph.inputs.items()),
        tuple(
            TensorSpec(name, tuple(value.shape), "float32")
            for name, value in zip(graph.outputs, results, strict=True)
        ),
    )


def write_files(loaded: LoadedModel, precision: str, folder: Path) -> Bundle:
    """A bundle with one file per stage, for the engines that read files. It is not verified here.

    Raises:
        ExportError: a stage cannot be exported. OutputError: the disk refuses.
    """
    files: dict[str, list[VariantSource]] = {}
    for stage in loaded.graphs():
        path = folder / f"{stage.name}.onnx"
        graph = write_graph(replace(stage, module=lowered(stage.module, precision, _OPSET)), path, _OPSET)
        engines = ("onnxruntime", "tensorrt", "tensorrt_rtx")
        files[stage.name] = [
            VariantSource(path, graph.inputs, graph.outputs, precision, engines, weights=graph.weights)
        ]
    config = runtime_config(loaded.config)
    return write_bundle(
        folder / f"{config.preset}.bundle", config.preset, config, files, provenance={}, quality={}
    )
