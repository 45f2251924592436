"""What a plan's layers are read from, and which of them multiply in another type than the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from streamsplat_edge.export.plan_layers import PlanLayer, from_inspector, from_log, inspect, product_types


def test_a_plan_in_another_precision_is_listed() -> None:
    layers = [PlanLayer("a", "gemm", "fp32", ("x/MatMul",), False), PlanLayer("b", "kgen", "fp16", (), True)]
    found = inspect(layers, {"x/MatMul": "fp16"})
    assert found.wrong == ("fp32 instead of fp16: x/MatMul (a)",) and found.attentions == 1
    assert not inspect(layers, {"x/MatMul": "fp32"}).wrong
    # One kernel of two nodes multiplies in one type: that of one of them is not enough.
    fused = PlanLayer("f", "gemm", "fp16", ("x/MatMul", "y/MatMul"), False)
    found = inspect([fused], {"x/MatMul": "fp16", "y/MatMul": "fp32"})
    assert found.wrong == ("fp16 instead of fp16/fp32: x/MatMul, y/MatMul (f)",)
    # A fused attention counts whatever its kernel is called; what belongs to no product does not.
    attention = PlanLayer("mha", "kgen", "fp32", ("a/MatMul",), True)
    found = inspect([attention, PlanLayer("c", "gemm", "fp32", ("z/Add",), False)], {"a/MatMul": "fp16"})
    assert found.wrong == ("fp32 instead of fp16: a/MatMul (mha)",) and found.products == {"fp32": 1}


def test_quantised_products_may_be_raised_but_not_all_of_them() -> None:
    """The builder may dequantise a weight and multiply in floating point; where it does so everywhere, or
    computes another low type, the plan is not what was asked for."""
    low = PlanLayer("a", "gemm", "fp8", ("a",), False)
    raised = PlanLayer("b", "gemm", "fp16", ("b",), False)
    expected = {"a": "fp8", "b": "fp8"}
    found = inspect([low, raised], expected)
    assert found.wrong == () and found.raised == ("fp16 instead of fp8: b (b)",)
    assert found.products == {"fp8": 1, "fp16": 1} and found.to_json()["raised"] == list(found.raised)
    # So is one of which a part is in floating point in the graph as well.
    mixed = PlanLayer("m", "gemm", "fp16", ("b", "c"), False)
    found = inspect([low, mixed], {**expected, "c": "fp16"})
    assert found.wrong == () and found.raised == ("fp16 instead of fp16/fp8: b, c (m)",)
    for_nothing = inspect([raised], expected)
    assert for_nothing.wrong == ("fp16 instead of fp8: b (b)",) and for_nothing.raised == ()
    # What the graph has in floating point is not raised where it is in another one, or in a quantised type.
    for kind, graph, words in (
        ("fp16", "fp32", "fp16 instead of fp32"),
        ("fp8", "fp16", "fp8 instead of fp16"),
    ):
        found = inspect([low, PlanLayer("b", "gemm", kind, ("b",), False)], {"a": "fp8", "b": graph})
        assert found.wrong == (f"{words}: b (b)",) and found.raised == ()
    other = inspect([low, PlanLayer("b", "gemm", "int8", ("b",), False)], expected)
    assert other.wrong == ("int8 instead of fp8: b (b)",)


def _line(name: str, kind: str, inputs: list[str], constants: list[str]) -> str:
    """A layer as TensorRT-RTX 1.7 lists it; tensors as "Half 1,576,128"."""

    def tensors(texts: list[str]) -> str:
        each = (text.split() for text in texts)
        listed = (
            f"{{ Name: t, Dimensions: [{sizes}], Strides: [9,9], Datatype: {kind}, Format: x }}"
            for kind, sizes in each
        )
        return f"[{', '.join(listed)}]" if texts else "[]"

    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {tensors(inputs)}, Constants: {tensors(constants)}, "
        f"Outputs: {tensors(['Float 1,576,512'])}, TacticName: , StreamId: 0, "
        "Metadata: [ONNX Layer: a/MatMul][ONNX Layer: a/Add]"
    )


@pytest.mark.parametrize(
    ("inputs", "constants", "multiplies_in"),
    [
        # The weight decides, not a residual, a bias or a scale, whatever their order.
        (["Half 1,576,128", "Float 1,576,512"], ["Float 1", "Half 1,128,512", "Float 512"], "fp16"),
        (["Int8 1,576,128"], ["Int8 1,128,128", "Float 1"], "int8"),
        # Without a constant weight, the larger operand: a free size counts as 1.
        (["Half 1,576,128", "Float 1"], [], "fp16"),
        (["Float 9,9", "Half -1,100"], [], "fp16"),
        # Two operands of a quantised type are multiplied in it; one is dequantised.
        (["Int8 1,576,128", "Half 1,128,384"], [], "fp16"),
        (["FP8 1,8,8", "Half 1,128,384"], [], "fp16"),
        (["FP8 1,576,64", "FP8 1,64,576", "Float 1,9,9"], [], "fp8"),
        (["FP8 1,9,99", "Float 1,9,9", "FP8 1,2,2"], [], "fp8"),
        (["Int8 1,576,64"], [], "int8"),
        # A scalar that the product is scaled by is no weight.
        (["Half 1,576,128", "Half 1,128,9"], ["Float 1", "Float 1"], "fp16"),
        ([], [], ""),
    ],
)
def test_the_type_of_a_layer_in_the_log(inputs: list[str], constants: list[str], multiplies_in: str) -> None:
    (found,) = from_log(["Layers:", "", _line("__myl_Fc_myl0_5", "gemm", inputs, constants)])
    assert (found.kind, found.type, found.nodes) == ("gemm", multiplies_in, ("a/MatMul", "a/Add"))
    assert not found.attention


def test_an_attention_in_the_log_is_of_the_type_of_what_goes_in() -> None:
    """Not of a constant: it has no weight."""
    line = _line("_gemm_mha_v2_myl0_8", "kgen", ["Half 2,576,64", "Half 2,64,576"], ["Float 4,4"])
    (found,) = from_log([line])
    assert found.attention and (found.kind, found.type) == ("kgen", "fp16")


def test_the_type_of_a_product_in_the_graph(tmp_path: Path) -> None:
    """Of what it reads; of a quantised one, what its dequantised weight is stored in."""
    make, kinds = onnx.helper.make_node, onnx.TensorProto

    def quantised(name: str, kind: int) -> tuple[onnx.TensorProto, onnx.TensorProto, onnx.TensorProto]:
        return (
            onnx.helper.make_tensor(f"{name}.q", kind, [2, 2], [1, 0, 0, 1]),
            onnx.helper.make_tensor(f"{name}.scale", kinds.FLOAT, [], [0.5]),
            onnx.helper.make_tensor(f"{name}.zero", kind, [], [0]),
        )

    nodes = [
        make("DequantizeLinear", ["w.q", "w.scale", "w.zero"], ["w"], name="w/DequantizeLinear"),
        make("DequantizeLinear", ["v.q", "v.scale", "v.zero"], ["v"], name="v/DequantizeLinear"),
        make("MatMul", ["x", "w"], ["a"], name="int8"),
        make("MatMul", ["x", "v"], ["b"], name="fp8"),
        # Of two activations: what the second is quantised to, which only its zero point says.
        make("QuantizeLinear", ["x", "v.scale", "v.zero"], ["x.q"], name="x/QuantizeLinear"),
        make("DequantizeLinear", ["x.q", "v.scale", "v.zero"], ["x.d"], name="x/DequantizeLinear"),
        make("MatMul", ["x.d", "x.d"], ["i"], name="fp8 of two"),
        make("MatMul", ["x", "f"], ["c"], name="fp32"),
        make("MatMul", ["h", "unknown"], ["d"], name="fp16"),
        make("MatMul", ["unknown", "h"], ["e"], name="fp16 of the other"),
        make("Add", ["x", "f"], ["g"], name="sum"),
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", kinds.FLOAT, [2, 2]), value("h", kinds.FLOAT16, [2, 2])]
    stored = [*quantised("w", kinds.INT8), *quantised("v", kinds.FLOAT8E4M3FN)]
    stored.append(onnx.helper.make_tensor("f", kinds.FLOAT, [2, 2], [1, 0, 0, 1]))
    graph = onnx.helper.make_graph(nodes, "g", inputs, [value("a", kinds.FLOAT, [2, 2])], stored)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    found = product_types(tmp_path / "g.onnx")
    assert found == {
        "int8": "int8", "fp8": "fp8", "fp32": "fp32", "fp16": "fp16", "fp16 of the other": "fp16",
        "fp8 of two": "fp8",
    }  # fmt: skip


def _inspected(kind: str, *inputs: dict[str, Any], **more: Any) -> PlanLayer:
    """One layer by the inspector's JSON."""
    nodes = "[ONNX Layer: a/MatMul]\x1e[ONNX Layer: a/Add]"
    layer = {"Name": "l", "LayerType": kind, "Inputs": inputs, "Metadata": nodes, **more}
    (found,) = from_inspector(json.dumps({"Layers": [layer, "a name only"]}))
    return found


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Row major linear FP32 format", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half(64,1:8,64,64)", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),  # `Float` is a part of it
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear FP8 format", "fp8"),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_formats_of_tensorrt_10(words: str, kind: str) -> None:
    found = _inspected("gemm", {"Name": "x", "Dimensions": [2, 2], "Format/Datatype": words})
    assert (found.type, found.nodes, found.kind) == (kind, ("a/MatMul", "a/Add"), "gemm")


