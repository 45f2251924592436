"""The schedule of the published script: of every pair of key frames, both are encoded.

A frame inside the stream belongs to two pairs and is therefore encoded twice; `Stream` encodes it once. The
results are the same, what differs is the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...runtime.bundle import Bundle
from ...runtime.engines import Engine, ForwardingEngine
from ...runtime.stream import PushStats, Stream
from ...runtime.video.surface import Surface

_PER_FRAME = ("depth", "condition", "encode")


class _Repeated(ForwardingEngine):
    """An engine that first computes the previous frame again, where it is told so."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.again = False
        self._previous = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in inner.inputs}
        self._discarded = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in inner.outputs}

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if self.again:
            self.inner.run(self._previous, self._discarded)
        self.inner.run(inputs, outputs)
        for name, kept in self._previous.items():
            np.copyto(kept, inputs[name])


class PublishedStream(Stream):
    """A stream on the host that encodes both frames of every pair."""

    def __init__(self, bundle: Bundle, stages: Mapping[str, Engine], *, threads: int = 0) -> None:
        self._repeated = [_Repeated(stages[name]) for name in _PER_FRAME if name in stages]
        self._paired = False
        super().__init__(
            bundle, {**stages, **{engine.stage: engine for engine in self._repeated}}, threads=threads
        )

    def push(self, image: np.ndarray | Surface, timestamp: float, *, cut: bool = False) -> PushStats:
        # The earlier frame of a first pair has just been encoded for it: only from the second pair on.
        for engine in self._repeated:
            engine.again = self._paired and not cut
        stats = super().push(image, timestamp, cut=cut)
        self._paired = "deform" in stats.latencies
        return stats

    def reset(self) -> None:
        super().reset()
        self._paired = False
