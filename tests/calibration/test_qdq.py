"""Q/DQ in graphs: where, how often, in which types, and computing what quantisation is defined to compute."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from quantised_graph import count, quantised_nodes
from small_bundle import ATTENTION, KEPT, QUANTISED, deform_graph, encode_graph, make_graph

from streamsplat_edge.calibration.layers import find_layers, is_quantised, load_graph
from streamsplat_edge.calibration.qdq import insert
from streamsplat_edge.calibration.ranges import FORMATS
from streamsplat_edge.calibration.recipe import Recipe
from streamsplat_edge.calibration.sessions import open_session
from streamsplat_edge.runtime.bundle import TensorSpec
from streamsplat_edge.runtime.errors import InputError

GRAPHS = {"encode": encode_graph()[0], "deform": deform_graph()[0]}


def chosen(stage: str, precision: str = "int8"):
    decisions = Recipe().decide({stage: find_layers(GRAPHS[stage])}, precision)
    return [d.layer for d in decisions if d.quantise]


def quantised(stage: str, precision: str = "int8", clip: float = 3.0) -> onnx.ModelProto:
    layers = chosen(stage, precision)
    return insert(GRAPHS[stage], layers, {a: clip for layer in layers for a in layer.activations}, precision)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("stage", ["encode", "deform"])
def test_q_and_dq_are_where_the_recipe_says_and_nowhere_else(stage: str, precision: str) -> None:
    model = quantised(stage, precision)
    onnx.checker.check_model(model, full_check=True)
    assert tuple(quantised_nodes(model)) == QUANTISED[stage]
    layers = chosen(stage)
    activations = {a for layer in layers for a in layer.activations}
    assert count(model) == {
        "QuantizeLinear": len(activations),
        "DequantizeLinear": len(activations) + len({layer.weight for layer in layers}),
    }
    kinds = {w.data_type for w in model.graph.initializer if w.name.endswith(".quantised")}
    assert kinds == {onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT8E4M3FN}
    assert all(not np.any(numpy_helper.to_array(w).astype(float)) for w in model.graph.initializer
               if w.name.endswith(".zero_point"))  # fmt: skip
    assert {n.name for n in model.graph.node if n.op_type in ("MatMul", "Conv")} == {
        *QUANTISED[stage],
        *KEPT[stage],
    }, "nothing is renamed or lost"
    names = [w.name for w in model.graph.initializer]
    assert len(set(names)) == len(names)
    assert not {layer.weight for layer in layers} & set(names), "weights are there once, in the low format"
    assert is_quantised(model) and not is_quantised(GRAPHS[stage])


def linear(weight: np.ndarray, kind: str = "MatMul", **attributes: int) -> onnx.ModelProto:
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], name=f"layer/{kind}", **attributes)
    rows, columns = weight.shape if not attributes.get("transB") else weight.T.shape
    io = [TensorSpec("x", (5, rows))], [TensorSpec("y", (5, columns))]
    return make_graph([node], {"w": weight}, *io)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "transposed"])
def test_a_layer_computes_what_numpy_computes(kind: str, precision: str) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((6, 4)) * [0.1, 1, 10, 100]).astype(np.float32)
    x = rng.standard_normal((5, 6)).astype(np.float32) * 2
    x[0, 0] = 50  # beyond the clip
    clip = 4.0
    graph = {
        "MatMul": linear(weight),
        "Gemm": linear(weight, "Gemm"),
        "transposed": linear(np.ascontiguousarray(weight.T), "Gemm", transB=1),
    }[kind]
    model = insert(graph, find_layers(graph), {"x": clip}, precision)
    got = open_session(model, literal=True).run(None, {"x": x})[0]

    def low(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
        if precision == "int8":
            return np.clip(np.rint(values / scale), -127, 127) * scale
        scaled = np.clip(values / scale, -448, 448).astype(np.float32)
        return scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    top = FORMATS[precision].top
    expected = low(x, np.float32(clip / top)) @ low(weight, np.abs(weight).max(0) / np.float32(top))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-4)
    assert np.abs(got - x @ weight).max() > 1, "the clip is felt"


def test_a_convolution_has_a_scale_per_output_channel() -> None:
    model = quantised("encode")
    tensors = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    before = {w.name: numpy_helper.to_array(w) for w in GRAPHS["encode"].graph.initializer}
    low, scale = tensors["refine_weight.quantised"], tensors["refine_weight.scale"]
    assert low.shape == before["refine_weight"].shape and scale.shape == (8,)
    assert np.abs(low.astype(int)).reshape(8, -1).max(1).tolist() == [127] * 8
    restored = low * scale[:, None, None, None]
    assert np.abs(restored - before["refine_weight"]).max() <= scale.max() / 2 + 1e-7
    axes = {a.i for n in model.graph.node for a in n.attribute if n.name == "refine_weight/DequantizeLinear"}
    assert axes == {0}


def test_layers_that_read_the_same_share_a_pair() -> None:
    weight = np.eye(3, dtype=np.float32)
    nodes = [onnx.helper.make_node("MatMul", ["x", w], [y], name=y) for w, y in (("v", "a"), ("w", "b"))]
    io = [TensorSpec("x", (2, 3))], [TensorSpec("a", (2, 3)), TensorSpec("b", (2, 3))]
    graph = make_graph(nodes, {"v": weight, "w": 2 * weight}, *io)
    model = insert(graph, find_layers(graph), {"x": 1.0}, "int8")
    assert count(model) == {"QuantizeLinear": 1, "DequantizeLinear": 3}
    assert quantised_nodes(model) == ["a", "b"]


def test_half_precision_graphs_keep_their_types() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16)
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["x"], ["half"], name="cast", to=onnx.TensorProto.FLOAT16),
        make("MatMul", ["half", "w"], ["low"], name="layer/MatMul"),
        make("Cast", ["low"], ["y"], name="widen", to=onnx.TensorProto.FLOAT),
    ]
    graph = make_graph(nodes, {"w": weight}, [TensorSpec("x", (2, 4))], [TensorSpec("y", (2, 3))])
    model = insert(graph, find_layers(graph), {"half": 3.0}, "int8")
    onnx.checker.check_model(model, full_check=True)
    scales = [w.data_type for w in model.graph.initializer if w.name.endswith(".scale")]
    assert scales == [onnx.TensorProto.FLOAT16] * 2
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    got = open_session(model, literal=True).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, x @ weight.astype(np.float32), atol=0.1)
    tiny = insert(graph, find_layers(graph), {"half": 1e-9}, "int8")
    (scale,) = [w for w in tiny.graph.initializer if w.name == "half.scale"]
    assert numpy_helper.to_array(scale) >= np.finfo(np.float16).tiny, "no subnormal, no zero"


def test_int8_graphs_load_in_onnx_runtime_as_users_load_them() -> None:
    session = onnxruntime.InferenceSession(
        quantised("encode").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rgbd = np.random.default_rng(0).random((1, 4, 16, 32), np.float32)
    outputs = session.run(None, {"rgbd": rgbd})
    exact = open_session(GRAPHS["encode"]).run(None, {"rgbd": rgbd})
    for got, truth in zip(outputs, exact, strict=True):
        assert 0 < np.linalg.norm(got - truth) / np.linalg.norm(truth) < 0.05


def test_what_could_be_quantised() -> None:
    layers = {layer.node: layer for layer in find_layers(GRAPHS["encode"])}
    assert set(layers) == {*QUANTISED["encode"], *KEPT["encode"]}
    assert layers[f"{ATTENTION}/MatMul"].is_product
    assert layers[f"{ATTENTION}/MatMul_2"].activations == ("shares", "projected")
    transposed = linear(np.ones((3, 4), np.float32), "Gemm", transA=0, transB=1)
    assert find_layers(transposed)[0].axis == 0
    nodes = [onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", group=2)]
    grouped = make_graph(nodes, {"w": np.ones((4, 1, 2, 2), np.float32)},
                         [TensorSpec("x", (1, 4, 3, 3))], [TensorSpec("y", (1, 2, 4, 4))])  # fmt: skip
    assert find_layers(grouped) == [], "its scales do not lie along one axis"


def test_products_of_activations_where_a_recipe_asks_for_them() -> None:
    (layer,) = [x for x in find_layers(GRAPHS["encode"]) if x.node == f"{ATTENTION}/MatMul_2"]
    model = insert(GRAPHS["encode"], [layer], {"shares": 1.0, "projected": 2.0}, "fp8")
    onnx.checker.check_model(model, full_check=True)
    assert quantised_nodes(model) == [layer.node]
    assert count(model) == {"QuantizeLinear": 2, "DequantizeLinear": 2}


def test_refusals() -> None:
    layers = chosen("deform")
    with pytest.raises(InputError, match=r"no range for changes, which decoder.mix/MatMul reads"):
        insert(GRAPHS["deform"], layers, {}, "int8")
    with pytest.raises(InputError, match="no range"):
        insert(GRAPHS["deform"], layers, {"changes": 0.0}, "int8")
    old = onnx.ModelProto()
    old.CopyFrom(GRAPHS["deform"])
    old.opset_import[0].version = 18
    with pytest.raises(InputError, match="operator set 18, 19 is needed"):
        insert(old, layers, {"changes": 1.0}, "int8")


def test_weights_that_products_share_are_found(tmp_path: Path) -> None:
    """One tensor, sliced and transposed for each of two products, as the exporter writes cross attention."""
    rng = np.random.default_rng(0)
    constants = {
        "packed": rng.standard_normal((6, 4)).astype(np.float32),
        "zero": np.array([0]), "three": np.array([3]), "six": np.array([6]),
    }  # fmt: skip
    make = onnx.helper.make_node
    nodes = []
    for i, (start, end) in enumerate((("zero", "three"), ("three", "six"))):
        nodes.append(make("Slice", ["packed", start, end, "zero"], [f"part_{i}"], name=f"slice_{i}"))
        nodes.append(make("Transpose", [f"part_{i}"], [f"w_{i}"], name=f"transpose_{i}", perm=[1, 0]))
        nodes.append(make("MatMul", ["x", f"w_{i}"], [f"y_{i}"], name=f"product_{i}"))
    nodes.append(make("MatMul", ["y_0", "turned"], ["z"], name="attention"))
    nodes.insert(-1, make("Transpose", ["y_1"], ["turned"], name="turn", perm=[1, 0]))
    io = [TensorSpec("x", (5, 4))], [TensorSpec("z", (5, 5))]
    onnx.save(make_graph(nodes, constants, *io), tmp_path / "graph.onnx")
    model = load_graph(tmp_path / "graph.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(x.node, x.is_product) for x in find_layers(model)] == [
        ("product_0", False),
        ("product_1", False),
        ("attention", True),
    ]
    assert {w.name for w in model.graph.initializer} == {"w_0", "w_1"}
    assert [n.name for n in model.graph.node] == ["product_0", "product_1", "turn", "attention"]
    x = rng.standard_normal((5, 4)).astype(np.float32)
    before = open_session(onnx.load(tmp_path / "graph.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(open_session(model).run(None, {"x": x})[0], before, rtol=1e-5)
