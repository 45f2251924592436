"""What of a graph could be quantised: its layers with constant weights, and products of two activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

# Operator -> axis of the weight along which output channels lie (Gemm and transposed weights: see `_layer`).
_CHANNEL_AXIS = {"MatMul": 1, "Gemm": 1, "Conv": 0, "ConvTranspose": 1}
OPERATORS = tuple(_CHANNEL_AXIS)


@dataclass(frozen=True)
class Layer:
    """A node that multiplies.

    Attributes:
        node, operator: name and operator of the node.
        activations: names of the tensors that are computed at run time (two for a product of activations).
        weight: name of the constant operand, empty for a product of activations.
        shape: of the weight. axis: of its output channels.
    """

    node: str
    operator: str
    activations: tuple[str, ...]
    weight: str
    shape: tuple[int, ...]
    axis: int

    @property
    def is_product(self) -> bool:
        """Whether both operands are activations, as in attention."""
        return not self.weight


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """All nodes that could be quantised, in the order of execution."""
    return list(_layers(model.graph))


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a graph holds Q/DQ or integer products already."""
    kinds = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    return any(node.op_type in kinds for node in model.graph.node)


def _layers(graph: onnx.GraphProto) -> Iterator[Layer]:
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in OPERATORS:
            continue
        first, second = node.input[0], node.input[1]
        if second in constants and first not in constants:
            layer = _layer(node, constants[second])
            if layer is not None:
                yield layer
        elif node.op_type == "MatMul" and first not in constants:
            yield Layer(node.name, node.op_type, (first, second), "", (), 0)


def _layer(node: onnx.NodeProto, shape: tuple[int, ...]) -> Layer | None:
    """The layer of a node with a constant weight; None where per-channel scales would not fit."""
    attributes = {a.name: a for a in node.attribute}
    axis = _CHANNEL_AXIS[node.op_type]
    if node.op_type == "Gemm":
        if "transA" in attributes and attributes["transA"].i:
            return None
        axis = 0 if "transB" in attributes and attributes["transB"].i else 1
    elif (node.op_type == "MatMul" and len(shape) != 2) or (
        node.op_type == "ConvTranspose" and "group" in attributes and attributes["group"].i != 1
    ):
        return None
    return Layer(node.name, node.op_type, (node.input[0],), node.input[1], shape, axis)
