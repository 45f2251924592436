"""A tiny bundle whose outputs are known by formula, for tests that need a bundle but no trained model.

    from fake_bundle import build_fake_bundle
    bundle = build_fake_bundle(tmp_path / "fake.bundle")       # returns the loaded Bundle

`encode` puts one Gaussian at the centre of every 2x2 pixel cell with the cell's mean colour; `deform` moves
along x by half the change of red between the key frames and fades with constant gamma1. `numpy_encode` and
`numpy_deform` are the same formulas. Needs the `onnx` package (in the test environment), not torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamsplat_edge.runtime.bundle import Bundle, TensorSpec
from streamsplat_edge.runtime.bundle_schema import ModelConfig
from streamsplat_edge.runtime.bundle_writing import VariantSource, write_bundle

PATCH = 8
INVERSE_DEPTH = 0.4
OPACITY = 0.9
GAMMA0, GAMMA1 = 6.0, 0.5


def fake_model(height: int = 16, width: int = 32, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = dict(
        preset="fake",
        height=height,
        width=width,
        patch=PATCH,
        grid=(height // 2, width // 2),
        token_dim=4,
        feature_dim=3,
    )
    return ModelConfig(**(values | changes))


def _xy(model: ModelConfig) -> np.ndarray:
    """[G,3] centres of the cells: x left to right, constant inverse depth, z top (+) to bottom (-)."""
    rows, cols = model.grid
    x = (np.arange(cols, dtype=np.float32) * 2 + 1) / cols - 1
    z = 1 - (np.arange(rows, dtype=np.float32) * 2 + 1) / rows
    xx, zz = np.meshgrid(x, z)
    return np.stack([xx, np.full_like(xx, INVERSE_DEPTH), zz], -1).reshape(-1, 3).astype(np.float32)


def _scale(model: ModelConfig) -> np.ndarray:
    """Sigma of about 0.7 cells in x and z."""
    rows, cols = model.grid
    return np.array([1.4 / cols, 1.4 / rows], np.float32)


def numpy_encode(rgbd: np.ndarray, model: ModelConfig) -> dict[str, np.ndarray]:
    """The encode stage: rgbd [1,4,H,W] -> tokens, features, gaussians."""
    channels, height, width = rgbd.shape[1:]
    p = model.patch
    tokens = rgbd.reshape(channels, height // p, p, width // p, p).mean((2, 4)).reshape(channels, -1).T[None]
    cells = rgbd[0, :3].reshape(3, height // 2, 2, width // 2, 2).mean((2, 4)).reshape(3, -1).T
    count = model.gaussians
    gaussians = np.concatenate(
        [_xy(model), cells, np.tile(_scale(model), (count, 1)), np.full((count, 1), OPACITY)], axis=1
    )
    result = {"tokens": tokens, "features": cells[None], "gaussians": gaussians[None]}
    return {name: value.astype(np.float32) for name, value in result.items()}


def numpy_deform(features_0: np.ndarray, features_1: np.ndarray) -> dict[str, np.ndarray]:
    """The deform stage (tokens are inputs but only add zero)."""
    step = (features_1 - features_0)[0, :, :1] * np.float32(0.5)
    motion = np.concatenate([step, np.zeros((len(step), 2), np.float32)], 1)
    fade = np.tile(np.array([GAMMA0, GAMMA1], np.float32), (len(step), 1))
    return {"motion": np.stack([motion] * 2), "fade": np.stack([fade] * 2)}


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))


def _save(
    path: Path, nodes: list[Any], constants: dict[str, np.ndarray], io: tuple[Any, Any]
) -> VariantSource:
    inputs, outputs = io
    graph = helper.make_graph(
        nodes,
        path.stem,
        [_value(spec) for spec in inputs],
        [_value(spec) for spec in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return VariantSource(path, inputs, outputs, engines=("onnxruntime", "openvino"))


def _encode(folder: Path, model: ModelConfig) -> VariantSource:
    count = model.gaussians
    constants = {
        "xyz": _xy(model)[None],
        "rest": np.tile(np.append(_scale(model), np.float32(OPACITY)), (1, count, 1)).astype(np.float32),
        "token_shape": np.array([1, 4, model.tokens], np.int64),
        "cell_shape": np.array([1, 3, count], np.int64),
        "zero": np.array([0], np.int64),
        "three": np.array([3], np.int64),
        "axis": np.array([1], np.int64),
    }
    p = model.patch
    nodes = [
        helper.make_node("AveragePool", ["rgbd"], ["pooled"], kernel_shape=[p, p], strides=[p, p]),
        helper.make_node("Reshape", ["pooled", "token_shape"], ["token_rows"]),
        helper.make_node("Transpose", ["token_rows"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["rgbd", "zero", "three", "axis"], ["rgb"]),
        helper.make_node("AveragePool", ["rgb"], ["cells"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["cells", "cell_shape"], ["cell_rows"]),
        helper.make_node("Transpose", ["cell_rows"], ["features"], perm=[0, 2, 1]),
        helper.make_node("Concat", ["xyz", "features", "rest"], ["gaussians"], axis=2),
    ]
    inputs = [TensorSpec("rgbd", (1, 4, model.height, model.width))]
    outputs = [
        TensorSpec("tokens", (1, model.tokens, 4)),
        TensorSpec("features", (1, count, 3)),
        TensorSpec("gaussians", (1, count, 9)),
    ]
    return _save(folder / "encode.onnx", nodes, constants, (inputs, outputs))


def _deform(folder: Path, model: ModelConfig, condition: TensorSpec | None) -> VariantSource:
    count = model.gaussians
    constants = {
        "half": np.array([[[0.5, 0.0, 0.0]]], np.float32),
        "fade_rows": np.tile(np.array([GAMMA0, GAMMA1], np.float32), (2, count, 1)),
        "nothing": np.zeros(1, np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }
    inputs = []
    for i in (0, 1):
        inputs.append(TensorSpec(f"tokens_{i}", (1, model.tokens, 4)))
        inputs.append(TensorSpec(f"features_{i}", (1, count, 3)))
        if condition:
            inputs.append(TensorSpec(f"condition_{i}", condition.shape))
    nodes = [
        helper.make_node("Sub", ["features_1", "features_0"], ["change"]),
        helper.make_node("Slice", ["change", "zero", "one", "last"], ["red"]),
        helper.make_node("Mul", ["red", "half"], ["step"]),
        helper.make_node("Concat", ["step", "step"], ["motion"], axis=0),
    ]
    # Tokens and condition are used (times zero) so that no engine drops these inputs.
    unused = [spec.name for spec in inputs if not spec.name.startswith("features")]
    total = "nothing"
    for name in unused:
        nodes += [
            helper.make_node("ReduceMean", [name], [f"{name}_mean"], keepdims=0),
            helper.make_node("Mul", [f"{name}_mean", "nothing"], [f"{name}_zero"]),
            helper.make_node("Add", [total, f"{name}_zero"], [f"{name}_sum"]),
        ]
        total = f"{name}_sum"
    nodes.append(helper.make_node("Add", ["fade_rows", total], ["fade"]))
    outputs = [TensorSpec("motion", (2, count, 3)), TensorSpec("fade", (2, count, 2))]
    return _save(folder / "deform.onnx", nodes, constants, (inputs, outputs))


def _depth(folder: Path, model: ModelConfig) -> VariantSource:
    """Inverse depth = 3 * red, at half the model's resolution on the way in."""
    size = (model.height // 2, model.width // 2)
    constants = {
        "weight": np.array([3.0, 0.0, 0.0], np.float32).reshape(1, 3, 1, 1),
        "factor": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["rgb", "weight"], ["small"]),
        helper.make_node("Resize", ["small", "", "factor"], ["depth"], mode="nearest"),
    ]
    io = [TensorSpec("rgb", (1, 3, *size))], [TensorSpec("depth", (1, 1, model.height, model.width))]
    return _save(folder / "depth.onnx", nodes, constants, io)


