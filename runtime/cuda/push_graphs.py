"""What a key frame starts on a device, as CUDA graphs: captured when first needed, replayed from then on.

The ring of the lifecycle alternates slots, and a graph has addresses in it: there is one for each of its
`SLOTS` * `PAIRS` phases. What was captured from other engines or arrays is captured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..key_frame_ring import PAIRS, SLOTS, LifecycleStats
from .device import Device
from .graphs import Graphs
from .lifecycle import DeviceLifecycle


@dataclass(frozen=True)
class _Graph:
    depends: tuple[object, ...]
    replay: Callable[[], None]

    def fits(self, depends: Sequence[object]) -> bool:
        return len(depends) == len(self.depends) and all(
            a is b for a, b in zip(depends, self.depends, strict=True)
        )


class PushGraphs(Graphs):
    """Graphs that make a key frame and its pair; looked up by the phase of the lifecycle."""

    _each = f"of {SLOTS * PAIRS} positions of the ring"
    _otherwise = "stage by stage"

    def __init__(self, device: Device, life: DeviceLifecycle, *, wanted: bool = True) -> None:
        super().__init__(device, wanted=wanted)
        self._life = life

    def push(
        self, time: float, depends: Sequence[object], stages: Callable[[], None]
    ) -> tuple[Literal["graph", "capture"], LifecycleStats]:
        """Make the key frame that `stages` computes, of a pair, and wait for it once.

        Args:
            time: seconds, of the key frame.
            depends: engines and arrays that `stages` uses: a graph of others is not replayed.
            stages: starts everything from the uploaded image to motion and fade. It only launches.

        Returns:
            "graph" where a graph was replayed, "capture" where everything was started one by one and then
            captured; and what `spawn` gives.

        Raises:
            EngineError: a stage failed. The interval is as it was before the call.
        """
        life, phase = self._life, self._life.phase
        life.prepare(time)
        graph = self._graphs.get(phase)
        if graph is not None and graph.fits(depends):
            graph.replay()
            self._device.synchronize()
            return "graph", life.commit(time)

        def enqueue() -> None:
            stages()
            life.enqueue()

        enqueue()
        self._device.synchronize()
        self._capture(phase, tuple(depends), enqueue)
        return "capture", life.commit(time)

    def _capture(self, phase: int, depends: tuple[object, ...], enqueue: Callable[[], None]) -> None:
        self._graphs.pop(phase, None)
        replay = self._captured(enqueue)
        if replay is not None:
            self._graphs[phase] = _Graph(depends, replay)
