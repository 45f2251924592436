"""Does each file of a bundle hold what the manifest says of its precision?

Files of one stage have the same inputs and outputs, so that an engine takes any of them for any other. Which
is which shows in the types of their tensors and in their operators.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import onnx

from ..runtime.bundle import Bundle, StageVariant
from ..runtime.errors import MismatchError
from ..runtime.onnx_references import check_self_contained
from .plan_layers import PRODUCT_OPERATORS

_KINDS: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
}
# Scales of activations are computed while these run, instead of standing in the graph.
_DYNAMIC_OPERATORS = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})
_PRODUCTS = PRODUCT_OPERATORS | _DYNAMIC_OPERATORS
_QUANTISED = frozenset({"int8", "int8-dynamic", "fp8"})
# First word of a precision -> what its files must not hold. A quantised graph may be fp16 between products.
_FOREIGN = {
    "fp32": _QUANTISED | {"fp16", "bf16"},
    "fp16": _QUANTISED | {"bf16"},
    "bf16": _QUANTISED | {"fp16"},
    "int8": frozenset({"fp8"}),
    "fp8": frozenset({"int8", "int8-dynamic"}),
}
# ... and what they must. Not fp32, which all may hold, nor bf16: before operator set 22 convolutions stay in
# fp32 in a bf16 export, and a stage may hold nothing else.
_OWN = {"fp16": "fp16", "int8": "int8", "fp8": "fp8"}


def check_contents(bundle: Bundle) -> None:
    """Compare the graph of every stage file with the precision that the manifest gives it.

    Precisions whose first word is not known (`fp32`, `fp16`, `bf16`, `int8`, `fp8`) are not compared, nor is
    what a stage without products should hold.

    Raises:
        MismatchError: a file is of another precision; the message names it and what it holds.
        BundleError: a file is no ONNX graph, or keeps tensors where the manifest does not say.
    """
    for stage in bundle.stage_names:
        for variant in bundle.variants(stage):
            check_variant(variant)


def check_variant(variant: StageVariant) -> None:
    """The same for one stage file. Raises as `check_contents`."""
    words = re.split(r"[^a-z0-9]", variant.precision)
    if words[0] not in _FOREIGN:
        return
    check_self_contained(variant.path, variant.weights)
    found, multiplies = _kinds(variant.path)
    own = _OWN.get(words[0])
    if own == "int8" and "dynamic" in words:
        own = "int8-dynamic"
    foreign = found & _FOREIGN[words[0]]
    if foreign or (multiplies and own and own not in found):
        holds = ", ".join(sorted(foreign or found)) or "fp32 alone"
        raise MismatchError(
            f"{variant.path.name} holds {holds}; the manifest says that it is the {variant.precision} file "
            f"of stage `{variant.stage}`.",
            "The manifest does not describe this file: export the bundle again, or quantise it again.",
        )


def _kinds(path: Path) -> tuple[frozenset[str], bool]:
    """Kinds of numbers beside fp32 in a graph, and whether it multiplies."""
    graph = onnx.load(path, load_external_data=False).graph
    operators = {node.op_type for node in graph.node}
    found = {_KINDS[tensor.data_type] for tensor in _tensors(graph) if tensor.data_type in _KINDS}
    if operators & _DYNAMIC_OPERATORS:
        found |= {"int8", "int8-dynamic"}
    return frozenset(found), bool(operators & _PRODUCTS)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
