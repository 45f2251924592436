"""A folder of images as a video: sorted by name, at a given rate. Also a single image."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from ..errors import VideoError
from . import exif
from .frames import VideoFrame, as_stored, display_matrix, upright
from .reader import IMAGE_SUFFIXES, VideoReader
from .reading import DAMAGE


class FolderReader(VideoReader):
    """Reads the images of one folder (not of its subfolders) in the order of their names, or one image.

    A damaged image is left out and reported in `truncated`; its place in time stays empty.
    """

    def __init__(self, folder: Path, rate: Fraction) -> None:
        super().__init__(str(folder))
        self.rate = rate
        self._paths = [folder] if folder.is_file() else _images_in(folder)
        if not self._paths:
            raise VideoError(
                f"{folder}: no images in this folder.", f"Looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        self.frames_estimate = len(self._paths)
        self._damaged: list[str] = []
        self._frames = self._decode()
        self._first = next(self._frames, None)
        if self._first is None:
            raise VideoError(
                f"{folder}: none of its {len(self._paths)} images could be decoded."
                if folder.is_dir()
                else f"{folder}: no image that can be decoded.",
                "Can another program show it?",
            )
        self.height, self.width = self._first.image.shape[:2]

    def _decode(self) -> Iterator[VideoFrame]:
        index = 0
        start: int | None = None
        for place, path in enumerate(self._paths):
            try:
                with av.open(str(path)) as container:
                    image = _decoded(path, next(container.decode(video=0)))
            except (*DAMAGE, StopIteration):
                self._damaged.append(path.name)
                continue
            start = place if start is None else start
            yield VideoFrame(image, float((place - start) / self.rate), index)
            index += 1
        if self._damaged:
            some = ", ".join(self._damaged[:3]) + (", ..." if len(self._damaged) > 3 else "")
            self.truncated = f"{len(self._damaged)} of {len(self._paths)} images could not be decoded: {some}"

    def __iter__(self) -> Iterator[VideoFrame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def close(self) -> None:
        self._frames.close()  # type: ignore[attr-defined]


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    )


def _decoded(path: Path, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """Upright uint8 RGB [h, w, 3]."""
    jpeg = path.suffix.lower() in exif.SUFFIXES
    return upright(as_stored(frame), exif.exif_matrix(path) if jpeg else display_matrix(frame))
