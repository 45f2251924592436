"""The computed model of the time on devices: counts of graphs known by hand, the roofline, what is marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_bundle import build_fake_bundle
from onnx import TensorProto, helper, numpy_helper
from video_samples import sample_clip

from streamsplat_edge.benchmarks import table
from streamsplat_edge.benchmarks.device_model import __main__ as command
from streamsplat_edge.benchmarks.device_model import result as report
from streamsplat_edge.benchmarks.device_model.counting import GraphCost, NodeCost, count
from streamsplat_edge.benchmarks.device_model.model import (
    Assumptions,
    Rates,
    RenderWork,
    predict,
    published,
    rates_of,
    render_time,
    stage_time,
)
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import InputError


def model(
    nodes: list[Any],
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[int, ...]],
    weights: dict[str, tuple[int, ...]] | None = None,
) -> onnx.ModelProto:
    def value(name: str, shape: tuple[Any, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    initializers = [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in (weights or {}).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [value(n, s) for n, s in inputs.items()],
        [value(n, s) for n, s in outputs.items()],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def one(
    operator: str, inputs: dict[str, Any], out: Any, weights: dict[str, Any], **attributes: Any
) -> NodeCost:
    names = [*inputs, *weights]
    node = helper.make_node(operator, names, ["y"], **attributes)
    (cost,) = count(model([node], inputs, {"y": out}, weights)).nodes
    return cost


def test_matrix_work_by_hand() -> None:
    product = one("MatMul", {"x": (3, 4, 8)}, (3, 4, 16), {"w": (8, 16)})
    assert product.matrix_ops == 2 * 3 * 4 * 16 * 8 and product.weighted
    assert (
        product.elements == 3 * 4 * 8 + 3 * 4 * 16 and product.weights == 8 * 16 and product.vector_ops == 0
    )
    attention = one("MatMul", {"q": (2, 5, 7), "k": (2, 7, 5)}, (2, 5, 5), {})
    assert attention.matrix_ops == 2 * 2 * 5 * 5 * 7 and not attention.weighted
    gemm = one("Gemm", {"x": (8, 4)}, (4, 16), {"w": (8, 16), "b": (16,)}, transA=1)
    assert gemm.matrix_ops == 2 * 4 * 16 * 8 and gemm.vector_ops == 4 * 16


def test_convolutions_by_hand() -> None:
    plain = one(
        "Conv",
        {"x": (1, 6, 10, 12)},
        (1, 8, 5, 6),
        {"w": (8, 3, 3, 3)},
        group=2,
        strides=[2, 2],
        pads=[1] * 4,
    )
    assert plain.matrix_ops == 2 * 8 * 5 * 6 * (3 * 3 * 3)
    wide = one("ConvTranspose", {"x": (1, 6, 5, 7)}, (1, 4, 10, 14), {"w": (6, 4, 2, 2)}, strides=[2, 2])
    assert wide.matrix_ops == 2 * 6 * 5 * 7 * (4 * 2 * 2)


def test_fusion_views_and_moves() -> None:
    """x -> MatMul -> Add (fused) -> Sigmoid (fused) -> Reshape (free) -> Transpose (moves) -> y."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"], axis=1),
        helper.make_node("Transpose", ["e"], ["y"], perm=[1, 0]),
    ]
    cost = count(model(nodes, {"x": (4, 8)}, {"y": (16, 4)}, {"w": (8, 16), "b": (16,)}))
    assert [node.operator for node in cost.nodes] == ["MatMul", "Add", "Sigmoid", "Transpose"]
    assert [node.fused for node in cost.nodes] == [False, True, True, False] and cost.kernels == 2
    assert [node.elements for node in cost.nodes] == [4 * 8, 0, 4 * 16, 2 * 4 * 16]
    assert cost.vector_ops == 2 * 4 * 16 and cost.outer_elements == 4 * 8 + 4 * 16
    assert cost.weights == 8 * 16 + 16


def test_what_is_read_twice_reaches_memory() -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    cost = count(model(nodes, {"x": (10,)}, {"y": (10,)}))
    assert [node.elements for node in cost.nodes] == [20, 10, 20]


def test_unknown_shapes_and_operators_are_refused() -> None:
    with pytest.raises(InputError, match="shape of x is not known"):
        count(model([helper.make_node("Exp", ["x"], ["y"])], {"x": ("batch",)}, {"y": (1,)}))
    with pytest.raises(InputError, match="Einsum cannot be counted"):
        count(model([helper.make_node("Einsum", ["x"], ["y"], equation="i->i")], {"x": (3,)}, {"y": (3,)}))


COST = GraphCost(
    (
        NodeCost("a", "MatMul", 8_000, True, 0, 100, 50, False),
        NodeCost("b", "MatMul", 4_000, False, 0, 3_000, 0, False),
        NodeCost("c", "Add", 0, False, 500, 40, 0, True),
    ),
    60,
)
RATES = Rates("D", {"fp16": 1e6, "int8": 4e6}, 1e5, 1e6, 0.5, 0.25, 1e-3)


