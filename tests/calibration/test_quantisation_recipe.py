"""Rules: the first that fits decides, the user's come first, and what they name must exist."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from small_bundle import ATTENTION, KEPT, QUANTISED, deform_graph, encode_graph

from streamsplat_edge.calibration.layers import find_layers
from streamsplat_edge.calibration.recipe import Recipe, keep_also, to_json
from streamsplat_edge.runtime.errors import InputError

LAYERS = {"encode": find_layers(encode_graph()[0]), "deform": find_layers(deform_graph()[0])}
MLP = "encoder.blocks.0.mlp/MatMul"


def quantised(recipe: Recipe, precision: str = "int8") -> list[str]:
    return [d.layer.node for d in recipe.decide(LAYERS, precision) if d.quantise]


def write(path: Path, *rules: object, **changes: object) -> Path:
    content = {"format": "streamsplat-quantisation-recipe", "version": 1, "rules": list(rules), **changes}
    path.write_text(json.dumps(content))
    return path


def test_the_default_rules_decide_every_layer_with_a_reason() -> None:
    decisions = Recipe().decide(LAYERS, "int8")
    found = {(d.stage, d.layer.node): d for d in decisions}
    assert {key for key, d in found.items() if d.quantise} == {
        (s, n) for s in QUANTISED for n in QUANTISED[s]
    }
    assert {key for key, d in found.items() if not d.quantise} == {(s, n) for s in KEPT for n in KEPT[s]}
    assert all(d.reason and d.reason != "no rule fits" for d in decisions)
    assert "attention" in found["encode", f"{ATTENTION}/MatMul"].reason
    assert "output heads" in found["deform", "deform/MatMul"].reason
    assert "embedding" in found["encode", "stem/Conv"].reason


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_every_product_of_the_demo_model_is_kept_for_what_it_is(precision: str) -> None:
    """Matching multiplies two frames with one another, attention a frame with itself."""
    demo = Path(__file__).parents[2] / "demo" / "tiny.bundle"
    layers = {s: find_layers(onnx.load(demo / f"{s}.onnx")) for s in ("encode", "deform")}
    products = [d for d in Recipe().decide(layers, precision) if d.layer.is_product]
    attention = {"int8": "attention: ", "fp8": "product of two activations: "}[precision]
    for stage, count, begins in (("encode", 12, attention), ("deform", 3, "matching: ")):
        found = [d for d in products if d.stage == stage]
        assert len(found) == count and not any(d.quantise for d in found)
        assert {d.reason.startswith(begins) for d in found} == {True}, (stage, begins)


def test_keep_comes_first_and_takes_patterns() -> None:
    assert MLP not in quantised(Recipe.load(keep=[MLP]))
    assert quantised(Recipe.load(keep=["encode:*"])) == list(QUANTISED["deform"])
    assert quantised(Recipe.load(keep=["*.m?p/*", "deform:decoder.mix/*"])) == [
        f"{ATTENTION}.proj/MatMul",
        "refine/Conv",
    ]


def test_a_file_comes_before_the_defaults(tmp_path: Path) -> None:
    product = {"kinds": ["product"], "precisions": ["fp8"], "quantise": True, "reason": "fused here"}
    heads = {"stages": ["deform"], "nodes": "deform/MatMul", "quantise": True, "reason": "try"}
    recipe = Recipe.load(write(tmp_path / "r.json", product, heads))
    assert f"{ATTENTION}/MatMul" in quantised(recipe, "fp8") and "deform/MatMul" in quantised(recipe)
    assert f"{ATTENTION}/MatMul" not in quantised(recipe), "that rule is for fp8"
    assert "deform/MatMul" not in quantised(Recipe.load(tmp_path / "r.json", ["deform/MatMul"]))


def test_what_is_stored() -> None:
    stored = to_json(keep_also(Recipe().decide(LAYERS, "int8"), [("deform", "decoder.mix/MatMul")], "gate"))
    assert stored["encode"]["quantised"] == list(QUANTISED["encode"])
    assert stored["deform"] == {
        "quantised": [],
        "kept": {"decoder.mix/MatMul": "gate", **{n: stored["deform"]["kept"][n] for n in KEPT["deform"]}},
    }
    json.dumps(stored)


def test_names_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"names the node encoder.blocks.0.mpl/MatMul") as error:
        Recipe.load(keep=["encoder.blocks.0.mpl/MatMul"]).decide(LAYERS, "int8")
    assert MLP in error.value.hint
    with pytest.raises(InputError, match=r"names the stage decode") as error:
        Recipe.load(keep=["decode:x"]).decide(LAYERS, "int8")
    assert "encode, deform" in error.value.hint
    with pytest.raises(InputError, match=r"names the node model/MatMul"):
        Recipe.load(keep=["deform:model/MatMul"]).decide(LAYERS, "int8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"rules": []}', "its format is not"),
        ('{"format": "streamsplat-quantisation-recipe", "version": 2, "rules": []}', "not of version 1"),
        ('{"format": "streamsplat-quantisation-recipe", "version": 1}', "no list of rules"),
        ([{"quantise": True}], "without `quantise`"),
        ([{"quantise": "yes", "reason": ""}], "without `quantise`"),
        ([{"quantise": True, "reason": "", "layer": "x"}], "rule 1 that is not an object of"),
        ([{"quantise": True, "reason": "", "kinds": ["gelu"]}], "`kinds` are not among linear, convolution"),
        ([{"quantise": True, "reason": "", "stages": "encode"}], "`stages` is not a list of words"),
        ([{"quantise": True, "reason": "", "nodes": 3}], "`nodes` is not a pattern"),
        ([{"quantise": True, "reason": "", "fewer_channels_than": "8"}], "is not a whole number"),
    ],
)
def test_files_that_are_no_recipe(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write(path, *content)  # type: ignore[misc]
    with pytest.raises(InputError, match=message) as error:
        Recipe.load(path)
    assert str(path) in error.value.message and "rules.json" in error.value.hint
    with pytest.raises(InputError, match="cannot be read"):
        Recipe.load(tmp_path / "missing.json")
