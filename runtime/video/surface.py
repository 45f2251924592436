"""A decoded picture that stays on the GPU that decoded it (NVDEC), and the frame that carries it.

PyAV gives such pictures from version 18 on (`HWAccel(is_hw_owned=True)`), their planes as DLPack. They are
for `--device cuda`, which resizes and converts them there; whoever asks for `image` gets a copy on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import VideoError
from .frames import (
    FULL_RANGE,
    Converter,
    Orientation,
    VideoFrame,
    as_stored,
    display_matrix,
    orientation,
    source_space,
    to_rgb,
    upright,
)

# Two planes, luma and interleaved chroma of 4:2:0: bytes of a sample, which has the value in its upper bits.
_SAMPLE_BYTES = {"nv12": 1, "p010le": 2, "p016le": 2}
_ON_GPU = "cuda"  # pixel format of a frame in CUDA's memory


class Plane:
    """A plane of a frame for `Device.adopt`: its DLPack, without the stream that PyAV refuses to be told of.

    Attributes:
        pitch: bytes from row to row.
    """

    def __init__(self, plane: Any) -> None:
        self._plane = plane
        self.pitch = int(plane.line_size)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._plane.__dlpack_device__()
        return int(kind), int(index)

    def __dlpack__(self, **_: Any) -> Any:
        return self._plane.__dlpack__()


class Surface:
    """Y'CbCr 4:2:0 in device memory. Holding it keeps the memory from the decoder.

    Attributes:
        stored: height and width as it lies in memory. turn: how it becomes upright. sample_bytes: 1, or 2
            with the value in the upper bits. space: matrix of its colours, as `frames.source_space`.
        full_range: luma goes from 0 to 255 instead of 16 to 235.

    Raises:
        VideoError: the decoder gave another format, which nothing here reads on a GPU.
    """

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        kind = getattr(frame, "sw_format", None) or frame.format
        if kind.name not in _SAMPLE_BYTES:
            raise VideoError(
                f"The GPU decodes this video to {kind.name}; what stays there is NV12 or P010.",
                "Leave --decode out to decode on the CPU, or use --device cpu.",
            )
        self._format = str(kind.name)
        self.sample_bytes = _SAMPLE_BYTES[self._format]
        self.stored = int(frame.height), int(frame.width)
        self._matrix = display_matrix(frame)
        self.turn: Orientation = orientation(self._matrix)
        self.space = source_space(frame)
        self.full_range = int(frame.color_range) == FULL_RANGE

    @property
    def planes(self) -> Sequence[Plane]:
        """Luma [h, w], and chroma of half that size (rounded up) with U and V in turn."""
        return [Plane(plane) for plane in self._frame.planes]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright picture."""
        height, width = self.stored
        return (width, height) if self.turn.transposed else (height, width)

    def download(self) -> npt.NDArray[np.uint8]:
        """Upright uint8 RGB [h, w, 3] on the host, as `frames.to_rgb` makes it."""
        return upright(as_stored(self._frame.reformat(format=self._format)), self._matrix)


@dataclass(frozen=True)
class SurfaceFrame:
    """As `VideoFrame`, with the picture on the GPU."""

    surface: Surface
    timestamp: float
    index: int
    captured: float | None = None
    decode_ms: float | None = None
    segment: int = 0

    @cached_property
    def image(self) -> npt.NDArray[np.uint8]:
        """A copy on the host, made when it is first asked for."""
        return self.surface.download()


DecodedFrame = VideoFrame | SurfaceFrame
Picture = npt.NDArray[np.uint8] | Surface


def taken(frame: Any, converter: Converter) -> Picture:
    """The picture that a decoder gave, in the memory where it gave it: on the host as `frames.to_rgb`.

    Raises:
        VideoError: see `Surface`.
    """
    return Surface(frame) if frame.format.name == _ON_GPU else to_rgb(frame, converter)


def picture_size(picture: Picture) -> tuple[int, int]:
    """Height and width of the upright picture."""
    if isinstance(picture, Surface):
        return picture.size
    height, width = picture.shape[:2]
    return height, width


def picture_of(frame: DecodedFrame) -> Picture:
    """The picture of a frame, without a download of one that is on a GPU."""
    return frame.surface if isinstance(frame, SurfaceFrame) else frame.image


def with_picture(picture: Picture, timestamp: float, index: int, *others: Any) -> DecodedFrame:
    """The frame of a picture; see `VideoFrame` for the rest."""
    if isinstance(picture, Surface):
        return SurfaceFrame(picture, timestamp, index, *others)
    return VideoFrame(picture, timestamp, index, *others)
