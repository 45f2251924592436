"""Pictures of the input for the page: scaled down and compressed by libav."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from ..video.frames import FULL_RANGE

_QUALITY = "6"  # of libav's scale, where 2 is best and 31 worst


class JpegEncoder:
    """Encodes uint8 RGB images of any size, no wider than `max_width` pixels. Not thread-safe.

    `pixel_aspect`: width over height of the images' pixels; those of the JPEG are square.
    """

    def __init__(self, max_width: int = 480, *, pixel_aspect: float = 1.0) -> None:
        self._max_width = max_width
        self._pixel_aspect = pixel_aspect
        self._reformatter = VideoReformatter()
        self._codec: av.VideoCodecContext | None = None
        self._count = 0

    def __call__(self, image: npt.NDArray[np.uint8]) -> bytes:
        height, width = image.shape[0], image.shape[1] * self._pixel_aspect
        scale = min(1.0, self._max_width / width)
        width, height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
        frame = self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), "rgb24"),
            width,
            height,
            "yuvj420p",
            dst_color_range=FULL_RANGE,
            interpolation=Interpolation.AREA,
        )
        self._count += 1
        frame.pts = self._count
        packets = self._opened(width, height).encode(frame)
        return b"".join(bytes(packet) for packet in packets)

    def _opened(self, width: int, height: int) -> av.VideoCodecContext:
        codec = self._codec
        if codec is None or (codec.width, codec.height) != (width, height):
            codec = av.CodecContext.create("mjpeg", "w")
            assert isinstance(codec, av.VideoCodecContext)
            codec.width, codec.height, codec.pix_fmt = width, height, "yuvj420p"
            codec.time_base = Fraction(1, 25)
            codec.options = {"qmin": _QUALITY, "qmax": _QUALITY}
            codec.thread_count = 1  # one image in, one image out
            self._codec = codec
        return codec
