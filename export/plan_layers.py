"""What a built plan computes in which type: read from the builder's log or from the engine inspector.

TensorRT-RTX lists the layers of the engine in its verbose log, also where there is no GPU to load the plan
(undocumented text, LESSONS.md); `tensorrt` has the inspector's JSON. Both name the ONNX nodes of a layer, so
that every product of the plan is compared with the type of its node in the strongly typed graph.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

PRODUCT_OPERATORS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"})
_TYPES = {
    "Float": "fp32", "FP32": "fp32", "Half": "fp16", "FP16": "fp16", "BFloat16": "bf16", "BF16": "bf16",
    "Int8": "int8", "INT8": "int8", "FP8": "fp8",
}  # fmt: skip
_ONNX_TYPES = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16",
               onnx.TensorProto.BFLOAT16: "bf16"}  # fmt: skip
_QUANTISED_TYPES = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.FLOAT8E4M3FN: "fp8"}
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>.*?), "
    r"Constants: (?P<constants>.*?), Outputs: (?P<outputs>.*), TacticName: (?P<tactic>.*?), StreamId"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<sizes>[^\]]*)\].*?Datatype: (?P<type>\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
_FUSED = re.compile(r"mha|fmha|flash|fused_attention", re.IGNORECASE)
# Kinds of layers that multiply; generated kernels (`kgen`) only where they are a whole attention.
_MULTIPLYING = frozenset({"gemm", "correlation", "convolution", "runtime_fusion", "conv", "deconvolution"})


@dataclass(frozen=True)
class PlanLayer:
    """One layer of a built engine: its kind, the type it multiplies in, and the ONNX nodes it came from."""

    name: str
    kind: str
    type: str
    nodes: tuple[str, ...]
    attention: bool


@dataclass(frozen=True)
class Inspection:
    """What was found in a plan.

    Attributes:
        layers: all layers. attentions: those that are a fused attention.
        products: layer counts by type of those that multiply and could be matched with the graph.
        wrong: layers that multiply in another type than the graph says, in words.
        raised: layers of quantised products for which the builder chose floating point, in words. Q/DQ says
            what it may use, not what it must: it dequantises a weight where that is faster.
    """

    layers: int
    attentions: int
    products: dict[str, int]
    wrong: tuple[str, ...]
    raised: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "fused_attentions": self.attentions,
            "products": self.products,
            "raised": list(self.raised),
        }


def from_log(lines: Iterable[str]) -> list[PlanLayer]:
    """The layers that TensorRT-RTX lists in its verbose log when profiling is detailed."""
    layers = []
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        kind, name = found["kind"], found["name"]
        constants = [(_elements(sizes), kind_) for sizes, kind_ in _TENSOR.findall(found["constants"])]
        inputs = [(_elements(sizes), kind_) for sizes, kind_ in _TENSOR.findall(found["inputs"])]
        # The weight is the largest constant (the others are scalars and biases); attention has none.
        attention = bool(_FUSED.search(name))
        operand = max(constants, default=None) if not attention else None
        type_ = _TYPES.get(operand[1], operand[1]) if operand else _product_type(inputs)
        layers.append(PlanLayer(name, kind, type_, tuple(_NODE.findall(line)), attention))
    return layers


def _product_type(inputs: Sequence[tuple[int, str]]) -> str:
    """The type in which inputs (elements, type) are multiplied with one another: that of the largest.

    A quantised type takes two of it. Where the other operand is in floating point (a weight that another
    layer dequantises), the one that is not is dequantised in the layer itself.
    """
    types = [_TYPES.get(kind, kind) for _, kind in sorted(inputs, reverse=True)]
    low = [kind for kind in types if kind in _QUANTISED_TYPES.values()]
    if len(low) == 1 and len(types) > 1:
        types.remove(low[0])
    return types[0] if types else ""


def from_inspector(text: str) -> list[PlanLayer]:
    """The layers in the JSON of `IEngineInspector.get_engine_information`."""
    layers = []
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, dict):  # without detailed profiling there are only names
            continue
        name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", "")).lower()
        # One field in TensorRT 10 ("Row major linear FP16 format"), two from 11 on.
        keys = ("DataType", "Datatype", "Format/Datatype")
        formats = [next((str(t[key]) for key in keys if key in t), "") for t in layer.get("Inputs", [])]
        types = [kind_ for word in formats for key, kind_ in _TYPES.items() if key in word]
        nodes = tuple(_NODE.findall(str(layer.get("Metadata", ""))))
        layers.append(PlanLayer(name, kind, types[0] if types else "", nodes, bool(_FUSED.search(name))))
    return layers


def _elements(sizes: str) -> int:
    """Of a tensor whose free sizes (no positive numbers) count as 1."""
    return math.prod(int(size) for size in sizes.split(",") if size.strip().isdigit())


def product_types(path: Path) -> dict[str, str]:
    """Name of every node of an ONNX file that multiplies -> the type it multiplies in.

    A node whose weight comes out of a DequantizeLinear multiplies in what that one reads.
    """
    graph = onnx.load(path, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {value.name: value.data_type for value in graph.initializer}
    quantised = {
        node.output[0]: _QUANTISED_TYPES.get(types.get(node.input[2], 0), "")
        for node in graph.node
        if node.op_type == "DequantizeLinear" and len(node.input) > 2
    }
    return {
        node.name: quantised.get(
            node.input[1], _ONNX_TYPES.get(types.get(node.input[0], types.get(node.input[1], 0)), "")
        )
        for node in graph.node
        if node.op_type in PRODUCT_OPERATORS
    }


def inspect(layers: list[PlanLayer], expected: dict[str, str]) -> Inspection:
    """Compare the layers of a plan with the types of the graph's products.

    Quantised products in floating point are wrong only where all are: then quantising was for nothing.
    """
    products: dict[str, int] = {}
    wrong: list[str] = []
    raised: list[str] = []
    quantised = set(_QUANTISED_TYPES.values())
    for layer in layers:
        if layer.kind not in _MULTIPLYING and not layer.attention:
            continue
        types = {expected[node] for node in layer.nodes if node in expected}
        if not types:
            continue
        products[layer.type] = products.get(layer.type, 0) + 1
        if types != {layer.type}:
            nodes = ", ".join(node for node in layer.nodes if node in expected)
            words = f"{layer.type} instead of {'/'.join(sorted(types))}: {nodes} ({layer.name})"
            (raised if types & quantised and layer.type not in quantised else wrong).append(words)
    if raised and not quantised & products.keys():
        wrong, raised = wrong + raised, []
    attentions = sum(layer.attention for layer in layers)
    return Inspection(len(layers), attentions, products, tuple(wrong), tuple(raised))
