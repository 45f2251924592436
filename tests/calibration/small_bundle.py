"""A bundle with every kind of layer that quantisation decides about, small enough to run in milliseconds.

`encode`: patch embedding, a norm with a gain, linear layers, an attention product, a convolution, output
heads; Gaussians sit in a grid and take the picture's colours plus what the network adds. `deform`: a linear
layer and output heads. Weights are random, always the same. The nodes are named as the exporter names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fake_bundle import fake_model
from onnx import TensorProto, helper, numpy_helper

from streamsplat_edge.runtime.bundle import Bundle, TensorSpec
from streamsplat_edge.runtime.bundle_schema import ModelConfig
from streamsplat_edge.runtime.bundle_writing import VariantSource, write_bundle

DIM, FEATURES = 16, 8
MODEL = fake_model(token_dim=DIM, feature_dim=FEATURES)
ATTENTION = "encoder.blocks.0.attn"

# Nodes that the default recipe quantises, and those with a product that it keeps.
QUANTISED = {
    "encode": (f"{ATTENTION}.proj/MatMul", "encoder.blocks.0.mlp/MatMul", "refine/Conv"),
    "deform": ("decoder.mix/MatMul",),
}
KEPT = {
    "encode": ("encoder.patches/Conv", f"{ATTENTION}/MatMul", f"{ATTENTION}/MatMul_2", "stem/Conv",
               "model/MatMul"),
    "deform": ("deform/MatMul", "deform/MatMul_2"),
}  # fmt: skip


def make_graph(
    nodes: list[Any],
    constants: dict[str, np.ndarray],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    opset: int = 20,
) -> onnx.ModelProto:
    def value(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))

    graph = helper.make_graph(
        nodes,
        "stage",
        [value(spec) for spec in inputs],
        [value(spec) for spec in outputs],
        [numpy_helper.from_array(v, name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _random(seed: int, *shape: int) -> np.ndarray:
    scale = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def encode_graph(model: ModelConfig = MODEL) -> tuple[onnx.ModelProto, list[TensorSpec], list[TensorSpec]]:
    rows, columns = model.grid
    count = model.gaussians
    x = (np.arange(columns, dtype=np.float32) * 2 + 1) / columns - 1
    z = 1 - (np.arange(rows, dtype=np.float32) * 2 + 1) / rows
    xx, zz = np.meshgrid(x, z)
    xyz = np.stack([xx, np.full_like(xx, 0.4), zz], -1).reshape(1, -1, 3)
    rest = np.tile(np.array([1.4 / columns, 1.4 / rows, 0.9]), (1, count, 1))
    constants = {
        "xyz": xyz.astype(np.float32), "rest": rest.astype(np.float32),
        "patch_weight": _random(1, DIM, 4, model.patch, model.patch), "gain": 1 + _random(2, DIM),
        "proj": _random(3, DIM, DIM), "mlp": _random(4, DIM, DIM), "stem_weight": _random(5, 16, 4, 3, 3),
        "refine_weight": _random(6, FEATURES, 16, 2, 2), "head": _random(7, FEATURES, 3),
        "rows": np.array([1, DIM, model.tokens]), "cells": np.array([1, 3, count]),
        "grid": np.array([1, FEATURES, count]), "small": np.array(0.2, np.float32),
        "start": np.array([0]), "end": np.array([3]), "axis": np.array([1]),
    }  # fmt: skip

    def node(kind: str, name: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], name=f"{name}/{kind}", **attributes)

    def second(kind: str, name: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], name=f"{name}/{kind}_2", **attributes)

    nodes = [
        node("Conv", "encoder.patches", ["rgbd", "patch_weight"], "patches", strides=[model.patch] * 2),
        node("Reshape", "encoder", ["patches", "rows"], "patch_rows"),
        node("Transpose", "encoder", ["patch_rows"], "embedded", perm=[0, 2, 1]),
        node("Mul", "encoder.norm", ["embedded", "gain"], "normed"),
        node("MatMul", f"{ATTENTION}.proj", ["normed", "proj"], "projected"),
        node("Transpose", ATTENTION, ["projected"], "keys", perm=[0, 2, 1]),
        node("MatMul", ATTENTION, ["projected", "keys"], "products"),
        node("Softmax", ATTENTION, ["products"], "shares"),
        second("MatMul", ATTENTION, ["shares", "projected"], "attended"),
        node("MatMul", "encoder.blocks.0.mlp", ["attended", "mlp"], "tokens"),
        node("Conv", "stem", ["rgbd", "stem_weight"], "stem", pads=[1] * 4),
        node("Sigmoid", "stem", ["stem"], "gate"),
        node("Mul", "stem", ["stem", "gate"], "silu"),
        node("Conv", "refine", ["silu", "refine_weight"], "refined", strides=[2, 2]),
        node("Reshape", "refine", ["refined", "grid"], "refined_rows"),
        node("Transpose", "refine", ["refined_rows"], "features", perm=[0, 2, 1]),
        node("MatMul", "model", ["features", "head"], "added"),
        node("Mul", "model", ["added", "small"], "little"),
        node("Slice", "model", ["rgbd", "start", "end", "axis"], "rgb"),
        node("AveragePool", "model", ["rgb"], "pooled", kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", "model", ["pooled", "cells"], "cell_rows"),
        second("Transpose", "model", ["cell_rows"], "colours", perm=[0, 2, 1]),
        node("Add", "model", ["colours", "little"], "painted"),
        node("Concat", "model", ["xyz", "painted", "rest"], "gaussians", axis=2),
    ]
    inputs = [TensorSpec("rgbd", (1, 4, model.height, model.width))]
    outputs = [
        TensorSpec("tokens", (1, model.tokens, DIM)),
        TensorSpec("features", (1, count, FEATURES)),
        TensorSpec("gaussians", (1, count, 9)),
    ]
    return make_graph(nodes, constants, inputs, outputs), inputs, outputs


def deform_graph(model: ModelConfig = MODEL) -> tuple[onnx.ModelProto, list[TensorSpec], list[TensorSpec]]:
    count = model.gaussians
    constants = {
        "mix": _random(11, FEATURES, DIM), "motion_head": _random(12, DIM, 3) * np.float32(0.1),
        "fade_head": _random(13, DIM, 2), "nothing": np.zeros(1, np.float32),
    }  # fmt: skip
    inputs = [
        spec
        for i in (0, 1)
        for spec in (
            TensorSpec(f"tokens_{i}", (1, model.tokens, DIM)),
            TensorSpec(f"features_{i}", (1, count, FEATURES)),
        )
    ]
    make = helper.make_node
    nodes = [
        make("ReduceMean", ["tokens_0"], ["mean_0"], name="decoder/ReduceMean", keepdims=0),
        make("ReduceMean", ["tokens_1"], ["mean_1"], name="decoder/ReduceMean_2", keepdims=0),
        make("Add", ["mean_0", "mean_1"], ["means"], name="decoder/Add"),
        make("Mul", ["means", "nothing"], ["unused"], name="decoder/Mul"),
        make("Sub", ["features_1", "features_0"], ["forth"], name="decoder/Sub"),
        make("Sub", ["features_0", "features_1"], ["back"], name="decoder/Sub_2"),
        make("Concat", ["forth", "back"], ["changes"], name="decoder/Concat", axis=0),
        make("MatMul", ["changes", "mix"], ["mixed"], name="decoder.mix/MatMul"),
        make("Relu", ["mixed"], ["active"], name="decoder/Relu"),
        make("MatMul", ["active", "motion_head"], ["moved"], name="deform/MatMul"),
        make("Add", ["moved", "unused"], ["motion"], name="deform/Add"),
        make("MatMul", ["active", "fade_head"], ["fade"], name="deform/MatMul_2"),
    ]
    outputs = [TensorSpec("motion", (2, count, 3)), TensorSpec("fade", (2, count, 2))]
    return make_graph(nodes, constants, inputs, outputs), inputs, outputs


def build_small_bundle(path: Path, **engines: Any) -> Bundle:
    """Write the bundle; `engines` of its fp32 files: by default, all."""
    stages = {}
    for stage, (graph, inputs, outputs) in (("encode", encode_graph()), ("deform", deform_graph())):
        file = path.with_name(f"{stage}.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(graph, file)
        stages[stage] = [VariantSource(file, inputs, outputs, **engines)]
    return write_bundle(path, "small", MODEL, stages, provenance={"data": "random"}, quality={})
