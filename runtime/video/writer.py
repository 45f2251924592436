"""Video out: H.264 in MP4, MOV or Matroska, or a folder of PNG images. Time stamps are kept as they come."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from ..errors import InputError, OutputError
from ..folders import swap_in
from .frames import BT709, LIMITED_RANGE, to_rgb
from .output import AtomicFile, output_error, write_bytes
from .png import encode_png

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
# Exact for 24, 25, 29.97, 30, 50, 59.94 and 60 frames per second, and within the 16 bits of MPEG-4 part 2.
TIME_BASE = Fraction(1, 60_000)
_SECONDS_MAX = 1e12  # thirty thousand years, which 64 bits hold in ticks
_OURS = re.compile(r"timestamps\.csv|frame_\d+\.png")  # what FolderWriter writes


def open_writer(
    path: Path | str,
    width: int,
    height: int,
    *,
    rate: Fraction | float = 25,
    aspect: Fraction | None = None,
    force: bool = False,
) -> VideoWriter | FolderWriter:
    """Opens a video file (.mp4, .m4v, .mov, .mkv) or, for a path without suffix, a folder of PNG images.

    Raises:
        OutputError: before any work is done, where the place cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() in CONTAINERS:
        return VideoWriter(path, width, height, rate=rate, aspect=aspect)
    if path.suffix == "":
        return FolderWriter(path, force=force)
    raise OutputError(
        f"{path}: cannot write files of type {path.suffix}.",
        f"Use one of {', '.join(CONTAINERS)}, or a name without suffix for a folder of PNG images.",
    )


def pick_codec() -> tuple[str, dict[str, str]]:
    """The H.264 encoder libx264; where this build of FFmpeg lacks it, MPEG-4 part 2 (which every build has).

    The choice is explicit: it is part of `VideoWriter.description` and so of the statistics.
    """
    if "libx264" in av.codecs_available:
        return "libx264", {"crf": "18", "preset": "veryfast"}
    return "mpeg4", {"flags": "+qscale", "global_quality": str(3 * 118)}


