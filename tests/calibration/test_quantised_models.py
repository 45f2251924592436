"""Graphs of the real modules: Q/DQ where the recipe says, accepted by TensorRT-RTX, types in the built plan.

The small model has the structure of `base`, which itself, with keyed weights, takes minutes
(`make test-quantised`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch")
from quantised_graph import count, quantised_nodes
from small_model import ATTENDING, small_model

from streamsplat_edge.calibration.layers import Layer, find_layers, load_graph
from streamsplat_edge.calibration.qdq import insert
from streamsplat_edge.calibration.recipe import Recipe
from streamsplat_edge.calibration.sources import fp32
from streamsplat_edge.export.graphs import write_graph
from streamsplat_edge.export.plan_builder import BuildOptions, build_plan
from streamsplat_edge.export.precision import lowered
from streamsplat_edge.export.stages import StageGraph, stage_graphs
from streamsplat_edge.runtime.bundle import Bundle, StageVariant
from streamsplat_edge.runtime.engines import trt_api

ROOT = Path(__file__).resolve().parents[2]
# Halves of base of about the same work, so that `make test-quantised` runs them side by side.
HALVES = (("depth", "deform"), ("encode", "condition"))
# Of base in all: every linear layer and convolution of the transformers; per stage, how many are quantised.
BASE = {"depth": 79, "encode": 58, "condition": 72, "deform": 90}


def quantised(path: Path, stage: str, precision: str) -> tuple[onnx.ModelProto, list[Layer]]:
    """The graph of a file with all that the default recipe says, at made-up ranges, and those layers."""
    model = load_graph(path)
    decisions = Recipe().decide({stage: find_layers(model)}, precision)
    layers = [d.layer for d in decisions if d.quantise]
    result = insert(model, layers, {a: 4.0 for layer in layers for a in layer.activations}, precision)
    return result, layers


def check_counts(path: Path, stage: str, precision: str) -> onnx.ModelProto:
    model, layers = quantised(path, stage, precision)
    assert quantised_nodes(model) == [layer.node for layer in layers], "those and no others"
    activations = {layer.activations[0] for layer in layers}
    weights = {layer.weight for layer in layers}
    assert count(model) == {
        "QuantizeLinear": len(activations),
        "DequantizeLinear": len(activations) + len(weights),
    }
    return model


def parses(path: Path) -> None:
    """TensorRT-RTX's parser takes the file."""
    module = trt_api.load("tensorrt_rtx")
    logger = module.Logger(module.Logger.ERROR)
    builder = module.Builder(logger)
    network = trt_api.create_network(module, builder)
    parser = trt_api.make_parser(module, network, logger, builder.create_builder_config())
    accepted = parser.parse_from_file(str(path))
    assert accepted, [parser.get_error(i).desc() for i in range(parser.num_errors)]


def check_stage(path: Path, stage: str, scratch: Path) -> int:
    """Both precisions of a file; returns how many layers are quantised."""
    for precision in ("int8", "fp8"):
        model = check_counts(path, stage, precision)
        names = quantised_nodes(model)
        assert not [n for n in names if n.startswith(("model/", "deform/", "head")) or ".flow/" in n], "heads"
        out = scratch / f"{stage}.{precision}.onnx"
        onnx.save(model, out)
        if importlib.util.find_spec("tensorrt_rtx"):
            parses(out)
    return len(names)


def test_a_small_base_is_quantised_where_the_recipe_says(tmp_path: Path) -> None:
    """In fp16: of a block four linear layers (packed and output projection, two of the MLP), cross attention
    with two more and a projection of the condition; those of the upsamplers, and the projection of `encode`'s
    features."""
    expected = {"encode": 4 + 1 + 4, "deform": 1 + 4 + 3 + 1 + 4 + 1}
    for stage in stage_graphs(small_model(ATTENDING)):
        path = tmp_path / f"{stage.name}.onnx"
        write_graph(replace(stage, module=lowered(stage.module, "fp16")), path)
        assert check_stage(path, stage.name, tmp_path) == expected[stage.name]
        model, _ = quantised(path, stage.name, "int8")
        kinds = {w.data_type for w in model.graph.initializer if w.name.endswith(".scale")}
        assert kinds == {onnx.TensorProto.FLOAT16}, "they compute in the precision of the graph"


def test_the_demo_bundle_would_be_quantised_where_the_recipe_says(tmp_path: Path) -> None:
    bundle = Bundle.load(ROOT / "demo" / "tiny.bundle")
    for stage in bundle.stage_names:
        found = check_stage(fp32(bundle, stage).path, stage, tmp_path)
        assert found >= 3 if stage != "depth" else found == 0, "its small depth network stays"


@pytest.mark.plans
@pytest.mark.parametrize(("precision", "capabilities"), [("int8", ("8.6",)), ("fp8", ("8.9", "12.0"))])
def test_plans_of_the_demo_bundle_compute_in_it(
    precision: str, capabilities: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="plans need TensorRT-RTX")
    bundle = Bundle.load(ROOT / "demo" / "tiny.bundle")
    module = trt_api.load("tensorrt_rtx")
    for stage in bundle.stage_names:
        variant = fp32(bundle, stage)
        path = tmp_path / f"{stage}.onnx"
        model, layers = quantised(variant.path, stage, precision)
        onnx.save(model, path)
        file = StageVariant(stage, path, precision, (), variant.inputs, variant.outputs, "0" * 64)
        for capability in capabilities:
            _, found = build_plan(file, module, BuildOptions("tensorrt_rtx", capabilities=(capability,)))
            # Of a packed projection the builder dequantises both operands.
            assert all("packed_proj" in words for words in found.raised), found.raised
            count = found.products.get(precision, 0) + len(found.raised)
            assert count >= 0.8 * len(layers), (stage, capability, found.products)


@pytest.mark.plans
@pytest.mark.parametrize("stages", HALVES, ids="-".join)
def test_base_is_quantised_where_the_recipe_says(stages: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="plans need TensorRT-RTX")
    pytest.importorskip("transformers", reason="base has stages of published networks")
    module = trt_api.load("tensorrt_rtx")
    seen = []
    for stage in base_stages():
        if stage.name not in stages:
            continue
        seen.append(stage.name)
        path = tmp_path / f"{stage.name}.onnx"
        graph = write_graph(replace(stage, module=lowered(stage.module, "fp16")), path)
        for precision in ("int8", "fp8"):
            model = check_counts(path, stage.name, precision)
            assert len(quantised_nodes(model)) == BASE[stage.name]
            out = tmp_path / f"{stage.name}.{precision}.onnx"
            onnx.save(model, out)
            del model
            parses(out)
        variant = StageVariant(stage.name, out, "fp8", (), graph.inputs, graph.outputs, "0" * 64)
        for capability in ("8.9", "12.0"):
            _, found = build_plan(variant, module, BuildOptions("tensorrt_rtx", capabilities=(capability,)))
            # Projections of query, key and value become one product; of a packed one the builder dequantises
            # the weight. `build_plan` has compared the types of all others.
            assert found.products.get("fp8", 0) >= 0.6 * BASE[stage.name], found.products
            assert all("packed_proj" in words for words in found.raised), found.raised
        for file in tmp_path.iterdir():
            file.unlink()
    assert sorted(seen) == sorted(stages)


def test_the_halves_are_all_stages() -> None:
    assert sorted(name for half in HALVES for name in half) == sorted(BASE)


def base_stages() -> Iterator[StageGraph]:
    from test_plans import stages_of

    return stages_of("base")
