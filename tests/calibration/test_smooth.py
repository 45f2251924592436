"""SmoothQuant: the graph computes the same, outliers are gone, and INT8 is the better for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_bundle import ATTENTION, encode_graph, make_graph

from streamsplat_edge.calibration.layers import find_layers
from streamsplat_edge.calibration.qdq import insert
from streamsplat_edge.calibration.sessions import open_session
from streamsplat_edge.calibration.smooth import factors_of, smooth
from streamsplat_edge.runtime.bundle import TensorSpec

CHANNELS = 16


def normed(extra: str = "", half: bool = False) -> onnx.ModelProto:
    """x * gain -> two linear layers; `extra` is another reader of what they read."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((CHANNELS, 8)).astype(np.float32) for name in "vw"}
    constants = {"gain": np.ones(CHANNELS, np.float32), **weights}
    constants["gain"][3] = 100  # the outlier
    make = onnx.helper.make_node
    nodes = [make("Mul", ["x", "gain"], ["normed"], name="norm/Mul")]
    outputs = [TensorSpec("a", (5, 8)), TensorSpec("b", (5, 8))]
    read = "normed"
    if half:
        nodes.append(make("Cast", ["normed"], ["low"], name="cast", to=onnx.TensorProto.FLOAT16))
        read = "low"
        constants |= {n: constants[n].astype(np.float16) for n in "vw"}
    results = ["a16", "b16"] if half else ["a", "b"]
    nodes += [make("MatMul", [read, w], [y], name=f"{w}/MatMul") for w, y in zip("vw", results, strict=True)]
    if half:
        nodes += [make("Cast", [y], [y[0]], name=y, to=onnx.TensorProto.FLOAT) for y in results]
    if extra:
        nodes.append(make(extra, ["normed"], ["more"], name="other"))
        outputs.append(TensorSpec("more", (5, CHANNELS)))
    return make_graph(nodes, constants, [TensorSpec("x", (5, CHANNELS))], outputs)


X = np.random.default_rng(1).standard_normal((5, CHANNELS)).astype(np.float32)


def run(model: onnx.ModelProto) -> np.ndarray:
    return np.asarray(open_session(model, literal=True).run(["a", "b"], {"x": X}))


def maxima(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    gain = next(numpy_helper.to_array(w) for w in model.graph.initializer if w.name == "gain")
    return dict.fromkeys(("v/MatMul", "w/MatMul"), np.abs(X * gain).max(0))


def error_of_int8(model: onnx.ModelProto) -> float:
    exact = run(normed())
    layers = find_layers(model)
    gain = next(numpy_helper.to_array(w) for w in model.graph.initializer if w.name == "gain")
    got = run(insert(model, layers, {layers[0].activations[0]: float(np.abs(X * gain).max())}, "int8"))
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_the_product_stays_and_the_outlier_goes(half: bool) -> None:
    model, before = normed(half=half), normed(half=half)
    nodes = smooth(model, find_layers(model), maxima(model), 0.5)
    assert nodes == ("v/MatMul", "w/MatMul")
    np.testing.assert_allclose(
        run(model), run(before), rtol=2e-2 if half else 1e-4, atol=0.3 if half else 1e-3
    )
    spread = [np.ptp(np.log10(maxima(m)["v/MatMul"])) for m in (before, model)]
    assert spread[1] < 0.7 * spread[0]
    assert error_of_int8(model) < 0.5 * error_of_int8(before)


def test_factors_are_those_of_the_paper() -> None:
    activation, weight = np.array([1.0, 100.0, 0.0]), np.array([4.0, 0.25, 1.0])
    assert factors_of(activation, weight, 0.5)[:2] == pytest.approx([0.5, 20.0])
    assert factors_of(activation, weight, 0.25)[0] == pytest.approx(1 / 4**0.75)
    assert np.all(factors_of(activation, weight, 0.5) > 0)


def test_what_others_read_is_left_alone() -> None:
    for model in (normed("Relu"), normed("Identity")):
        before = model.SerializeToString()
        assert smooth(model, find_layers(model), maxima(model), 0.5) == ()
        assert model.SerializeToString() == before
    one_kept = normed()
    layers = [layer for layer in find_layers(one_kept) if layer.node == "v/MatMul"]
    assert smooth(one_kept, layers, maxima(one_kept), 0.5) == ()


def test_in_a_stage() -> None:
    graph, inputs, _ = encode_graph()
    exact = open_session(graph).run(None, {"rgbd": np.ones(inputs[0].shape, np.float32)})
    node = f"{ATTENTION}.proj/MatMul"
    layers = find_layers(graph)
    seen = {layer.node: np.ones(16, np.float32) for layer in layers}
    seen[node] = np.linspace(0.1, 9, 16, dtype=np.float32)
    assert smooth(graph, layers, seen, 0.5) == (node,)
    got = open_session(graph).run(None, {"rgbd": np.ones(inputs[0].shape, np.float32)})
    for a, b in zip(got, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