def test_roofline_by_hand() -> None:
    """fp16: arithmetic of a, b, c is 8, 4 and 5 ms; memory of all is small for the bound."""
    time = stage_time(COST, RATES, "fp16")
    assert time.bound_ms == pytest.approx(17.0)
    # a: 16 ms of arithmetic; b: 6,000 bytes at a quarter of 1e6 is 24 ms; c: 10 ms; two kernels.
    assert time.estimate_ms == pytest.approx(16 + 24 + 10 + 2)


def test_int8_counts_only_products_with_weights() -> None:
    time = stage_time(COST, RATES, "int8")
    assert time.bound_ms == pytest.approx(2 + 4 + 5)
    assert time.estimate_ms == pytest.approx(4 + 24 + 10 + 2)


def test_memory_can_be_the_bound() -> None:
    slow = Rates("D", {"fp16": 1e12}, 1e12, 1e3, 1.0, 1.0, 0.0)
    assert stage_time(COST, slow, "fp16").bound_ms == pytest.approx((60 * 2 + 50 * 2), rel=1e-6)


def test_render_and_frame() -> None:
    work = RenderWork(tile_pairs=10, gaussians=3, pixels=4)
    time = render_time(work, RATES)
    assert time.bound_ms == pytest.approx((3 * 40 + 4 * 20) * 1e-3)
    assert time.estimate_ms == pytest.approx(1e3 * 10 * 256 * 14 / (1e5 * 0.5) + 2)
    result = predict({"encode": COST, "deform": COST}, work, 4, RATES, "fp16")
    assert result["status"] == "computed, not measured"
    assert result["frame"]["bound_ms"] == pytest.approx(2 * 17.0 / 4 + time.bound_ms)


def test_every_device_has_sources() -> None:
    names = [device["name"] for device in published()]
    for wanted in ("Orin NX", "AGX Orin", "Thor", "RTX 4090", "H100"):
        assert any(wanted in name for name in names)
    for device in published():
        assert device["sources"] and all(s["url"].startswith("https://") for s in device["sources"])
        assert rates_of(device, Assumptions()).matrix["fp16"] < 1e15 and device["derived"]
        assert device["int8"] is None or device["int8"] >= 2 * device["fp16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device_model")
    build_fake_bundle(folder / "fake.bundle")
    sample_clip(folder / "clip.mp4", 9)
    return folder


def run(folder: Path, *options: str) -> dict[str, Any]:
    out = folder / "out.json"
    arguments = [str(folder / "fake.bundle"), "--clip", str(folder / "clip.mp4"), "--json", str(out)]
    assert command.main([*arguments, "--threads", "1", *options]) == 0
    return json.loads(out.read_text())


def test_report_says_computed_and_how_far_off(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(folder)
    assert result["status"] == "computed, not measured" and result["measured_gpus"] == "none"
    computed = [d for d in result["devices"] if "stages" in d]
    assert len(computed) == 9 and all(d["status"] == "computed, not measured" for d in computed)
    (here,) = result["errors"]
    assert set(here["stages"]) == {"encode", "deform", "render"}
    for values in here["stages"].values():
        assert 0 < values["bound_ms"] <= values["estimate_ms"]
        assert values["error"] == pytest.approx(values["estimate_ms"] / values["measured_p50_ms"] - 1)
    text = table.document([folder / "out.json"])
    for printed in (text, capsys.readouterr().out):
        assert "computed, not measured" in printed and "No GPU was measured" in printed
        assert "T5000), int8: not computed: no published rate" in printed
    assert "](https://" in text


def test_gpus_of_a_bench_result_are_compared(folder: Path) -> None:
    """A result of a 4090 with TensorRT in fp16 gives a second row of errors."""
    model_ = Bundle.load(folder / "fake.bundle").model
    latency = {stage: {"count": 3, "p50": 2.0, "min": 1.0} for stage in ("encode", "deform", "render")}
    plan = {stage: "TensorRT 10.3 NVIDIA GeForce RTX 4090 fp16" for stage in ("encode", "deform")}
    bench = {
        "format": "streamsplat-bench",
        "version": 1,
        "machine": {"device": None},
        "cuda": {"gpus": [{"name": "NVIDIA GeForce RTX 4090"}]},
        "bundle": {"preset": model_.preset, "width": model_.width, "height": model_.height},
        "backends": [
            {
                "name": "tensorrt",
                "title": "TensorRT",
                "status": "measured",
                "stages": plan,
                "latency_ms": latency,
            },
            {"name": "openvino", "title": "OpenVINO", "status": "not available", "reason": "-"},
        ],
    }
    path = folder / "bench.json"
    path.write_text(json.dumps(bench))
    result = run(folder, "--measured", str(path))
    assert [entry["device"].split(",")[0] for entry in result["errors"]][1:] == ["GeForce RTX 4090"]
    assert result["errors"][1]["stages"]["encode"]["measured_p50_ms"] == 2.0 and result["measured_gpus"] == 1
    bench["bundle"]["width"] = 999
    path.write_text(json.dumps(bench))
    with pytest.raises(InputError, match="999x"):
        report.compute(folder / "fake.bundle", str(folder / "clip.mp4"), 9, None, 1, Assumptions(), [path])
