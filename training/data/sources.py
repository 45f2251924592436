"""Clips as they lie on disk: a video or the images of a sequence, with what is known about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from streamsplat_edge.runtime.errors import InputError, VideoError
from streamsplat_edge.runtime.video.reader import IMAGE_SUFFIXES, open_video

from .sample import U8

DEPTH_SUFFIXES = {".png", ".npy"}


@dataclass(frozen=True)
class Source:
    """A clip to be cached.

    Attributes:
        name: unique, a plain file name.
        split: "train" or "eval".
        path: the video file, or the folder the images lie in (for messages).
        relative: where it lies in the folder that was given, without suffix: labels elsewhere mirror it.
        images: the images of a sequence in order; None for a video.
        fps: frames per second; None: as the video says.
        numbers, times: source frame number and seconds of every image; default 0, 1, ... and number / fps.
        crop: x, y, width, height in pixels; None: everything.
        shots: [[first, last + 1], ...] in frames; what lies outside is not used. None: cuts are detected.
        frames: how many frames are expected (0: not known).
        masks: per image the file of its instance annotation (0 = background), None where it has none.
        depths: per frame the file of its inverse depth.
        span: see `reader.Clip.span`.
        info: kept with the clip.
    """

    name: str
    split: str
    path: Path
    relative: Path
    images: tuple[Path, ...] | None = None
    fps: float | None = None
    numbers: tuple[int, ...] | None = None
    times: tuple[float, ...] | None = None
    crop: tuple[int, int, int, int] | None = None
    shots: list[list[int]] | None = None
    frames: int = 0
    masks: tuple[Path | None, ...] | None = None
    depths: tuple[Path, ...] | None = None
    span: int | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawFrame:
    """A decoded frame: place in the source, source frame number, uint8 RGB [h, w, 3], seconds (or None)."""

    place: int
    number: int
    image: U8
    time: float | None


class Frames:
    """Iterates the frames of a source, once.

    Attributes:
        fps: frames per second.
        damage: what could not be decoded, in words; final after the last frame.

    Raises:
        ValueError, OSError, FFmpegError: nothing can be decoded, or (while iterating) no further frame.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.fps = source.fps or 0.0
        self.damage: str | None = None
        if source.images is not None:
            self._frames = self._read_images(source.images)
        elif source.crop is not None:
            self._frames = self._decode_cropped(source.crop)
        else:
            self._frames = self._decode()

    def __iter__(self) -> Iterator[RawFrame]:
        return self._frames

    def _decode(self) -> Iterator[RawFrame]:
        try:
            with open_video(self.source.path) as reader:
                self.fps = float(self.source.fps or reader.rate)
                for frame in reader:
                    yield RawFrame(frame.index, frame.index, frame.image, frame.timestamp)
                self.damage = reader.truncated
        except VideoError as error:
            raise ValueError(str(error)) from error

    def _decode_cropped(self, crop: tuple[int, int, int, int]) -> Iterator[RawFrame]:
        """A clip of a manifest: frame numbers there count decoded frames, whatever their time stamps."""
        x, y, w, h = crop
        with av.open(str(self.source.path)) as container:
            if not container.streams.video:
                raise ValueError("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                image = frame.to_ndarray(format="rgb24")[y : y + h, x : x + w]
                if image.shape[:2] != (h, w):
                    raise ValueError(
                        f"crop {list(crop)} does not fit a frame of {frame.width}x{frame.height}"
                    )
                known = frame.pts is not None and frame.time_base is not None
                time = float(frame.pts * frame.time_base) if known else None
                yield RawFrame(number, number, np.asarray(image, np.uint8), time)

    def _read_images(self, images: tuple[Path, ...]) -> Iterator[RawFrame]:
        source, damaged = self.source, []
        for place, path in enumerate(images):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                damaged.append(path.name)
                continue
            number = place if source.numbers is None else source.numbers[place]
            time = None if source.times is None else source.times[place]
            rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
            yield RawFrame(place, number, rgb, time)
        if damaged:
            some = ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else "")
            self.damage = f"{len(damaged)} of {len(images)} images could not be decoded: {some}"


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorting key of names with numbers: frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def images_in(folder: Path) -> list[Path]:
    """The images of a folder (not of its subfolders) in natural order."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(found, key=natural)


def with_depths(sources: list[Source], depth_dir: Path) -> list[Source]:
    """The sources with the inverse depth that lies under `depth_dir`, mirroring their names.

    The depths of a clip lie in `depth_dir / relative` or `depth_dir / name`: one .png or .npy per frame,
    named like its image, or for a video in natural order. A clip without such a folder has no depth.

    Raises:
        InputError: the folder is missing or mirrors no clip, or a clip has more, fewer or other files than
            frames.
    """
    if not depth_dir.is_dir():
        raise InputError(f"{depth_dir} is not a folder.", "Give the folder of depth maps.")
    result, found = [], 0
    for source in sources:
        folders = (depth_dir / source.relative, depth_dir / source.name)
        folder = next((f for f in folders if f.is_dir()), None)
        depths: tuple[Path, ...] | None = None
        if folder is not None:
            files = [p for p in folder.iterdir() if p.suffix.lower() in DEPTH_SUFFIXES]
            depths = _matched(source, folder, sorted(files, key=natural))
            found += 1
        result.append(Source(**{**vars(source), "depths": depths}))
    if not found:
        names = ", ".join(str(s.relative) for s in sources[:3])
        raise InputError(
            f"{depth_dir} has no folder named like a clip (looked for {names}, ...).",
            "Depth maps lie in one folder per clip that mirrors the clip's own path or name.",
        )
    return result


def _matched(source: Source, folder: Path, files: list[Path]) -> tuple[Path, ...]:
    """The depth files of a source in the order of its frames."""
    if source.images is None:
        if source.frames and len(files) != source.frames:
            raise _wrong_count(folder, len(files), source.name, source.frames)
        return tuple(files)
    by_stem = {path.stem: path for path in files}
    missing = [image.stem for image in source.images if image.stem not in by_stem]
    if missing or len(files) != len(source.images):
        raise _wrong_count(folder, len(files), source.name, len(source.images), missing)
    return tuple(by_stem[image.stem] for image in source.images)


def _wrong_count(
    folder: Path, files: int, name: str, frames: int, missing: list[str] | None = None
) -> InputError:
    lacks = f", none for {', '.join(missing[:3])}" if missing else ""
    return InputError(
        f"{folder} holds {files} depth maps, clip {name} has {frames} frames{lacks}.",
        "One .png or .npy per frame, named like it, and nothing else.",
    )


def check_depth_count(source: Source, frames: int) -> None:
    """Raise InputError where a video turned out to have another number of frames than depth maps."""
    if source.depths is not None and source.images is None and len(source.depths) != frames:
        raise _wrong_count(source.depths[0].parent, len(source.depths), source.name, frames)
