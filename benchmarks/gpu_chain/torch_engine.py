"""A stage in PyTorch on the arrays and in the stream of a device: our chain with torch's kernels in it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...export.stages import StageGraph
from ...runtime.cuda.device import Device
from ...runtime.engines import Engine
from .models import specs


class TorchOnDevice(Engine):
    """See the module's docstring. No array is copied but from the module's results into the stage's.

    Args:
        graph: its module lies on the device already. memory: whose arrays `run` gets.
        precision: for the description. compiled: through `torch.compile`, when it first runs.
    """

    graph_refusal = "torch allocates while it runs"

    def __init__(self, graph: StageGraph, memory: Device, precision: str, *, compiled: bool) -> None:
        self.stage, self.precision = graph.name, precision
        self.inputs, self.outputs = specs(graph, torch_device(memory))
        self._memory, self._order = memory, tuple(graph.inputs)
        self._module: Any = torch.compile(graph.module) if compiled else graph.module
        # By identity: a stream has a handful of arrays, which are kept alive here.
        self._known: dict[int, tuple[Any, Tensor]] = {}
        mode = "compiled" if compiled else "eager"
        self.description = f"PyTorch {torch.__version__} {precision} {mode}, {torch_device(memory)}"

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        with torch.no_grad(), stream_of(self._memory):
            results = self._module(*(self._tensor(inputs[name]) for name in self._order))
            results = results if isinstance(results, tuple) else (results,)
            for spec, value in zip(self.outputs, results, strict=True):
                self._tensor(outputs[spec.name]).copy_(value)

    def _tensor(self, array: Any) -> Tensor:
        known = self._known.get(id(array))
        if known is None:
            known = self._known[id(array)] = array, torch.from_dlpack(array)
        return known[1]

    def close(self) -> None:
        self._known.clear()


def torch_device(memory: Device) -> str:
    """What torch calls the device."""
    return f"cuda:{memory.index}" if memory.kind == "cuda" else "cpu"


def stream_of(memory: Device) -> contextlib.AbstractContextManager[Any]:
    """Makes torch start everything in the device's stream."""
    if memory.kind != "cuda":
        return contextlib.nullcontext()
    stream: Any = torch.cuda.ExternalStream(memory.queue, device=memory.index)
    context: contextlib.AbstractContextManager[Any] = torch.cuda.stream(stream)
    return context
