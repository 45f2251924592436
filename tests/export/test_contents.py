"""Files that the manifest gives for another precision than they are: found by what their graphs hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from streamsplat_edge.cli import main
from streamsplat_edge.export.build import build_bundle
from streamsplat_edge.export.contents import check_contents, check_variant
from streamsplat_edge.export.plan_builder import BuildOptions
from streamsplat_edge.runtime.bundle import Bundle, StageVariant
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.engines import trt_api
from streamsplat_edge.runtime.errors import MismatchError

DEMO = Path(__file__).parents[2] / "demo" / "tiny.bundle"
GRAPHS: dict[str, tuple[list[str], list[int]]] = {
    "fp32": (["MatMul"], [TensorProto.FLOAT, TensorProto.INT64]),
    "fp16": (["Cast", "MatMul"], [TensorProto.FLOAT16]),
    "bf16": (["Cast", "MatMul"], [TensorProto.BFLOAT16]),
    "int8": (["QuantizeLinear", "DequantizeLinear", "MatMul"], [TensorProto.INT8]),
    "int8-dynamic": (["DynamicQuantizeLinear", "MatMulInteger"], [TensorProto.INT8]),
    "fp8": (["QuantizeLinear", "DequantizeLinear", "MatMul"], [TensorProto.FLOAT8E4M3FN]),
}
"""Operators and types of constants of a graph in each precision (what they compute is not looked at)."""


def save(path: Path, operators: list[str], types: list[int]) -> Path:
    """A graph of these operators with a constant of each type."""
    nodes = [helper.make_node(kind, ["x"], [f"y{i}"]) for i, kind in enumerate(operators)]
    tensors = [helper.make_tensor(f"c{i}", kind, [2], [1, 2]) for i, kind in enumerate(types)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [], [], tensors)), path)
    return path


def refusal(path: Path, precision: str) -> str:
    """Why the file is none of this precision; empty where it may be."""
    try:
        check_variant(StageVariant("encode", path, precision, ("onnxruntime",), (), (), ""))
    except MismatchError as error:
        return error.message
    return ""


def swap(manifest: dict[str, Any], stage: str, one: int, other: int) -> None:
    variants = manifest["stages"][stage]["variants"]
    for field in ("file", "sha256", "bytes"):
        variants[one][field], variants[other][field] = variants[other][field], variants[one][field]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> Bundle:
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.load(folder)


def test_of_two_files_that_were_swapped_at_least_one_is_found(tmp_path: Path) -> None:
    files = {name: save(tmp_path / f"{name}.onnx", *graph) for name, graph in GRAPHS.items()}
    for one, path in files.items():
        assert refusal(path, one) == ""
        for other in files.keys() - {one}:
            assert refusal(path, other) or refusal(files[other], one), f"{one} and {other}"
    said = refusal(files["fp16"], "fp32")
    assert said == "fp16.onnx holds fp16; the manifest says that it is the fp32 file of stage `encode`."
    assert "int8.onnx holds int8;" in refusal(files["int8"], "int8-dynamic")
    for precision in ("fp16", "int8", "int8-linear", "fp8"):
        assert "fp32.onnx holds fp32 alone;" in refusal(files["fp32"], precision)


def test_what_a_precision_leaves_open(tmp_path: Path) -> None:
    half = save(tmp_path / "a.onnx", ["DequantizeLinear", "MatMul"], [TensorProto.INT8, TensorProto.FLOAT16])
    assert refusal(half, "int8-linear") == "", "quantised, and fp16 in between"
    assert refusal(half, "fp16")
    plain = save(tmp_path / "b.onnx", ["Conv"], [TensorProto.FLOAT])
    assert refusal(plain, "bf16") == "", "convolutions before operator set 22"
    assert refusal(plain, "mine-4") == refusal(half, "mine-4") == "", "a precision that is not ours"
    nothing = save(tmp_path / "c.onnx", ["AveragePool"], [])
    assert refusal(nothing, "fp16") == "", "no product that could be in fp16"
    value = helper.make_tensor("value", TensorProto.FLOAT16, [1], [1.0])
    constant = helper.make_node("Constant", [], ["c"], value=value)
    onnx.save(helper.make_model(helper.make_graph([constant], "graph", [], [])), nothing)
    assert "holds fp16" in refusal(nothing, "fp32"), "constants may be nodes"


def test_the_demo_bundle_holds_what_it_says() -> None:
    check_contents(Bundle.load(DEMO))


def test_verify_finds_swapped_files(own_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """Both compare with the other as well as the other way round."""
    check_contents(own_bundle)
    edit(own_bundle.path, lambda manifest: swap(manifest, "deform", 0, 1))
    assert main(["verify", str(own_bundle.path), "--frames", "2"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "deform.fp16.onnx holds fp16; the manifest says that it is the fp32 file" in said
    assert "hint: The manifest does not describe this file" in said


def test_no_plan_is_built_of_another_precision(own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = driver.DeviceInfo("Orin", "8.7", 1 << 30)
    monkeypatch.setattr(driver, "cuda_device", lambda index=0: gpu)
    monkeypatch.setattr(trt_api, "load", lambda runtime: onnx)  # has a version; nothing else is asked of it
    edit(own_bundle.path, lambda manifest: swap(manifest, own_bundle.stage_names[0], 0, 1))
    with pytest.raises(MismatchError, match="holds fp32 alone; the manifest says that it is the fp16 file"):
        build_bundle(own_bundle.path, BuildOptions(precision="fp16"))
