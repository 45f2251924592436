"""Stages as ONNX files."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch

from ..runtime.bundle import TensorSpec
from ..runtime.errors import InputError, StreamSplatError
from ..runtime.video import write_bytes
from .stages import StageGraph

_REPORT = "Report this with the versions `streamsplat-edge doctor` prints."


class ExportError(StreamSplatError):
    """A stage could not be exported, or the exported graph does not compute what the model does."""


# What the exporter writes. Up to 22 RMSNorm and attention are in elementary operators, which every TensorRT
# from 10.3 parses; from 23 they are `RMSNormalization` and `Attention`.
OPSETS = range(18, 26)


def check_opset(opset: int) -> None:
    """Raise InputError for an operator set that the exporter does not write."""
    if opset not in OPSETS:
        raise InputError(
            f"ONNX operator set {opset} cannot be exported.",
            f"Use one from {OPSETS[0]} to {OPSETS[-1]}; 20 suits every engine.",
        )


def write_graph(stage: StageGraph, path: Path, opset: int = 20) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Export one stage with torch's dynamo exporter and return its input and output specifications.

    Args:
        stage: module, example inputs and names.
        path: file to write.
        opset: ONNX operator set, one of `OPSETS`.

    Raises:
        InputError: the operator set.
        ExportError: the exporter refuses, or the graph is not valid ONNX of that operator set.
        OutputError: the file cannot be written.
    """
    check_opset(opset)
    proto = _exported(stage, opset)
    written = next((o.version for o in proto.opset_import if o.domain == ""), 0)
    if written != opset:
        raise ExportError(
            f"Stage {stage.name} was exported with operator set {written} instead of {opset}.",
            f"Use --opset {written}.",
        )
    proto.graph.name = f"streamsplat_{stage.name}"
    proto.graph.doc_string = (stage.module.__doc__ or "").strip()
    # Node metadata holds stack traces with the exporting machine's paths.
    for node in proto.graph.node:
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    try:
        onnx.checker.check_model(proto, full_check=True)
        content = proto.SerializeToString()
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"Stage {stage.name} was exported as invalid ONNX: {error}.", _REPORT) from error
    write_bytes(path, content)
    return [_spec(v) for v in proto.graph.input], [_spec(v) for v in proto.graph.output]


def _exported(stage: StageGraph, opset: int) -> onnx.ModelProto:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    # The exporter warns about its own internals; nothing a user could act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                stage.module,
                tuple(stage.inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(stage.inputs),
                output_names=list(stage.outputs),
                optimize=True,
                verbose=False,
                external_data=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"Stage {stage.name} cannot be exported: {error}.", _REPORT) from error
        finally:
            logger.setLevel(level)
    assert program is not None  # dynamo=True always returns a program
    proto: onnx.ModelProto = program.model_proto
    return proto


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(d.dim_value for d in tensor.shape.dim))
