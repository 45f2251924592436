"""CUDA graphs of a device: captured when first needed, replayed from then on, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ..errors import DeviceLostError, EngineError
from .device import Device


class Graphs:
    """By what is baked into them. Not thread-safe.

    Attributes:
        refusal: why the device does not capture this work; None while nothing is known against it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._graphs: dict[Hashable, Any] = {}
        self.refusal: str | None = None

    def __len__(self) -> int:
        return len(self._graphs)

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
    """Rendering the images of an interval: both kernels of the rasterizer and the downloads.

    Times, views and background lie in device memory and change freely. What a launch has in itself is the
    key: the number of images, which of them are wanted and where they go, which pair of key frames. Tiles
    with more Gaussians than slots are found and rendered by the kernels themselves.

    Attributes:
        wanted: False starts everything one by one.
    """

    wanted = True

    @property
    def description(self) -> str:
        if not self.wanted:
            return "no CUDA graph, kernel by kernel: graphs were switched off"
        if self.refusal is not None:
            return f"no CUDA graph, kernel by kernel: {self.refusal}"
        return "CUDA graphs, one for each number of images and pair of key frames"

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
        if self.wanted and self.refusal is None:
            captured = self._captured(enqueue)
            if captured is not None:
                self._graphs[key] = captured
