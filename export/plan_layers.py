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
# Words for types, in lower case. A format names one of them among others ("Row major linear FP16 format").
_TYPES = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16",
    "int8": "int8", "fp8": "fp8",
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
# Kinds of layers that multiply: `gemm`, `correlation`, `runtime_fusion` of RTX and of the compiled parts of
# TensorRT, `CaskConvolution`, `CaskGemmMatrixMultiply` and others of TensorRT's own kernels. Generated ones
# (`kgen`) only where they are a whole attention.
_MULTIPLYING = re.compile(r"conv(?!ert)|gemm|correlation|matmul|matrixmultiply|fusion", re.IGNORECASE)


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
        constants, inputs = (
            [(_elements(sizes.split(",")), type_) for sizes, type_ in _TENSOR.findall(found[group])]
            for group in ("constants", "inputs")
        )
        attention = bool(_FUSED.search(name))
        type_ = _product_type(inputs, constants, attention)
        layers.append(PlanLayer(name, kind, type_, tuple(_NODE.findall(line)), attention))
    return layers


def _product_type(
    inputs: Sequence[tuple[int, str]], constants: Sequence[tuple[int, str]], attention: bool
) -> str:
    """The type in which a layer multiplies, from elements and type of what it reads; empty where unknown.

    The weight is the largest constant (others are biases, and scalars by which any product may be scaled);
    attention has none. Where inputs are multiplied with one another it is the type of the largest, but a
    quantised one takes two of it: where the other operand is in floating point (a weight that another layer
    dequantises), the one that is not is dequantised in the layer itself.
    """
    weight = max((constant for constant in constants if constant[0] > 1), default=(0, ""))
    if not attention and (kind := _type_in(weight[1])):
        return kind
    types = [kind for kind in (_type_in(word) for _, word in sorted(inputs, reverse=True)) if kind]
    low = [kind for kind in types if kind in _QUANTISED_TYPES.values()]
    if len(low) == 1 and len(types) > 1:
        types.remove(low[0])
    return types[0] if types else ""


def _type_in(words: str) -> str:
    """The type in the words of a format; empty where there is none ("N/A due to dynamic shapes")."""
    found = (_TYPES.get(word) for word in re.findall(r"[a-z0-9]+", words.lower()))
    return next((kind for kind in found if kind), "")


def from_inspector(text: str) -> list[PlanLayer]:
    """The layers in the JSON of `IEngineInspector.get_engine_information`."""
    layers = []
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, dict):  # without detailed profiling there are only names
            continue
        name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", "")).lower()
        attention = bool(_FUSED.search(name))
        inputs, constants = ([_tensor(t) for t in layer.get(group, [])] for group in ("Inputs", "Constants"))
        if isinstance(weights := layer.get("Weights"), dict):  # of a kernel of TensorRT's own
            constants.append((int(weights.get("Count", 0)), str(weights.get("Type", ""))))
        type_ = _product_type(inputs, constants, attention)
        nodes = tuple(_NODE.findall(str(layer.get("Metadata", ""))))
        layers.append(PlanLayer(name, kind, type_, nodes, attention))
    return layers


def _tensor(entry: dict[str, Any]) -> tuple[int, str]:
    """Elements and type of a tensor in the inspector's JSON."""
    # One field in TensorRT 10 ("Row major linear FP16 format"), two from 11 on.
    words = (str(entry[key]) for key in ("DataType", "Datatype", "Format/Datatype") if key in entry)
    return _elements(str(size) for size in entry.get("Dimensions", [])), next(words, "")


def _elements(sizes: Iterable[str]) -> int:
    """Of a tensor whose free sizes (no positive numbers) count as 1."""
    return math.prod(int(size) for size in sizes if size.strip().isdigit())


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
        if not layer.type or not (layer.attention or _MULTIPLYING.search(layer.kind)):
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
