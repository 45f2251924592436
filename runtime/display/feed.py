"""Who fills the pixel buffer of a picture: the host, or CUDA on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..cuda.device import Device
from ..errors import InputError
from ..stream import Frame
from .cuda_gl import GlDriver, Mapped
from .picture import Picture


class Feed(Protocol):
    """See the module's docstring."""

    description: str

    def fill(self, frame: Frame) -> None:
        """Put the frame's RGB into the buffer."""
        ...

    def close(self) -> None:
        """Let go of the buffer."""
        ...


class HostFeed:
    """Uploads the image from the host."""

    description = "uploaded from the host"

    def __init__(self, picture: Picture) -> None:
        self._buffer = picture.buffer

    def fill(self, frame: Frame) -> None:
        self._buffer.write(frame.rgb)

    def close(self) -> None:
        pass


class CudaFeed:
    """Copies the rasterizer's image into the buffer, both on the device.

    The rasterizer does not write there itself: its addresses are part of a CUDA graph, and a buffer of OpenGL
    has one only while it is mapped. The copy is of 3 bytes a pixel, in the stream, and nothing waits for it.

    Args:
        picture: whose buffer is registered, once. device: CUDA's.
        renderer: who draws the window, as OpenGL says.
        driver: see `GlDriver`. mapped: makes what `Device.adopt` takes of an address and a shape.

    Raises:
        EngineError: there is no driver. InputError: another GPU draws the window.
    """

    def __init__(
        self,
        picture: Picture,
        device: Device,
        renderer: str,
        *,
        driver: GlDriver | None = None,
        mapped: Callable[[int, tuple[int, ...]], Any] = Mapped,
    ) -> None:
        self._driver = GlDriver() if driver is None else driver
        self._device, self._mapped = device, mapped
        self._shape = picture.height, picture.width, 3
        self._bytes = 3 * picture.height * picture.width
        self._driver.check_device(device.index, renderer)
        self._handle: Any = self._driver.register(picture.buffer.glo, device.index, renderer)
        self.description = f"written by CUDA, {device.description}"

    def fill(self, frame: Frame) -> None:
        if frame.on_device is None:
            raise InputError("The frame is not on the GPU.", "Render it with a stream of this device.")
        device = self._device
        with self._driver.mapped(self._handle, device.queue) as (address, size):
            if size < self._bytes:
                raise InputError(f"The buffer of OpenGL has {size} bytes, {self._bytes} are needed.")
            device.copy(device.adopt(self._mapped(address, self._shape)), frame.on_device)

    def close(self) -> None:
        if self._handle is not None:
            self._driver.unregister(self._handle)
            self._handle = None
