"""Where a stage goes wrong: the first node whose value differs, found by halving.

Files of one bundle come from the same modules and name their nodes after them, so that a lower precision is
compared with fp32 node by node: of both graphs, the part up to the node is cut out and run in ONNX Runtime.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from ..runtime.bundle import Bundle
from .compare import compare
from .stage_engines import Recorder, file_engines, files_of, run_stream
from .verify import Report

# Twice the bound of the stage's outputs: rounding grows along a stage, an error jumps.
_MARGIN = 2.0


def first_divergence(bundle: Bundle, report: Report, frames: Sequence[np.ndarray]) -> str:
    """A sentence naming the first node of the first failed stage that differs from its fp32 file.

    Empty where there is nothing to compare: no stage failed by itself, or no fp32 file, or the fp32 file is
    what failed (it has other nodes than PyTorch).
    """
    failed = next(((s, p) for s, p in report.failed if p != "fp32"), None)
    if failed is None or not all(
        {"fp32", failed[1]} <= {v.precision for v in bundle.variants(stage)} for stage in bundle.stage_names
    ):
        return ""
    stage, precision = failed
    limits = report.thresholds.get(precision, {})
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(bundle, "fp32", "onnxruntime", Path(folder))
        recorders = {n: Recorder(e) for n, e in file_engines(files, "onnxruntime").items()}
        run_stream(bundle, recorders, frames[:2])
        candidate = files_of(bundle, precision, "onnxruntime", Path(folder))[stage]
        node = diverging_node(
            onnx.load(files[stage].path),
            onnx.load(candidate.path),
            recorders[stage].calls[0][0],
            _MARGIN * limits.get("relative_l2", math.inf),  # quantised: only NaN counts
        )
    return f"In stage {stage}, {precision} first differs from fp32 at node {node}." if node else ""


def diverging_node(
    reference: onnx.ModelProto, candidate: onnx.ModelProto, inputs: dict[str, np.ndarray], bound: float
) -> str:
    """Name of the first node, in the order of `candidate`, whose value differs by more than `bound`
    (relative L2) or is not finite; empty for none. Values behind it are taken to differ as well."""
    theirs = {node.name: node.output[0] for node in reference.graph.node}
    shared = [n for n in candidate.graph.node if n.name in theirs and n.op_type not in ("Cast", "Shape")]

    def differs(index: int) -> bool:
        node = shared[index]
        got, truth = _value(candidate, node.output[0], inputs), _value(reference, theirs[node.name], inputs)
        if got.shape != truth.shape:
            return True
        distance = compare(got, truth)
        return not distance.finite or distance.relative_l2 > bound

    low, high = 0, len(shared) - 1
    if high < 0 or not differs(high):
        return ""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if differs(middle) else (middle + 1, high)
    return str(shared[low].name)


def _value(model: onnx.ModelProto, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The value called `name` in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    part = _up_to(model, name).SerializeToString()
    session = onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return np.asarray(session.run([name], {k: v for k, v in inputs.items() if k in wanted})[0])


def _up_to(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """What the value called `name` is computed from. (`onnx.utils.Extractor` wants the type of every value,
    which a graph need not state.)"""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    needed, waiting = {name}, [name]
    while waiting:
        for value in makers[waiting.pop()].input:
            if value not in needed:
                needed.add(value)
                waiting += [value] if value in makers else []
    nodes = [node for node in graph.node if needed & set(node.output)]
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    given = [value for value in graph.input if value.name in needed]
    part = onnx.helper.make_graph(nodes, graph.name, given, [onnx.ValueInfoProto(name=name)], tensors)
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
