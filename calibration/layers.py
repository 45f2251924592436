"""What of a graph could be quantised: its layers with constant weights, and products of two activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

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


def load_graph(path: Path) -> onnx.ModelProto:
    """A stage file in which every constant weight is an initializer.

    The exporter leaves a weight that several products share (query, key and value of cross attention) as one
    tensor that each slices and transposes; engines fold that, and Q/DQ belong behind it.
    """
    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in OPERATORS and node.input[1] in makers:
            part = _made_of_constants(node.input[1], makers, constants)
            if part:
                graph.initializer.append(_evaluated(model, part, node.input[1], constants))
                makers.pop(node.input[1])
    made = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if not set(node.output) & made]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return model


def _made_of_constants(
    name: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """The nodes that compute a tensor from constants alone, in order; empty where it depends on more."""
    node = makers.get(name)
    if node is None:
        return []
    part: list[onnx.NodeProto] = []
    for source in node.input:
        if source and source not in constants:
            before = _made_of_constants(source, makers, constants)
            if not before:
                return []
            part += before
    return [*part, node]


def _evaluated(
    model: onnx.ModelProto,
    part: list[onnx.NodeProto],
    name: str,
    constants: Mapping[str, onnx.TensorProto],
) -> onnx.TensorProto:
    needed = dict.fromkeys(source for node in part for source in node.input if source in constants)
    graph = onnx.helper.make_graph(
        part, "weight", [], [onnx.ValueInfoProto(name=name)], [constants[source] for source in needed]
    )
    whole = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    (value,) = ReferenceEvaluator(whole).run([name], {})
    return onnx.numpy_helper.from_array(np.asarray(value), name)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing reads any more."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read & set(node.output):
            kept.append(node)
            read |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """All nodes that could be quantised, in the order of execution; of a graph from `load_graph`."""
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
