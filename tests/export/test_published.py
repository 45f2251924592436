"""The stages of published networks, small ones with keyed weights: exported, run, and plain to fuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from keyed_weights import apply_keyed_weights
from torch import nn

pytest.importorskip("transformers", reason="the published networks come from it")

from streamsplat_edge.export.compare import compare
from streamsplat_edge.export.graphs import write_graph
from streamsplat_edge.export.precision import lowered
from streamsplat_edge.export.published import DepthStage, DinoStage
from streamsplat_edge.export.stages import StageGraph
from streamsplat_edge.training.condition import DinoCondition, dino_config
from streamsplat_edge.training.depth import DepthAnything, make_config

HEIGHT, WIDTH = 32, 64


def dino() -> DinoCondition:
    config = dino_config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70)
    condition = DinoCondition(config, (28, 56))
    apply_keyed_weights(condition, "condition_encoder.")
    return condition


def depth() -> DepthAnything:
    from transformers import DepthAnythingForDepthEstimation

    model = DepthAnythingForDepthEstimation(make_config(32, 4, 2, 16, [8, 16, 24, 32], [1, 2, 3, 4], 70))
    apply_keyed_weights(model, "depth.")
    with torch.no_grad():
        model.head.conv3.bias += 0.5  # depths other than zero
    return DepthAnything(model, short_side=42)


def check(tmp_path: Path, stage: StageGraph, wanted: torch.Tensor) -> onnx.GraphProto:
    """In fp32 to 1e-5; in fp16 as well as can be. Returns the fp16 graph."""
    graph = onnx.GraphProto()
    for precision, bound in (("fp32", 1e-5), ("fp16", 2e-2)):
        path = tmp_path / f"{stage.name}.{precision}.onnx"
        written = write_graph(replace(stage, module=lowered(stage.module, precision)), path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"rgb": stage.inputs["rgb"].numpy()})
        assert got.dtype == np.float32 and written.outputs[0].shape == got.shape == tuple(wanted.shape)
        assert compare(got, wanted.numpy()).relative_l2 < bound, precision
        graph = onnx.load(path).graph
        kinds = {node.op_type for node in graph.node}
        assert "Softmax" in kinds and not kinds & {"IsNaN", "Where", "Attention"}
    return graph


def products_in_fp16(graph: onnx.GraphProto) -> int:
    types = {w.name: w.data_type for w in graph.initializer}
    return sum(
        types.get(node.input[1]) == onnx.TensorProto.FLOAT16
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")
    )


def example(*size: int) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


def test_condition(tmp_path: Path) -> None:
    """Compared with the condition as training calls it, with transformers' own attention and positions."""
    rgb = example(HEIGHT, WIDTH)
    wanted = dino()(rgb)
    stage: nn.Module = DinoStage(dino())
    graph = check(tmp_path, StageGraph("condition", stage, {"rgb": rgb}, ("condition",)), wanted)
    assert tuple(wanted.shape) == (1, 2 * 4, 32) and products_in_fp16(graph) == 2 * 6 + 1


def test_depth(tmp_path: Path) -> None:
    """The runtime resizes the image to what the network sees; the rest is as training calls it."""
    network = depth()
    rgb = example(*network.network_size(HEIGHT, WIDTH))
    with torch.no_grad():
        wanted = network.model(pixel_values=rgb).predicted_depth[:, None]
        wanted = nn.functional.interpolate(wanted, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
    stage = DepthStage(depth(), HEIGHT, WIDTH)
    assert stage.input_size == (42, 84) and float(wanted.std()) > 1e-3
    graph = check(tmp_path, StageGraph("depth", stage, {"rgb": rgb}, ("depth",)), wanted)
    assert tuple(wanted.shape) == (1, 1, HEIGHT, WIDTH)
    last = [node for node in graph.node if node.op_type == "Conv"][-1]
    types = {w.name: w.data_type for w in graph.initializer}
    assert types[last.input[1]] == onnx.TensorProto.FLOAT, "the head stays in fp32"
