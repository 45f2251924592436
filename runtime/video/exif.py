"""How a camera was held when it took a JPEG: the orientation in its EXIF segment.

libav tells from version 8 on, and PyAV not always what libav says; so it is read here.
"""

from __future__ import annotations

import struct
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg"}

_HEAD = 256 * 1024  # bytes in which the segment is looked for: it comes first, and holds 64 KiB at most
_EXIF = b"Exif\0\0"
_APP1, _SCAN = 0xE1, 0xDA
_ORIENTATION = 0x0112
_SHORT = 3
_ENTRY = 12  # bytes

# The display matrix of each orientation; see `frames.display_matrix`.
_MATRICES = {
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def exif_matrix(path: Path) -> tuple[int, int, int, int] | None:
    """The display matrix of a JPEG file; None where it is upright, or says nothing that can be read.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    try:
        return _MATRICES.get(_orientation(_segment(head)))
    except (struct.error, IndexError):  # cut off, or points outside itself
        return None


def _segment(head: bytes) -> bytes:
    """What the EXIF segment holds: a TIFF file. Empty where there is none."""
    place = 2
    while head[place] == 0xFF and head[place + 1] != _SCAN:
        marker = head[place + 1]
        (length,) = struct.unpack_from(">H", head, place + 2)
        content = head[place + 4 : place + 2 + length]
        if marker == _APP1 and content.startswith(_EXIF):
            return content[len(_EXIF) :]
        place += 2 + length
    return b""


def _orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    for i in range(count):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + i * _ENTRY)
        if tag == _ORIENTATION and kind == _SHORT:
            return int(value)
    return 1
