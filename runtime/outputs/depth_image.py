"""Depth as pictures, one moment each: 16-bit PNG, or OpenEXR with the exact float32 values.

Expected depth (accumulated depth / alpha) in scene units; 0 where nothing covers the pixel. In a PNG one
level is 1/10,000 of a unit, so that both depth mappings fit (0.1 to 5, and 1 to 2). An EXR file has one
channel, Y.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from ..errors import InputError, OutputError
from ..video.png import encode_png

PNG_LEVELS_PER_UNIT = 10_000
ALPHA_MIN = 0.05  # a pixel that is covered less has no depth worth the name
_PIXELS_MAX = 16384 * 16384  # of the rasterizer
_FORMATS = {".png": "gray16", ".exr": "grayf32"}


def visible_depth(expected_depth: npt.NDArray[np.float32], alpha: npt.NDArray[np.float32]) -> Any:
    """Expected depth [H, W], 0 where hardly anything is."""
    return np.where(alpha >= ALPHA_MIN, expected_depth, np.float32(0))


def encode_depth_png(depth: npt.NDArray[np.float32]) -> bytes:
    """Depth [H, W] in scene units as a 16-bit grey PNG; what does not fit is clamped."""
    levels = np.clip(np.rint(depth * np.float32(PNG_LEVELS_PER_UNIT)), 0, 65535)
    return encode_png(levels.astype(np.uint16), level=3)


def check_exr() -> None:
    """OutputError where this build of FFmpeg cannot write OpenEXR."""
    if "exr" not in av.codecs_available:
        raise OutputError(
            "this build of FFmpeg has no OpenEXR encoder.", "Save depth as PNG, or install PyAV's own wheels."
        )


def encode_depth_exr(depth: npt.NDArray[np.float32]) -> bytes:
    """Depth [H, W] as OpenEXR: float32, one channel, deflated; exact."""
    context: Any = av.CodecContext.create("exr", "w")
    context.height, context.width = depth.shape
    context.pix_fmt, context.time_base = "grayf32le", Fraction(1, 25)
    context.options = {"compression": "zip16"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(depth, np.float32), format="grayf32le")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def read_depth(path: Path | str) -> npt.NDArray[np.float32]:
    """Depth [H, W] in scene units from a 16-bit PNG or an OpenEXR file as written here.

    Raises:
        InputError: not such a file, damaged, absurdly large, or with values that are not finite.
    """
    path = Path(path)
    wanted = _FORMATS.get(path.suffix.lower())
    if wanted is None:
        raise InputError(f"{path}: is not a depth picture.", "Pass a 16-bit .png or an .exr file.")
    try:
        with av.open(str(path), options={"max_pixels": str(_PIXELS_MAX)}) as container:
            frame = next(container.decode(video=0))
    except (av.error.FFmpegError, OSError, ValueError, IndexError, StopIteration) as error:
        raise InputError(f"{path}: cannot be decoded.", "Is the file complete?") from error
    if not frame.format.name.startswith(wanted):
        raise InputError(
            f"{path}: holds {frame.format.name}, not one channel of depth.", "Pass a depth picture."
        )
    values = frame.to_ndarray()
    depth: npt.NDArray[np.float32] = values.astype(np.float32)
    if wanted == "gray16":
        depth /= PNG_LEVELS_PER_UNIT
    if not np.isfinite(depth).all():
        raise InputError(f"{path}: holds values that are not finite.", "The file is damaged; save it again.")
    return depth
