"""ONNX Runtime sessions over graphs in memory, and stages that compute literally what their graph says."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..runtime.bundle import TensorSpec
from ..runtime.engines import Engine
from ..runtime.engines.base import thread_count
from ..runtime.errors import EngineError

_EMBEDDED_LIMIT = 2_000_000_000  # a protobuf message ends at 2 GiB


def open_session(model: onnx.ModelProto, *, literal: bool = False) -> Any:
    """A CPU session.

    Args:
        model: weights included.
        literal: no optimisation, so that Q/DQ and the products between are computed one by one, exactly as
            the graph says (and as a GPU computes them but for the order of sums). FP8 runs only this way.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = thread_count(0)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    try:
        if model.ByteSize() < _EMBEDDED_LIMIT:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path, save_as_external_data=True, location="weights")
            return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common public base class
        raise EngineError(f"ONNX Runtime cannot load the graph: {error}") from error


class LiteralEngine(Engine):
    """A stage that runs a graph in memory, computed literally (see `open_session`)."""

    def __init__(
        self,
        stage: str,
        model: onnx.ModelProto,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        precision: str,
    ) -> None:
        self.stage, self.inputs, self.outputs = stage, inputs, outputs
        self.precision, self.description = precision, f"ONNX Runtime, {precision} computed literally"
        self._session: Any = open_session(model, literal=True)

    def run(self, inputs: Any, outputs: Any) -> None:
        names = [spec.name for spec in self.outputs]
        given = {spec.name: inputs[spec.name] for spec in self.inputs}
        for name, value in zip(names, self._session.run(names, given), strict=True):
            np.copyto(outputs[name], value)

    def close(self) -> None:
        self._session = None
