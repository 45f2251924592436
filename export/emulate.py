"""A bf16 graph as a float32 graph that rounds where bf16 would: what ONNX Runtime can run on a CPU.

ONNX Runtime has no bf16 kernels for CPUs but for Cast. In float32, with every weight and every result rounded
to bf16, the file's own nodes are executed in its own types, products summed in float32 as on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

_BF16, _FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
# What moves values has nothing to round.
_MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
     "Transpose", "Unsqueeze"}
)  # fmt: skip


def write_emulation(path: Path, target: Path) -> None:
    """Write the float32 equivalent of the bf16 graph `path` to `target`; nodes keep their names."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))  # states the type of every value
    graph = model.graph
    typed = (*graph.value_info, *graph.input, *graph.output)
    low = {value.name for value in typed if value.type.tensor_type.elem_type == _BF16}
    for value in typed:
        if value.name in low:
            value.type.tensor_type.elem_type = _FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == _BF16:
            tensor.CopyFrom(_widened(tensor))
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.t.data_type == _BF16:
                attribute.t.CopyFrom(_widened(attribute.t))
            elif attribute.name == "to" and attribute.i == _BF16:
                attribute.i = _FLOAT
        nodes.append(node)
        if node.op_type in _MOVING:
            continue
        for i, name in enumerate(node.output):
            if name in low:
                node.output[i] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.bf16"], to=_BF16))
                nodes.append(helper.make_node("Cast", [f"{name}.bf16"], [name], to=_FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
