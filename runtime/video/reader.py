"""Video in: files, image folders and, through `sources`, what is live. `open_video` picks the reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import InputError, VideoError
from . import exif
from .decoding import SOFTWARE_HINT, acceleration
from .frames import RATE_MAX
from .reading import open_aside
from .surface import DecodedFrame

if TYPE_CHECKING:
    from ..sources import LiveOptions

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
VIDEO_SUFFIXES = {
    ".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".y4m", ".ogv", ".flv", ".wmv",
}  # fmt: skip
DEFAULT_FOLDER_RATE = Fraction(24)


class VideoReader(ABC):
    """Iterates the frames of one input, once.

    Attributes:
        uri: what was opened.
        width, height: size of the first frame in pixels, upright. Later frames may differ.
        pixel_aspect: width over height of a pixel as it is to be shown, of the first frame.
        rate: nominal frames per second.
        frames_estimate: number of frames the container announces, None where it does not say.
        live: frames arrive in real time, whether somebody is ready for them or not.
        reconnects: it is opened again when it breaks off; what comes may be live without saying so.
        truncated: None, or a sentence: where and why decoding ended early. Final after the last frame.
        notes: sentences about repairs (time stamps, damaged packets) worth telling the user.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.width = 0
        self.height = 0
        self.pixel_aspect = Fraction(1)
        self.rate = Fraction(25)
        self.frames_estimate: int | None = None
        self.live = False
        self.reconnects = False
        self.truncated: str | None = None
        self.notes: list[str] = []

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the first frame as it is to be shown, in square pixels."""
        return self.height, max(1, round(self.width * self.pixel_aspect))

    @property
    def dropped(self) -> int:
        """Frames of a live source that were given up because they had waited too long."""
        return 0

    @property
    def counters(self) -> dict[str, float]:
        """What happened to a live source so far, by name (`sources.SourceEvents`); empty for a recording."""
        return {}

    @abstractmethod
    def __iter__(self) -> Iterator[DecodedFrame]:
        """Yields the frames in order of time."""

    @abstractmethod
    def close(self) -> None:
        """Releases the input; safe to call twice."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_video(
    uri: str | Path,
    *,
    folder_rate: Fraction | float = DEFAULT_FOLDER_RATE,
    threads: int = 0,
    live: LiveOptions | None = None,
    decode: str = "software",
    surfaces: bool = False,
) -> VideoReader:
    """Opens a recording or a live source; `sources.parse_uri` lists the forms.

    Args:
        uri: a path (video file, image, or folder of images, sorted by name), `camera:N`, `rtsp://`,
            `http(s)://`, ...
        folder_rate: frames per second given to the images of a folder.
        threads: decoding threads for recordings, 0 = as many as there are cores.
        live: patience and options for a live source.
        decode: `software`, or `cuda` for files and network streams: on the GPU, see `decoding`.
        surfaces: with `cuda`, leave the pictures on the GPU: frames are `surface.SurfaceFrame`.

    Returns:
        A reader whose first frame has been decoded already, so its size is known.

    Raises:
        VideoError: with a hint, where there is nothing that can be decoded, or not where it was asked for.
        InputError: an impossible `folder_rate`, or a source that cannot be decoded on a GPU.
    """
    from ..sources.uri import parse_uri

    source = parse_uri(str(uri))
    folder = source.kind == "path" and Path(source.target).is_dir()
    if decode != "software" and (folder or source.kind not in ("path", "network")):
        raise InputError(
            f"{source.shown}: only files and network streams are decoded on a GPU.", SOFTWARE_HINT
        )
    accelerator = acceleration(decode, surfaces=surfaces)
    if source.kind == "path":
        return _open_path(source.target, folder_rate, threads, accelerator)
    from ..sources.live import LiveReader, open_network

    if source.kind == "network":
        return open_aside(lambda: open_network(source, live, threads=threads, accelerator=accelerator))
    if source.kind == "camera":
        return open_aside(lambda: LiveReader(source, live))
    return LiveReader(source, live)  # waits for a process, which can be interrupted and must be ended


def _open_path(text: str, folder_rate: Fraction | float, threads: int, accelerator: Any) -> VideoReader:
    from .file import FileReader, open_container
    from .folder import FolderReader

    path = Path(text)
    try:
        if path.is_dir():
            if not 0 < folder_rate <= RATE_MAX:
                raise InputError(
                    f"The rate of the folder is {folder_rate} frames per second.",
                    f"Use more than 0, at most {RATE_MAX}.",
                )
            return FolderReader(path, Fraction(folder_rate))
        if not path.exists():
            raise VideoError(
                f"{path}: no such file or folder.", "Check the path; a camera is written camera:0."
            )
        if path.is_file() and path.stat().st_size == 0:
            raise VideoError(
                f"{path}: the file is empty (0 bytes).",
                "The download or recording failed; get the file again.",
            )
    except OSError as error:
        raise VideoError(
            f"{path}: cannot be read: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    if path.suffix.lower() in exif.SUFFIXES and accelerator is None:
        return FolderReader(path, Fraction(folder_rate))
    container = open_container(text, accelerator)
    return FileReader(text, container, threads=threads, accelerated=accelerator is not None)
