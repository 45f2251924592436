"""ONNX files that refer to other files are refused by every engine, wherever in the file the tensor sits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_bundle import build_fake_bundle
from onnx import TensorProto, helper, numpy_helper

from streamsplat_edge.runtime import engines
from streamsplat_edge.runtime.errors import BundleError
from streamsplat_edge.runtime.onnx_references import check_self_contained


def external(location: str = "weights.bin") -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def model(nodes: list[Any] = (), **fields: Any) -> onnx.ModelProto:  # type: ignore[assignment]
    graph = helper.make_graph(list(nodes), "graph", [], [])
    for name, values in fields.items():
        getattr(graph, name).extend(values)
    return helper.make_model(graph)


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def in_subgraph() -> onnx.ModelProto:
    branch = helper.make_graph([], "branch", [], [], [external()])
    return model([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])


def in_function() -> onnx.ModelProto:
    result = model()
    result.functions.append(
        helper.make_function("d", "f", [], ["c"], [constant(external())], [helper.make_opsetid("", 19)])
    )
    return result


def in_sparse() -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(values=external(), dims=[4])
    return model(sparse_initializer=[sparse])


def in_training() -> onnx.ModelProto:
    result = model()
    result.training_info.add().initialization.CopyFrom(helper.make_graph([], "start", [], [], [external()]))
    return result


def location_only() -> onnx.ModelProto:
    tensor = external()
    tensor.ClearField("external_data")
    return model(initializer=[tensor])


def key_only() -> onnx.ModelProto:
    tensor = external()
    tensor.ClearField("data_location")
    return model(initializer=[tensor])


@pytest.mark.parametrize(
    "make",
    [
        lambda: model(initializer=[external()]),
        lambda: model([constant(external())]),
        lambda: model([helper.make_node("Custom", [], ["c"], many=[external()])]),
        in_subgraph,
        in_function,
        in_sparse,
        in_training,
        location_only,
        key_only,
    ],
    ids=["initializer", "constant", "list", "subgraph", "function", "sparse", "training", "location", "key"],
)
def test_references_are_found(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(BundleError, match="tensor 'hidden' in another file"):
        check_self_contained(path)


def test_files_without_references_pass(tmp_path: Path) -> None:
    inside = numpy_helper.from_array(np.zeros(1000, np.float32), "location")  # an innocent name
    path = tmp_path / "x.onnx"
    path.write_bytes(model([constant(inside)], initializer=[inside]).SerializeToString())
    check_self_contained(path)


@pytest.mark.parametrize("content", [b"", b"<?xml version='1.0'?>", b"\x0a\xff", b"\x3a\x05abc", b"\x08\x07"])
def test_files_that_are_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as ONNX") as caught:
        check_self_contained(path)
    assert caught.value.hint


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_refuse_even_files_of_the_bundle_folder(tmp_path: Path, engine: str) -> None:
    """The manifest's hashes do not cover such a file, and newer engines would read it without a word."""
    variant = build_fake_bundle(tmp_path / "fake.bundle").variant("encode", engine)
    loaded = onnx.load(variant.path)
    onnx.save(loaded, variant.path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (variant.path.parent / "weights.bin").stat().st_size > 0
    with pytest.raises(BundleError, match="in another file"):
        engines.create(engine, variant)
