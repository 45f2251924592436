"""This CPU as a device of the model: its rates, and the stages of a bundle, measured in one run.

Rates go through ONNX Runtime, like the stages: a matrix product, an element-wise sum that fits no cache,
and a row of nodes on next to nothing, which is what starting a node costs. Stages and rates take turns,
and a rate is all work over all time, for as long as stages take: what else the machine does slows both
alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...commands import report
from ...runtime.stream import Stream
from ..passes import Clip, free_running
from .model import Rates, RenderWork

_SIDE = 512  # of the matrix product
_LARGE = 1 << 23  # elements of the sum: 32 MB each of two inputs and an output
_ROW = 200  # nodes of the row
_SECONDS = 0.2  # of each graph per round


class Meter:
    """ONNX Runtime sessions of three small graphs, with runs and seconds of each over all rounds.

    Args:
        threads: as of the stages; 0 is all cores.
    """

    def __init__(self, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._count = dict.fromkeys(("matrix", "sum", "row"), 0)
        self._spent = dict.fromkeys(self._count, 0.0)
        self._runs: dict[str, Callable[[], Any]] = {}
        for name, model, shapes in _graphs():
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            feed = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
            self._runs[name] = partial(session.run, None, feed)

    def observe(self) -> None:
        """One round, after one run to warm up."""
        for name, run in self._runs.items():
            run()
            start = now = time.perf_counter()
            while now - start < _SECONDS:
                run()
                self._count[name] += 1
                now = time.perf_counter()
            self._spent[name] += now - start

    def rates(self, name: str) -> Rates:
        """Shares are 1: what was measured is what kernels reach."""
        seconds = {name: self._spent[name] / self._count[name] for name in self._count}
        matrix = 2.0 * _SIDE**3 / seconds["matrix"]
        return Rates(
            name,
            {"fp32": matrix},
            matrix,
            3.0 * 4 * _LARGE / seconds["sum"],
            1.0,
            1.0,
            seconds["row"] / _ROW,
        )


def _graphs() -> list[tuple[str, bytes, dict[str, tuple[int, ...]]]]:
    from onnx import TensorProto, helper

    def model(nodes: list[Any], inputs: dict[str, tuple[int, ...]], out: tuple[int, ...]) -> bytes:
        def value(name: str, shape: tuple[int, ...]) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        given = [value(name, shape) for name, shape in inputs.items()]
        graph = helper.make_graph(nodes, "rate", given, [value("y", out)])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return bytes(made.SerializeToString())

    square, large, small = (_SIDE, _SIDE), (_LARGE,), (1,)
    names = ["a", *(f"t{i}" for i in range(_ROW - 1)), "y"]
    row = [helper.make_node("Neg", [x], [y]) for x, y in itertools.pairwise(names)]
    two = ["a", "b"]
    return [
        (
            "matrix",
            model([helper.make_node("MatMul", two, ["y"])], dict.fromkeys(two, square), square),
            dict.fromkeys(two, square),
        ),
        (
            "sum",
            model([helper.make_node("Add", two, ["y"])], dict.fromkeys(two, large), large),
            dict.fromkeys(two, large),
        ),
        ("row", model(row, {"a": small}, small), {"a": small}),
    ]


def measure(
    stream: Stream, clip: Clip, gap: int | None, threads: int
) -> tuple[Rates, RenderWork, dict[str, Any]]:
    """A pass over the clip after one to warm up, with a look at the rates before and after each.

    Returns the rates, the work of a render, and percentiles per stage in milliseconds.
    """
    meter = Meter(threads)
    results: dict[str, Any] = {}
    for _ in range(2):
        meter.observe()
        results, _ = free_running(clip, stream, gap)
    meter.observe()
    gaussians = results["gaussians"]
    model = stream.model
    work = RenderWork(
        gaussians["tile_pairs_per_frame"], gaussians["rendered_per_frame"], model.height * model.width
    )
    wanted = [stage for stage in report.CHAIN if results["latency_ms"].get(stage, {}).get("count")]
    return meter.rates("this CPU"), work, {stage: results["latency_ms"][stage] for stage in wanted}