def _condition(folder: Path, model: ModelConfig) -> VariantSource:
    shape = (1, model.tokens, 3)
    nodes = [
        helper.make_node("AveragePool", ["rgb"], ["pooled"], kernel_shape=[PATCH] * 2, strides=[PATCH] * 2),
        helper.make_node("Reshape", ["pooled", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["condition"], perm=[0, 2, 1]),
    ]
    constants = {"shape": np.array([1, 3, model.tokens], np.int64)}
    io = [TensorSpec("rgb", (1, 3, model.height, model.width))], [TensorSpec("condition", shape)]
    return _save(folder / "condition.onnx", nodes, constants, io)


def build_fake_bundle(
    path: Path,
    *,
    height: int = 16,
    width: int = 32,
    depth_stage: bool = False,
    condition_stage: bool = False,
    force: bool = False,
    **model_changes: Any,
) -> Bundle:
    """Write the bundle at `path` (sizes are multiples of 8) and load it. Optional stages on request."""
    model = fake_model(height, width, depth_input="stage" if depth_stage else "zeros", **model_changes)
    work = Path(path).parent / f"{Path(path).stem}-stages"
    work.mkdir(parents=True, exist_ok=True)
    stages: dict[str, list[VariantSource]] = {"encode": [_encode(work, model)]}
    condition = None
    if condition_stage:
        source = _condition(work, model)
        stages["condition"] = [source]
        condition = source.outputs[0]
    if depth_stage:
        stages["depth"] = [_depth(work, model)]
    stages["deform"] = [_deform(work, model, condition)]
    return write_bundle(
        path, "fake", model, stages, provenance={"trained": "no", "data": "none"}, quality={}, force=force
    )
