"""Small videos made on the spot for the tests of video input and of the command line."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CLOCK = Fraction(1, 90_000)


def moving_square(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame `index` of a scene that video codecs keep well: a red square moving over a blue-green ramp."""
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = 40
    image[..., 1] = np.linspace(40, 200, width, dtype=np.uint8)
    image[..., 2] = np.linspace(60, 220, height, dtype=np.uint8)[:, None]
    x = (2 * index) % (width - 16)
    image[height // 3 : height // 3 + 16, x : x + 16] = (230, 40, 40)
    return image


def write_video(
    path: Path,
    images: Sequence[np.ndarray],
    times: Sequence[float] | None = None,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    source_format: str = "rgb24",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    colorspace: int | None = None,
    clock: Fraction = CLOCK,
    rate: int = 25,
) -> Path:
    """Encodes `images` (uint8 RGB, or arrays of `source_format`) at `times` seconds with PyAV directly."""
    times = [i / rate for i in range(len(images))] if times is None else times
    height, width = images[0].shape[:2]
    if source_format == "yuv420p":
        height = height * 2 // 3
    container: Any = av.open(str(path), "w", options=container_options or {})
    container.metadata.update(metadata or {})
    with container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = clock
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=source_format)
            frame.pts, frame.time_base = round(time / clock), clock
            if frame.format.name != pixel_format:
                frame = frame.reformat(format=pixel_format, dst_colorspace=colorspace)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sample_clip(path: Path, frames: int = 12, height: int = 48, width: int = 64, **kwargs: Any) -> Path:
    """A clip of `moving_square` at 25 frames per second."""
    return write_video(path, [moving_square(i, height, width) for i in range(frames)], **kwargs)


def sample_photo(path: Path) -> Path:
    """Frame 0 of `moving_square` as a JPEG without EXIF."""
    stream = path.with_suffix(".mjpeg")
    coded = {"codec": "mjpeg", "pixel_format": "yuvj420p", "clock": Fraction(1, 25)}
    return sample_clip(stream, 1, **coded).replace(path)


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes a display matrix (a, b, c, d) into the header of an MP4, as phones do when held upright.

    A player shows pixel (x, y) at (a x + c y, b x + d y), y downwards. A phone in portrait: (0, 1, -1, 0).
    """
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    assert data[start] == 0, "version 0 of the box"
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">6i", data, start + 40, a, b, 0, c, d, 0)
    path.write_bytes(data)
    return path


def truncated_clip(path: Path, frames: int = 60) -> Path:
    """An MP4 with its index at the front whose second half is missing, as after a broken download."""
    noise = np.random.default_rng(0).integers(0, 40, (frames, 48, 64, 3), dtype=np.uint8)
    images = [moving_square(i) // 2 + noise[i] for i in range(frames)]
    whole = write_video(
        path.with_name("whole-" + path.name),
        images,
        options={"bf": "0", "g": "10"},
        container_options={"movflags": "+faststart"},
    )
    data = whole.read_bytes()
    whole.unlink()
    path.write_bytes(data[: len(data) * 6 // 10])
    return path


def audio_only(path: Path) -> Path:
    """A WAV file of silence."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
