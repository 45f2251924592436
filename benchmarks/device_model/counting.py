"""What an ONNX graph computes and moves, counted from its shapes. Needs onnx (extra [build] or [export]).

Matrix work (MatMul, Gemm, Conv, ConvTranspose): two operations per multiply-add; a bias is vector work.
Vector work: everything else that computes, one operation per element of the largest tensor it touches.
Memory: a node reads its inputs and writes its outputs once. Left out of that: what only renames a tensor
(Reshape and the like), and a tensor between a node and its only reader, where that works element by
element: engines fuse the two. Weights are counted apart, since quantised engines read them at another
width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError

# What has no cost of its own in an engine.
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Constant", "Shape", "Dropout"}
# What moves elements without computing.
_MOVES = {
    *("Transpose", "Slice", "Concat", "Split", "Gather", "Pad", "Expand", "Tile"),
    *("DepthToSpace", "SpaceToDepth", "ConstantOfShape", "Range"),
}
_MATRIX = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
# What engines compute in the kernel before it, element by element.
_ELEMENTWISE = {
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Neg",
        "Abs",
        "Exp",
        "Log",
        "Erf",
        "Clip",
        "Where",
    ),
    *(
        "Sigmoid",
        "Tanh",
        "Relu",
        "LeakyRelu",
        "Gelu",
        "Softplus",
        "Round",
        "Floor",
        "Ceil",
        "Greater",
        "Less",
    ),
    *("Equal", "Not", "And", "Or", "Min", "Max", "Cast", "Sin", "Cos"),
}
# Sub-graphs and fused operators, of which the shapes do not tell the work.
_REFUSED = {"If", "Loop", "Scan", "Attention", "Einsum", "LSTM", "GRU", "RNN"}


@dataclass(frozen=True)
class NodeCost:
    """One node: operations, and elements (not bytes: the width depends on the precision).

    Attributes:
        matrix_ops: of matrix work. weighted: one operand is a weight, so that INT8 files quantise it.
        vector_ops: of everything else. elements: of activations read and written after fusing.
        weights: elements of weights read. fused: it is part of the node before it.
    """

    name: str
    operator: str
    matrix_ops: int
    weighted: bool
    vector_ops: int
    elements: int
    weights: int
    fused: bool


@dataclass(frozen=True)
class GraphCost:
    """A whole graph.

    Attributes:
        nodes: those that do something. outer_elements: of the inputs and outputs of the graph.
    """

    nodes: tuple[NodeCost, ...]
    outer_elements: int

    @property
    def matrix_ops(self) -> int:
        return sum(node.matrix_ops for node in self.nodes)

    @property
    def vector_ops(self) -> int:
        return sum(node.vector_ops for node in self.nodes)

    @property
    def weights(self) -> int:
        return sum(node.weights for node in self.nodes)

    @property
    def elements(self) -> int:
        return sum(node.elements for node in self.nodes)

    @property
    def kernels(self) -> int:
        """Nodes that an engine starts one by one."""
        return sum(not node.fused for node in self.nodes)


def count_file(path: Path) -> GraphCost:
    """The cost of a file.

    Raises:
        InputError: as `count`, or onnx cannot read it.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # onnx raises what protobuf does
        raise InputError(f"{path} cannot be read as ONNX ({error}).") from error
    return count(model)


def count(model: Any) -> GraphCost:
    """The cost of an `onnx.ModelProto` with fixed shapes.

    Raises:
        InputError: a shape is not known, or an operator is not understood.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: _fixed(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants = [node for node in graph.node if node.op_type == "Constant"]
    weights |= {node.output[0]: _constant_shape(node) for node in constants}
    outputs = {value.name for value in graph.output}
    readers = Counter(name for node in graph.node for name in node.input)
    fused_tensors = _fused(graph.node, readers, outputs)

    def shape(name: str) -> tuple[int, ...]:
        found = weights.get(name, shapes.get(name))
        if found is None:
            raise InputError(
                f"The shape of {name} is not known.", "Count a file exported with a fixed batch size."
            )
        return found

    costs = []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type in _REFUSED:
            raise InputError(
                f"Operator {node.domain}:{node.op_type} cannot be counted.", "Export with --opset 20."
            )
        if node.op_type in _VIEWS:
            continue
        read = [name for name in node.input if name]
        written = [name for name in node.output if name]
        activations = [name for name in read if name not in weights]
        if not activations:
            continue  # of weights alone: engines compute it once
        moved = sum(math.prod(shape(name)) for name in written if name not in fused_tensors)
        if node.op_type in _MOVES:
            moved *= 2  # as much read as written: a slice does not read all of its input
            own_weights = 0
        else:
            moved += sum(math.prod(shape(name)) for name in activations if name not in fused_tensors)
            own_weights = sum(math.prod(shape(name)) for name in read if name in weights)
        matrix = matrix_ops(node, shape) if node.op_type in _MATRIX else 0
        vector = 0
        if node.op_type not in _MOVES and not matrix:
            vector = max(math.prod(shape(name)) for name in (*read, *written))
        elif node.op_type in ("Gemm", "Conv", "ConvTranspose") and len(read) > 2:
            vector = math.prod(shape(written[0]))  # the bias
        costs.append(
            NodeCost(
                node.name or written[0],
                node.op_type,
                matrix,
                any(name in weights for name in read[:2]),
                vector,
                moved,
                own_weights,
                any(name in fused_tensors for name in activations),
            )
        )
    outer = sum(
        math.prod(shape(value.name)) for value in (*graph.input, *graph.output) if value.name not in weights
    )
    return GraphCost(tuple(costs), outer)


def matrix_ops(node: Any, shape: Any) -> int:
    """Operations of a MatMul, Gemm, Conv or ConvTranspose; `shape` gives that of a tensor by name."""
    first, second, out = shape(node.input[0]), shape(node.input[1]), shape(node.output[0])
    if node.op_type == "MatMul":
        return 2 * math.prod(out) * first[-1]
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Gemm":
        transposed = "transA" in attributes and attributes["transA"].i
        return 2 * math.prod(out) * first[0 if transposed else 1]
    # The kernel is [out, in / groups, ...] of a convolution and [in, out / groups, ...] of a transposed one;
    # the one computes per output pixel, the other per input pixel.
    over = out if node.op_type == "Conv" else first
    return 2 * math.prod(over) * math.prod(second[1:])


def _fused(nodes: Any, readers: Mapping[str, int], outputs: set[str]) -> set[str]:
    """Tensors that never reach memory: read once, by an element-wise node, as its first computed input."""
    made = {name for node in nodes if node.op_type not in _VIEWS for name in node.output}
    fused = set()
    for node in nodes:
        if node.op_type in _ELEMENTWISE:
            for name in node.input:
                if name in made and readers[name] == 1 and name not in outputs:
                    fused.add(name)
                    break
    return fused


def _fixed(value: Any) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return tuple(d.dim_value for d in tensor.shape.dim)


def _constant_shape(node: Any) -> tuple[int, ...]:
    for attribute in node.attribute:
        if attribute.name == "value":
            return tuple(attribute.t.dims)
    return (max(1, *(len(a.ints) + len(a.floats) for a in node.attribute)),)
