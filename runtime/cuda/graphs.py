"""CUDA graphs of a device: captured when first needed, replayed from then on, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ..errors import DeviceLostError, EngineError
from .device import Device


class Graphs:
    """CUDA graphs of one kind of work, looked up by the addresses and sizes that are fixed in them. Not
    thread-safe.

    Attributes:
        wanted: False starts everything one by one.
        refusal: why the device does not capture this work; None while nothing is known against it.
    """

    _each: str
    """What there is one graph for."""
    _otherwise: str
    """How the work is started without a graph."""

    def __init__(self, device: Device, *, wanted: bool = True) -> None:
        self._device = device
        self._graphs: dict[Hashable, Any] = {}
        self.wanted = wanted
        self.refusal: str | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def unused_because(self, other: str | None = None) -> str | None:
        """Why no graph is captured or replayed; None where graphs are used. `other`: a reason besides those
        known here."""
        return (other or self.refusal) if self.wanted else "graphs were switched off"

    def describe(self, other: str | None = None) -> str:
        """One line for statistics; `other` as of `unused_because`."""
        reason = self.unused_because(other)
        if reason is not None:
            return f"no CUDA graph, {self._otherwise}: {reason}"
        return f"CUDA graphs, one for each {self._each}"

    def _captured(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """What replays it. None where it is refused: from then on everything is started one by one."""
        try:
            return self._device.capture(enqueue, warm_up=False)
        except DeviceLostError:
            raise
        except EngineError as error:
            self.refusal = error.message
            self._graphs.clear()
            return None


class RenderGraphs(Graphs):
    """Graphs that render the images of an interval: both kernels of the rasterizer and the downloads.

    Times, views and background lie in device memory and change freely. What a launch has in itself is the
    key: the number of images, which of them are wanted and where they go, which pair of key frames. Tiles
    with more Gaussians than slots are found and rendered by the kernels themselves.
    """

    _each = "number of images and pair of key frames"
    _otherwise = "kernel by kernel"

    def start(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Start what `enqueue` starts.

        Args:
            key: equal where `enqueue` would start the same kernels with the same arguments. enqueue: only
                launches and copies.
        """
        graph = self._graphs.get(key)
        if graph is not None and self.wanted:
            graph()
            return
        enqueue()
        if self.unused_because() is None:
            captured = self._captured(enqueue)
            if captured is not None:
                self._graphs[key] = captured
