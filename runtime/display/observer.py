"""The observer that shows a run in a window.

    with LiveDisplay(Window("clip.mp4", 1280, 720), aspect=16 / 9) as display:
        for rendered in Pipeline(reader, stream, observers=[display], stopped=display.poll): ...

Every frame is shown in the pipeline's thread once it was rendered, at about its source's pace (`pace`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from ..cuda.device import Device
from ..observers import Observer
from ..pipeline import Pipeline, Rendered
from .feed import CudaFeed, Feed, HostFeed
from .pace import Pacer
from .picture import Picture
from .window import Canvas

MakeFeed = Callable[[Picture, Device, str], Feed]


class LiveDisplay(Observer):
    """See the module's docstring. Use as a context manager, or call `close`.

    Args:
        canvas: where; closed with the display. aspect: width over height of the picture as it is to be seen.
        on_device: makes the feed of a stream on a GPU. clock: seconds.
    """

    def __init__(
        self,
        canvas: Canvas,
        aspect: float,
        *,
        on_device: MakeFeed = CudaFeed,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._canvas, self._aspect, self._on_device = canvas, aspect, on_device
        self._clock = clock
        self._pacer: Pacer | None = None
        self._picture: Picture | None = None
        self._feed: Feed | None = None
        self._shown = False
        self._closed = False
        self._renderer = str(canvas.context.info["GL_RENDERER"])
        self.description = self._renderer
        """Who draws, and once a run has begun how the image gets there."""

    def poll(self, seconds: float = 0.0) -> bool:
        """Takes what the user did to the window, and draws it again where that is needed; whether it was
        closed. To be called now and then, also while no frame comes. `seconds`: wait so long for the user."""
        if self._closed or self._canvas.closed:
            return True
        if self._canvas.poll(seconds) and self._shown:
            self._draw(changed=False)
        return self._canvas.closed

    # Called by the pipeline, in its thread.

    def began(self, pipeline: Pipeline) -> None:
        stream = pipeline.stream
        self._pacer = Pacer(pipeline.gap, self._clock)
        picture = Picture(self._canvas.context, stream.model.height, stream.model.width, self._aspect)
        self._picture = picture
        device: Device | None = getattr(stream.scene, "device", None)
        self._feed = HostFeed(picture) if device is None else self._on_device(picture, device, self._renderer)
        self.description = f"{self._renderer}, {self._feed.description}"

    def rendered(self, rendered: Rendered) -> None:
        assert self._feed is not None and self._pacer is not None
        due = self._pacer.due(rendered)
        while not (closed := self.poll(max(due - self._clock(), 0.0))) and self._clock() < due:
            pass  # an event came before the time had
        if closed:
            return
        self._feed.fill(rendered.frame)
        self._shown = True
        self._draw(changed=True)
        self._pacer.shown()

    def ended(self) -> None:
        self.close()

    def _draw(self, *, changed: bool) -> None:
        assert self._picture is not None
        self._picture.draw(self._canvas.target, self._canvas.size, changed=changed)
        self._canvas.present()

    def close(self) -> None:
        """Closes the window. Calling twice is harmless."""
        if self._closed:
            return
        self._closed = True
        if self._feed is not None:
            self._feed.close()  # CUDA lets go of the buffer before OpenGL does
        if self._picture is not None:
            self._picture.close()
        self._canvas.close()

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
