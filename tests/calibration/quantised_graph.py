"""What of an ONNX graph is quantised, read from its nodes."""

from __future__ import annotations

import onnx


def count(model: onnx.ModelProto) -> dict[str, int]:
    """How many QuantizeLinear and DequantizeLinear there are."""
    kinds = [node.op_type for node in model.graph.node]
    return {kind: kinds.count(kind) for kind in ("QuantizeLinear", "DequantizeLinear")}


def quantised_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose two operands both come out of a DequantizeLinear."""
    outputs = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [node.name for node in model.graph.node if len(node.input) > 1 and set(node.input[:2]) <= outputs]
