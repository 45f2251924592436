"""What PyAV gives of a GPU's decoder: planes on the device, everything else as of a frame on the host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import av
import numpy as np
from kernel_rasterizer import to_device
from on_cpu_device import OnCpuDevice

from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.video.surface import Surface

# Display matrices (a, b, c, d): as it is, quarter turns, and mirrored ones.
TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
TURNS += [(-1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 0, -1), (0, -1, -1, 0)]


class _PlaneThere:
    def __init__(self, array: Any, line_size: int) -> None:
        self.array, self.line_size = array, line_size

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        if stream is not None:
            raise NotImplementedError("as PyAV")
        return self.array.__dlpack__()


class FrameThere:
    """A frame of the host, as if it had been decoded on a device.

    Attributes:
        downloads: how often it was copied to the host.
    """

    def __init__(
        self, device: Device, frame: av.VideoFrame, turn: tuple[int, int, int, int] = TURNS[0]
    ) -> None:
        self._frame = frame
        self.downloads = 0
        self.sw_format, self.format = frame.format, SimpleNamespace(name="cuda")
        a, b, c, d = (65536 * value for value in turn)
        self.side_data = {"DISPLAYMATRIX": np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes()}
        self.planes = []
        for plane in frame.planes:
            memory: Any = plane
            rows = np.frombuffer(memory, np.uint8).reshape(-1, plane.line_size)
            # A decoder allocates in a thread of its own, which a capture of the device's would refuse here.
            array = rows.copy() if isinstance(device, OnCpuDevice) else to_device(device, rows)
            self.planes.append(_PlaneThere(array, plane.line_size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frame, name)

    def reformat(self, *, format: str) -> av.VideoFrame:
        assert format == self.sw_format.name
        self.downloads += 1
        return self._frame


def surface(device: Device, frame: av.VideoFrame, turn: tuple[int, int, int, int] = TURNS[0]) -> Surface:
    return Surface(FrameThere(device, frame, turn))