class VideoWriter:
    """Encodes frames into one file that appears, complete, on `close`.

    Args:
        path: target; written under a temporary name in the same folder and renamed.
        width, height: size of the frames in pixels. Odd sizes are padded by repeating the last column or row
            (4:2:0 needs even ones).
        rate: nominal frames per second, a hint for players; the time stamps decide.
        aspect: sample aspect ratio, for frames whose pixels are not square.

    As a context manager: closes on success, aborts on an exception. `close` without a frame leaves no file.
    """

    def __init__(
        self,
        path: Path | str,
        width: int,
        height: int,
        *,
        rate: Fraction | float = 25,
        aspect: Fraction | None = None,
    ) -> None:
        self.path = Path(path)
        self.width, self.height = width, height
        self.frames = 0
        self._pad = (height % 2, width % 2)
        self._last_tick = -1
        self._shift = 0
        self._reformatter = VideoReformatter()
        container = CONTAINERS.get(self.path.suffix.lower())
        if container is None:
            raise OutputError(f"{path}: unknown type of video.", f"Use one of {', '.join(CONTAINERS)}.")
        codec, options = pick_codec()
        self.description = (
            f"{codec} {' '.join(f'{k}={v}' for k, v in options.items())} yuv420p bt709 {container}"
        )
        self._file = AtomicFile(self.path)
        try:
            self._container: Any = av.open(self._file, "w", format=container)
            stream: Any = self._container.add_stream(
                codec, rate=Fraction(rate).limit_denominator(1001), options=options
            )
            stream.width, stream.height = width + self._pad[1], height + self._pad[0]
            stream.pix_fmt = "yuv420p"
            stream.time_base = TIME_BASE
            context = stream.codec_context
            context.time_base = TIME_BASE
            context.thread_count = 0
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
            if aspect is not None:
                context.sample_aspect_ratio = aspect.limit_denominator(65535)
            self._stream = stream
        except BaseException:
            self._file.discard()
            raise

    def write(self, image: npt.NDArray[np.uint8] | av.VideoFrame, timestamp: float) -> None:
        """Encodes one frame.

        Args:
            image: uint8 RGB [height, width, 3], or a frame of the file's own format (yuv420p,
                BT.709) and size.
            timestamp: seconds; a frame that is not later than the last one is moved on by one tick.
                Containers begin at 0: where the first frame's is negative, it counts from there.

        Raises:
            InputError: an image of another size or type, or a time stamp that no container holds.
        """
        tick = self._tick(timestamp)
        if isinstance(image, av.VideoFrame):
            frame = image
            if (frame.format.name, frame.width, frame.height) != ("yuv420p", self.width, self.height) or any(
                self._pad
            ):
                raise InputError(f"frame is {frame}, not yuv420p {self.width}x{self.height} of even size.")
        else:
            frame = self._convert(image)
        self._last_tick = tick
        frame.pts, frame.time_base = tick, TIME_BASE
        self._mux(frame)
        self.frames += 1

    def _tick(self, timestamp: float) -> int:
        if not abs(timestamp) < _SECONDS_MAX:  # refuses NaN as well
            raise InputError(f"The time stamp {timestamp} s does not fit into a video.", "Count in seconds.")
        tick = round(timestamp * TIME_BASE.denominator)
        if self.frames == 0:
            self._shift = max(0, -tick)
        return max(tick + self._shift, self._last_tick + 1)

    def _convert(self, image: npt.NDArray[np.uint8]) -> av.VideoFrame:
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            raise InputError(
                f"frame is {image.dtype} {list(image.shape)}, not uint8 {[self.height, self.width, 3]}."
            )
        if any(self._pad):
            image = np.pad(image, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        return self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), "rgb24"),
            format="yuv420p",
            dst_colorspace=BT709,
            interpolation=Interpolation.BILINEAR,
        )

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            self.abort()
            raise output_error(self.path, self._file.error or error) from error
        if self._file.error is not None:
            self.abort()
            raise output_error(self.path, self._file.error)

    def close(self) -> None:
        """Finishes the file and gives it its name; OutputError, nothing left, if a byte was not stored."""
        if self._container is None:
            return
        if self.frames == 0:
            self.abort()
            return
        self._mux(None)
        container, self._container = self._container, None
        try:
            container.close()
        except (av.error.FFmpegError, OSError) as error:
            self._file.discard()
            raise output_error(self.path, self._file.error or error) from error
        self._file.commit()

    def abort(self) -> None:
        """Leaves no file."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(av.error.FFmpegError, OSError):
                container.close()
        self._file.discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class FolderWriter:
    """Writes frame_000000.png, ... and timestamps.csv; the folder appears, complete, on `close`."""

    description = "png folder"

    def __init__(self, path: Path | str, *, force: bool = False) -> None:
        self.path = Path(path)
        self.frames = 0
        self._times: list[float] = []
        if self.path.name in ("", "..") or self.path.is_symlink():
            kind = "a link" if self.path.is_symlink() else "not the name of a folder that can be made"
            raise OutputError(f"{path}: is {kind}.", "Give the name of a new folder.")
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        if self.path.exists():
            self._refuse_unless_ours(force)
        # A killed process of the same number left it: in a container every run has the same number.
        shutil.rmtree(self._temporary, ignore_errors=True)
        try:
            self._temporary.mkdir()
        except OSError as error:
            raise output_error(self.path, error) from error
        self._open = True

    def _refuse_unless_ours(self, force: bool) -> None:
        if not self.path.is_dir():
            raise OutputError(
                f"{self.path}: exists and is a file.", "Choose another name, or add .mp4 for a video."
            )
        names = [p.name for p in self.path.iterdir()]
        foreign = [name for name in names if not _OURS.fullmatch(name)]
        if foreign:
            raise OutputError(
                f"{self.path}: holds files that are not an earlier result ({foreign[0]}).",
                "Choose an empty folder or another name.",
            )
        if names and not force:
            raise OutputError(f"{self.path}: holds an earlier result.", "Pass --force to replace it.")

    def write(self, image: npt.NDArray[np.uint8] | av.VideoFrame, timestamp: float) -> None:
        """Stores one frame, uint8 RGB [h, w, 3] or any frame of libav, any size; `timestamp` in seconds."""
        if isinstance(image, av.VideoFrame):
            image = to_rgb(image)
        self._store(f"frame_{self.frames:06d}.png", encode_png(image, level=3))
        self.frames += 1
        self._times.append(timestamp)

    def _store(self, name: str, data: bytes) -> None:
        try:
            write_bytes(self._temporary / name, data)
        except OutputError as error:
            self.abort()
            cause = error.__cause__
            if isinstance(cause, OSError):  # the user knows the folder by its name
                raise output_error(self.path, cause) from cause
            raise

    def close(self) -> None:
        """Gives the folder its name; OutputError, nothing left, if a byte was not stored. Without a frame
        there is no folder."""
        if not self._open:
            return
        if self.frames == 0:
            self.abort()
            return
        table = "index,seconds\n" + "".join(f"{i},{t:.6f}\n" for i, t in enumerate(self._times))
        self._store("timestamps.csv", table.encode())
        try:
            swap_in(self._temporary, self.path)
        except OSError as error:
            self.abort()
            raise output_error(self.path, error) from error
        self._open = False

    def abort(self) -> None:
        """Leaves no folder."""
        if self._open:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._open = False

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
