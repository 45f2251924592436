"""Stages as ONNX files."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch

from ..runtime.bundle import TensorSpec
from ..runtime.errors import StreamSplatError
from .stages import StageGraph


class ExportError(StreamSplatError):
    """A stage could not be exported, or the exported graph does not compute what the model does."""


def write_graph(stage: StageGraph, path: Path, opset: int = 20) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Export one stage with torch's dynamo exporter and return its input and output specifications.

    Up to opset 22 RMSNorm and attention are written in elementary operators that every TensorRT from 10.3
    parses.

    Args:
        stage: module, example inputs and names.
        path: file to write.
        opset: ONNX operator set.

    Raises:
        ExportError: the exporter refuses, or the graph is not valid ONNX.
    """
    with warnings.catch_warnings():
        # The exporter warns about its own internals; nothing a user could act on.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
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
            raise ExportError(
                f"Stage {stage.name} cannot be exported: {error}.", "Try another --opset (18 to 25)."
            ) from error
    assert program is not None  # dynamo=True always returns a program
    proto = program.model_proto
    proto.graph.name = f"streamsplat_{stage.name}"
    proto.graph.doc_string = (stage.module.__doc__ or "").strip()
    # Node metadata holds stack traces with the exporting machine's paths.
    for node in proto.graph.node:
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    return [_spec(v) for v in proto.graph.input], [_spec(v) for v in proto.graph.output]


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(d.dim_value for d in tensor.shape.dim))
