"""Stages as ONNX files: exported, cleaned, named for readers, checked, and written whole or not at all."""

from __future__ import annotations

import ast
import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes import common as passes

from ..runtime.bundle import TensorSpec
from ..runtime.errors import InputError, StreamSplatError
from ..runtime.video.output import output_error
from .stages import TENSORS, StageGraph

_REPORT = "Report this with the versions `streamsplat-edge doctor` prints."
# A protobuf message, and so an ONNX file, ends at 2 GiB; the graph around the weights is some 100 kB.
_EMBEDDED_LIMIT = 2_000_000_000
BATCH = "batch"
"""Name of the free dimension in graphs exported with a dynamic batch."""

# What the exporter writes. Up to 22 RMSNorm and attention are in elementary operators, which every TensorRT
# from 10.3 parses; from 23 they are `RMSNormalization` and `Attention`.
OPSETS = range(18, 26)


class ExportError(StreamSplatError):
    """A stage could not be exported, or the exported graph does not compute what the model does."""


@dataclass(frozen=True)
class GraphFile:
    """A written stage: its tensors at batch 1, and the file that holds its weights where they are apart."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Path | None = None


def check_opset(opset: int) -> None:
    """Raise InputError for an operator set that the exporter does not write."""
    if opset not in OPSETS:
        raise InputError(
            f"ONNX operator set {opset} cannot be exported.",
            f"Use one from {OPSETS[0]} to {OPSETS[-1]}; 20 suits every engine.",
        )


def write_graph(stage: StageGraph, path: Path, opset: int = 20, dynamic_batch: bool = False) -> GraphFile:
    """Export one stage with torch's dynamo exporter.

    The exporter's own optimizer folds constants; what onnx-ir's passes find unused, repeated or without
    effect after that is removed. (onnxslim was tried instead: it turns products into Gemm between
    reshapes, more nodes in all, and away from the pattern that TensorRT fuses.) Nodes are named after the
    module that they come from.

    Args:
        stage: module, example inputs (batch 1) and names.
        path: file to write; weights that do not fit into an ONNX file go to `path` + ".data".
        opset: ONNX operator set, one of `OPSETS`.
        dynamic_batch: leave the first axis of every tensor free. `deform` then gives rows 2b and 2b + 1 for
            the earlier and later frame of pair b.

    Raises:
        InputError: the operator set.
        ExportError: the exporter refuses, or the graph is not valid ONNX of that operator set.
        OutputError: the file cannot be written.
    """
    check_opset(opset)
    model = _exported(stage, opset, dynamic_batch)
    written = model.opset_imports.get("", 0)
    if written != opset:
        raise ExportError(
            f"Stage {stage.name} was exported with operator set {written} instead of {opset}.",
            f"Use --opset {written}.",
        )
    model = _cleaned(model)
    _describe(model, stage)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    weights = path.with_name(f"{path.name}.data") if size > _EMBEDDED_LIMIT else None
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            onnx_ir.save(model, draft, external_data=weights.name if weights else None)
            _check(stage, draft)
            if weights:
                draft.with_name(weights.name).replace(weights)
            draft.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    inputs, outputs = (tuple(map(_spec, values)) for values in (model.graph.inputs, model.graph.outputs))
    return GraphFile(path, inputs, outputs, weights)


def _check(stage: StageGraph, path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"Stage {stage.name} was exported as invalid ONNX: {error}.", _REPORT) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporter warns about its own internals; nothing a user could act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _exported(stage: StageGraph, opset: int, dynamic_batch: bool) -> onnx_ir.Model:
    inputs, shapes = tuple(stage.inputs.values()), None
    if dynamic_batch:
        # An example of 1 would be taken for a constant.
        inputs = tuple(torch.cat([value, value]) for value in inputs)
        batch = torch.export.Dim(BATCH, min=1)
        shapes = tuple({0: batch} for _ in inputs)
    try:
        with _silent():
            program: Any = torch.onnx.export(
                stage.module,
                inputs,
                dynamo=True,
                opset_version=opset,
                input_names=list(stage.inputs),
                output_names=list(stage.outputs),
                dynamic_shapes=shapes,
                optimize=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"Stage {stage.name} cannot be exported: {error}.", _REPORT) from error
    model: onnx_ir.Model = program.model
    return model


def _cleaned(model: onnx_ir.Model) -> onnx_ir.Model:
    for step in (
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        model = step(model).model
    return model


def _describe(model: onnx_ir.Model, stage: StageGraph) -> None:
    """Names and descriptions for those who open the file; paths of the exporting machine are dropped."""
    graph = model.graph
    graph.name = f"streamsplat_{stage.name}"
    graph.doc_string = (stage.module.__doc__ or "").strip()
    model.producer_name, model.producer_version = "streamsplat-edge", ""
    for value in (*graph.inputs, *graph.outputs):
        value.doc_string = TENSORS.get(value.name or "", "")
    used: dict[str, int] = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
        module = str(scopes[-2]).removeprefix("model.") if len(scopes) > 1 else ""
        name = f"{module or stage.name}/{node.op_type}"
        used[name] = used.get(name, 0) + 1
        node.name = f"{name}_{used[name]}" if used[name] > 1 else name
        # Among them stack traces.
        node.metadata_props.clear()
        node.doc_string = None
    outputs = (value for node in graph for value in node.outputs)
    things: tuple[Any, ...] = (model, *graph.inputs, *graph.initializers.values(), *outputs)
    for thing in things:
        thing.metadata_props.clear()


def _spec(value: onnx_ir.Value) -> TensorSpec:
    """The tensor at batch 1."""
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(size if isinstance(size, int) else _at_batch_1(str(size)) for size in value.shape)
    return TensorSpec(name=value.name, dtype=value.dtype.numpy().name, shape=shape)


def _at_batch_1(size: str) -> int:
    """The value of `batch` or `2*batch` for one pair."""
    factor = size.replace(" ", "").removesuffix(BATCH).removesuffix("*")
    return int(factor) if factor else 1
