"""Statistics of activations: what the layers that will be quantised read, in bounded memory.

Only the inputs of those layers become outputs of the graph, and only as many at a time as fit into a budget:
ONNX Runtime's own calibrators make every tensor an output, which takes 24 GB at full size. Each array is
counted and dropped at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from tqdm import tqdm

from ..runtime.errors import InputError
from .layers import Layer
from .ranges import Histogram
from .sessions import open_session

_BUDGET = 1 << 30  # bytes of activations that one run may return
_UNKNOWN = 64 << 20  # counted for a tensor whose size the graph does not say


@dataclass
class Activation:
    """Statistics of one tensor.

    Attributes:
        histogram: magnitudes. channels: largest magnitude per entry of the last axis (what a linear layer
            sums over), None where its length varies.
    """

    histogram: Histogram = field(default_factory=Histogram)
    channels: np.ndarray | None = None

    def merge(self, other: Activation) -> None:
        """Count what `other` has counted."""
        self.histogram.merge(other.histogram)
        self.channels = _larger(self.channels, other.channels)


def collect(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    calls: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    *,
    stage: str,
    progress: bool = False,
    total: int = 0,
) -> dict[str, Activation]:
    """Statistics of everything that `layers` read.

    Args:
        model: graph. layers: of it.
        calls: gives the recorded inputs, from the start every time it is called.
        stage, progress, total: for the progress bar and messages.

    Raises:
        InputError: NaN or infinity, naming the layer that reads it.
    """
    return collect_parts(model, layers, [calls], stage=stage, progress=progress, total=total)[0]


def collect_parts(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    parts: Sequence[Callable[[], Iterable[Mapping[str, np.ndarray]]]],
    *,
    stage: str,
    progress: bool = False,
    total: int = 0,
) -> list[dict[str, Activation]]:
    """The same for each of several sets of inputs; see `collect`."""
    readers = {name: layer.node for layer in layers for name in layer.activations}
    results: list[dict[str, Activation]] = [{name: Activation() for name in readers} for _ in parts]
    groups = _groups(model, list(readers))
    with tqdm(total=total * len(groups), disable=not progress, desc=f"ranges of {stage}", unit="run") as bar:
        for group in groups:
            session = open_session(_with_outputs(model, group))
            for calls, found in zip(parts, results, strict=True):
                for inputs in calls():
                    for name, values in zip(group, session.run(group, dict(inputs)), strict=True):
                        if not found[name].histogram.add(values):
                            raise InputError(
                                f"Layer {readers[name]} of stage {stage} reads NaN or infinity.",
                                "The model overflows on this video: check it with `streamsplat-edge verify`.",
                            )
                        maxima = np.abs(values.reshape(-1, values.shape[-1])).max(0).astype(np.float32)
                        found[name].channels = _larger(found[name].channels, maxima)
                    bar.update(1)
    return results


def _larger(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    if a is None or b is None:
        return b if a is None else a
    return np.asarray(np.maximum(a, b))


def _groups(model: onnx.ModelProto, names: Sequence[str]) -> list[list[str]]:
    """Tensors that are returned together, each group within the budget."""
    inferred = onnx.shape_inference.infer_shapes(model)
    sizes: dict[str, int] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if dims and all(d > 0 for d in dims):
            sizes[value.name] = 4 * math.prod(dims)
    groups: list[list[str]] = []
    room = 0
    for name in names:
        size = sizes.get(name, _UNKNOWN)
        if size > room or not groups:
            groups.append([])
            room = _BUDGET
        groups[-1].append(name)
        room -= size
    return groups


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    present = {value.name for value in result.graph.output}
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return result