@pytest.mark.parametrize(("word", "kind"), [("Half", "fp16"), ("Float", "fp32"), ("BFloat16", "bf16")])
def test_types_of_tensorrt_11(word: str, kind: str) -> None:
    assert _inspected("gemm", {"Name": "x", "Format": "Row major linear", "DataType": word}).type == kind


@pytest.mark.parametrize(
    "kind",
    [
        "CaskConvolution",
        "CaskGemmConvolution",
        "CaskGemmMatrixMultiply",
        "CaskJitConv",
        "CaskDeconvolutionV2",
        "correlation",
        "fusion",
    ],
)
def test_kernels_of_tensorrt_are_products(kind: str) -> None:
    """Also where no format is known: their weights say it, not a residual that is added."""
    unknown = {"Dimensions": [-1, 4], "Format/Datatype": "N/A due to dynamic shapes"}
    residual = {"Dimensions": [9, 9], "Format/Datatype": "Row major linear FP32 format"}
    weights = {"Weights": {"Type": "Half", "Count": 64}, "Bias": {"Type": "Float", "Count": 4}}
    for tensor in (unknown, residual):
        layer = _inspected(kind, tensor, **weights)
        assert inspect([layer], {"a/MatMul": "fp16"}).products == {"fp16": 1}
        assert inspect([layer], {"a/MatMul": "fp32"}).wrong


def test_what_is_no_product_and_what_is_not_known_do_not_count() -> None:
    half = {"Dimensions": [2], "Format/Datatype": "Row major linear FP16 format"}
    for layer in (
        _inspected("Reformat", half),
        _inspected("PointWiseV2", half),
        _inspected("Convert", half),
        _inspected("gemm", {"Dimensions": [2], "Format/Datatype": "N/A due to dynamic shapes"}),
    ):
        found = inspect([layer], {"a/MatMul": "fp32"})
        assert found.products == {} and found.wrong == (), layer
