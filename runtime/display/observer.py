"""The observer that shows a run in a window.

    with LiveDisplay(Window("clip.mp4", 1280, 720), aspect=16 / 9) as display:
        for rendered in Pipeline(reader, stream, observers=[display], stopped=display.poll): ...

Every frame is shown as soon as it is rendered, in the pipeline's thread; nothing waits for the screen.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from ..cuda.device import Device
from ..observers import Observer
from ..pipeline import Pipeline, Rendered
from .feed import CudaFeed, Feed, HostFeed
from .picture import Picture
from .window import Surface

MakeFeed = Callable[[Picture, Device, str], Feed]


class LiveDisplay(Observer):
    """See the module's docstring. Use as a context manager, or call `close`.

    Args:
        surface: where; closed with the display. aspect: width over height of the picture as it is to be seen.
        on_device: makes the feed of a stream on a GPU.
    """

    def __init__(self, surface: Surface, aspect: float, *, on_device: MakeFeed = CudaFeed) -> None:
        self._surface, self._aspect, self._on_device = surface, aspect, on_device
        self._picture: Picture | None = None
        self._feed: Feed | None = None
        self._shown = False
        self._closed = False
        self._renderer = str(surface.context.info["GL_RENDERER"])
        self.description = self._renderer
        """Who draws, and once a run has begun how the image gets there."""

    def poll(self) -> bool:
        """Takes what the user did to the window, and draws it again where that is needed; whether it was
        closed. To be called now and then, also while no frame comes."""
        if self._closed or self._surface.closed:
            return True
        if self._surface.poll() and self._shown:
            self._draw(changed=False)
        return self._surface.closed

    # Called by the pipeline, in its thread.

    def began(self, pipeline: Pipeline) -> None:
        stream = pipeline.stream
        picture = Picture(self._surface.context, stream.model.height, stream.model.width, self._aspect)
        self._picture = picture
        device: Device | None = getattr(stream.scene, "device", None)
        self._feed = HostFeed(picture) if device is None else self._on_device(picture, device, self._renderer)
        self.description = f"{self._renderer}, {self._feed.description}"

    def rendered(self, rendered: Rendered) -> None:
        if self.poll():
            return
        assert self._feed is not None
        self._feed.fill(rendered.frame)
        self._shown = True
        self._draw(changed=True)

    def ended(self) -> None:
        self.close()

    def _draw(self, *, changed: bool) -> None:
        assert self._picture is not None
        self._picture.draw(self._surface.target, self._surface.size, changed=changed)
        self._surface.present()

    def close(self) -> None:
        """Closes the window. Calling twice is harmless."""
        if self._closed:
            return
        self._closed = True
        if self._feed is not None:
            self._feed.close()  # CUDA lets go of the buffer before OpenGL does
        if self._picture is not None:
            self._picture.close()
        self._surface.close()

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
