"""One decoded picture, and the conversion of libav's pictures to upright 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

BT709 = int(Colorspace.ITU709)
"""libav's number of the matrix; of the primaries and the transfer function of the same name, too."""
LIMITED_RANGE, FULL_RANGE = int(ColorRange.MPEG), int(ColorRange.JPEG)

# Players take untagged video for BT.709 in high definition, for BT.601 below it.
_UNSPECIFIED, _BT601 = 2, int(Colorspace.ITU601)
_HD_HEIGHT = 720
RATE_MAX = 1000  # frames per second; what claims more is a mistake in a header
_KNOWN_SPACES = {1, 4, 5, 7, 9}
_QUARTER_TURNS = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}  # counterclockwise
_PIXEL_ASPECT_MAX = 10  # width over height, or height over width; what claims more is a mistake in a header


@dataclass(frozen=True)
class VideoFrame:
    """A decoded frame.

    Attributes:
        image: uint8 RGB [h, w, 3], upright (rotation metadata applied), C-contiguous.
        timestamp: seconds since the first frame, strictly increasing.
        index: 0 for the first frame that could be decoded.
        captured: when a live source made the frame (`time.perf_counter`; see `sources.clock`); None: a file.
        decode_ms: milliseconds of decoding and conversion, without the wait for the packet; None: not known.
        segment: grows where the frames before say nothing about motion up to this one: after a lost
            connection, a long pause, a jump of the source's clock.
    """

    image: npt.NDArray[np.uint8]
    timestamp: float
    index: int
    captured: float | None = None
    decode_ms: float | None = None
    segment: int = 0


def _has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)


def source_space(frame: av.VideoFrame) -> int:
    """The matrix of a frame's colours (`AVCOL_SPC_*`): its tag, or what players take it for."""
    space = int(frame.colorspace)
    if space in _KNOWN_SPACES:
        return space
    return BT709 if space == _UNSPECIFIED and frame.height >= _HD_HEIGHT else _BT601


class Converter:
    """What swscale prepares for a conversion, kept from frame to frame. Not thread-safe.

    A reformatter keeps one conversion only, and preparing one costs more than doing it: each has its own.
    """

    def __init__(self) -> None:
        self._to_rgb, self._to_planar = VideoReformatter(), VideoReformatter()

    def _planar(self, frame: av.VideoFrame) -> av.VideoFrame:
        """NV12 with its chroma apart, the same samples, as decoders on the CPU give them; others as they are.

        swscale converts the two to RGB in different ways, up to 30 levels apart at edges of colour, and from
        NV12 more slowly.
        """
        return self._to_planar.reformat(frame, format="yuv420p") if frame.format.name == "nv12" else frame

    def rgb(self, frame: av.VideoFrame, name: str) -> av.VideoFrame:
        """In the format `name`, one of RGB."""
        space = source_space(frame)
        # RGB has no matrix, so this changes nothing, except that PyAV before 17 ignores a source equal to it.
        other = _BT601 if space == BT709 else BT709
        planar = self._planar(frame)
        return self._to_rgb.reformat(planar, format=name, src_colorspace=space, dst_colorspace=other)


def to_rgb(frame: av.VideoFrame, converter: Converter | None = None) -> npt.NDArray[np.uint8]:
    """Converts any pixel format to upright uint8 RGB [h, w, 3] with swscale.

    Transparent pixels are laid over black, as players show them. Wider samples are reduced to 8 bits; HDR is
    not tone-mapped. A `converter` kept by the caller saves swscale's preparation for every frame.
    """
    return upright(as_stored(frame, converter), display_matrix(frame))


def as_stored(frame: av.VideoFrame, converter: Converter | None = None) -> npt.NDArray[np.uint8]:
    """As `to_rgb`, without turning the picture."""
    converter = converter or Converter()
    if _has_alpha(frame):
        rgba = converter.rgb(frame, "rgba").to_ndarray().astype(np.uint16)
        return np.asarray((rgba[..., :3] * rgba[..., 3:] + 127) // 255, np.uint8)
    return np.asarray(converter.rgb(frame, "rgb24").to_ndarray(), np.uint8)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """The display matrix (a, b, c, d), None where absent: x' = a x + c y, y' = b x + d y with y down."""
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # another entry is of a kind that this PyAV does not know; it still tells the angle
        return _QUARTER_TURNS.get(round(getattr(frame, "rotation", 0) / 90) % 4)
    except (KeyError, AttributeError):
        return None
    if data is None:
        return None
    m = np.frombuffer(bytes(data), np.int32, count=9)
    return int(m[0]), int(m[1]), int(m[3]), int(m[4])


def upright(image: npt.NDArray[np.uint8], matrix: tuple[int, int, int, int] | None) -> npt.NDArray[np.uint8]:
    """Applies a display matrix: quarter turns and mirroring, to the nearest quarter turn."""
    turn = orientation(matrix)
    if turn.transposed:
        image = image.transpose(1, 0, 2)
    if turn.flip_x:
        image = image[:, ::-1]
    if turn.flip_y:
        image = image[::-1]
    return np.ascontiguousarray(image)


class Orientation(NamedTuple):
    """How a stored picture becomes upright: x and y change places, then columns and rows are reversed."""

    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False


def orientation(matrix: tuple[int, int, int, int] | None) -> Orientation:
    """The nearest quarter turn of a display matrix, with mirroring."""
    if matrix is None:
        return Orientation()
    a, b, c, d = matrix
    if max(abs(b), abs(c)) > max(abs(a), abs(d)):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def pixel_aspect(stream: Any, frame: av.VideoFrame) -> Fraction:
    """Width over height of a pixel as it is to be shown, of the upright picture; 1 where nothing is said."""
    ratio = Fraction(stream.sample_aspect_ratio or 1)
    if not Fraction(1, _PIXEL_ASPECT_MAX) <= ratio <= _PIXEL_ASPECT_MAX:
        return Fraction(1)
    return 1 / ratio if orientation(display_matrix(frame)).transposed else ratio


def as_rate(value: Fraction | None, default: Fraction = Fraction(25)) -> Fraction:
    """A usable frame rate from what a container says; None, 0 and absurd values become `default`."""
    return value if value is not None and 0 < value <= RATE_MAX else default
