"""Photographs are shown as the camera was held: orientation by EXIF, in folders and alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_samples import moving_square, sample_photo

from streamsplat_edge.runtime.errors import VideoError
from streamsplat_edge.runtime.video import open_video
from streamsplat_edge.runtime.video.exif import exif_matrix
from streamsplat_edge.runtime.video.frames import display_matrix, orientation

# Where the stored first row and first column lie in the upright picture, by the standard (JEITA CP-3451).
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, 3),
    7: lambda stored: np.rot90(stored.transpose(1, 0, 2), 2),
    8: lambda stored: np.rot90(stored, 1),
}


def segment(orientation: int, order: str = "<", *, before: int = 2) -> bytes:
    """An EXIF segment with the orientation after other entries."""
    entries = [struct.pack(f"{order}HHII", 0x0100 + i, 4, 1, 7) for i in range(before)]
    entries.append(struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0))
    mark = b"II" if order == "<" else b"MM"
    tiff = mark + struct.pack(f"{order}HIH", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    content = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


@pytest.fixture
def plain(tmp_path: Path) -> bytes:
    """A JPEG as libav writes it, without EXIF."""
    return sample_photo(tmp_path / "plain.jpg").read_bytes()


def photo(plain: bytes, path: Path, *segments: bytes) -> Path:
    assert plain[:2] == b"\xff\xd8"
    path.write_bytes(plain[:2] + b"".join(segments) + plain[2:])
    return path


def close(image: np.ndarray, truth: np.ndarray) -> bool:
    return image.shape == truth.shape and float(np.abs(image.astype(float) - truth).mean()) < 8


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation(tmp_path: Path, plain: bytes, orientation: int, order: str) -> None:
    truth = UPRIGHT[orientation](moving_square(0))
    (tmp_path / "photos").mkdir()
    path = photo(plain, tmp_path / "photos" / "a.JPG", segment(orientation, order))
    for uri in (path, path.parent):
        with open_video(uri) as reader:
            (frame,) = reader
            assert (reader.height, reader.width) == truth.shape[:2]
        assert close(frame.image, truth)


def test_the_segment_is_found_behind_others(tmp_path: Path, plain: bytes) -> None:
    other = b"\xff\xe1" + struct.pack(">H", 10) + b"http://x"
    assert exif_matrix(photo(plain, tmp_path / "a.jpg", other, segment(6))) == (0, 1, -1, 0)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8" + segment(6)[:20],
        b"\xff\xd8" + segment(9),
        b"\xff\xd8" + segment(6).replace(struct.pack("<I", 8), struct.pack("<I", 1 << 31)),
        b"\xff\xd8" + segment(6).replace(b"II", b"XX"),
    ],
)
def test_what_cannot_be_read_is_upright(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(head)
    assert exif_matrix(tmp_path / "a.jpg") is None


def test_a_single_image_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 100)
    with pytest.raises(VideoError, match=r"a\.jpg: no image") as caught:
        open_video(tmp_path / "a.jpg")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("angle", "matrix"),
    [(-90, (0, 1, -1, 0)), (90, (0, -1, 1, 0)), (180, (-1, 0, 0, -1)), (-180, (-1, 0, 0, -1)), (0, None)],
)
def test_side_data_of_unknown_kinds_does_not_hide_the_angle(angle: int, matrix: tuple | None) -> None:
    class Frame:
        rotation = angle

        @property
        def side_data(self) -> Any:
            raise ValueError("31 is not a valid Type")  # PyAV 18 with the EXIF of libav 8

    frame: Any = Frame()
    assert display_matrix(frame) == matrix


def test_what_pyav_makes_of_it_is_the_same(tmp_path: Path, plain: bytes) -> None:
    """libav reads EXIF too, from version 8 on: not turned twice, wherever it is read."""
    path = photo(plain, tmp_path / "a.jpg", segment(6))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    told = display_matrix(frame)  # some releases of PyAV do not tell; else in libav's units
    assert told is None or orientation(told) == orientation(exif_matrix(path))
