"""PLY files with the field names of 3D Gaussian splatting, one moment each: write and read.

Fields, float32, little-endian: x y z, f_dc_0..2 (spherical harmonics of degree 0), opacity (logit),
scale_0..2 (natural logarithm), rot_0..3 (w x y z). Axes: see `cloud`. Comment lines keep the time and the
picture.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from .cloud import COUNT_MAX, Cloud, Picture, check_cloud

SH_C0 = 0.28209479177387814  # of degree 0: 1 / (2 sqrt(pi))
FIELDS = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
_SCALE_MIN = 1e-9  # has a logarithm
_OPACITY_EDGE = 1e-6  # has a logit; 8-bit pictures cannot show the difference
_HEADER_MAX = 64 * 1024
_TYPES = {
    **{name: "i1" for name in ("char", "int8")},
    **{name: "u1" for name in ("uchar", "uint8")},
    **{name: "i2" for name in ("short", "int16")},
    **{name: "u2" for name in ("ushort", "uint16")},
    **{name: "i4" for name in ("int", "int32")},
    **{name: "u4" for name in ("uint", "uint32")},
    **{name: "f4" for name in ("float", "float32")},
    **{name: "f8" for name in ("double", "float64")},
}
_COMMENT = re.compile(r"streamsplat-edge (time|picture) (.+)")


def encode_ply(cloud: Cloud) -> bytes:
    """The bytes of a PLY file."""
    notes = []
    if cloud.picture is not None:
        notes.append(f"comment streamsplat-edge picture {cloud.picture.to_text()}")
    if cloud.time is not None:
        notes.append(f"comment streamsplat-edge time {float(cloud.time)!r}")
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        *notes,
        f"element vertex {cloud.count}",
        *(f"property float {name}" for name in FIELDS),
        "end_header",
    ]
    rows = np.empty((cloud.count, len(FIELDS)), "<f4")
    rows[:, 0:3] = cloud.means
    rows[:, 3:6] = (cloud.rgb - 0.5) / SH_C0
    opacity = np.clip(cloud.opacity.astype(np.float64), _OPACITY_EDGE, 1 - _OPACITY_EDGE)
    rows[:, 6] = np.log(opacity / (1 - opacity))
    rows[:, 7:10] = np.log(np.maximum(cloud.scales, _SCALE_MIN))
    rows[:, 10:14] = cloud.quats
    return ("\n".join(lines) + "\n").encode("ascii") + rows.tobytes()


def read_ply(path: Path | str) -> Cloud:
    """Reads a binary little-endian PLY with the fields of 3DGS; other fields are passed over.

    Raises:
        InputError: not such a file, cut short, or with values that cannot be used.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            layout, count, notes = _read_header(file, path)
            left = size - file.tell()
            if count > COUNT_MAX or count * layout.itemsize > left:
                raise InputError(
                    f"{path}: announces {count} Gaussians of {layout.itemsize} bytes, but {left} follow.",
                    "The file is cut short or damaged; save it again.",
                )
            rows = np.frombuffer(file.read(count * layout.itemsize), layout, count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error

    def columns(*names: str) -> np.ndarray:
        return np.stack([rows[name].astype(np.float32) for name in names], 1)

    with np.errstate(over="ignore"):  # infinity is refused below
        cloud = Cloud(
            means=columns("x", "y", "z"),
            scales=np.exp(columns("scale_0", "scale_1", "scale_2")),
            quats=columns("rot_0", "rot_1", "rot_2", "rot_3"),
            rgb=columns("f_dc_0", "f_dc_1", "f_dc_2") * np.float32(SH_C0) + np.float32(0.5),
            opacity=np.float32(1) / (1 + np.exp(-rows["opacity"].astype(np.float32))),
            time=_time(notes, path),
            picture=Picture.of_text(notes["picture"], str(path)) if "picture" in notes else None,
        )
    return check_cloud(cloud, str(path))


def read_time(path: Path | str) -> float | None:
    """The time of a file, without its Gaussians. Raises `InputError` like `read_ply`."""
    try:
        with Path(path).open("rb") as file:
            return _time(_read_header(file, Path(path))[2], Path(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read_header(file: BinaryIO, path: Path) -> tuple[np.dtype, int, dict[str, str]]:
    """Layout of a row, number of rows, and our comments; leaves the file at the first row."""
    head = file.read(_HEADER_MAX)
    end = re.search(rb"\nend_header\r?\n", head)
    if not head.startswith(b"ply") or end is None:
        raise InputError(f"{path}: is not a PLY file.", "Pass a .ply file with Gaussians.")
    file.seek(end.end())
    lines = head[: end.start()].decode("ascii", "replace").splitlines()
    if "format binary_little_endian 1.0" not in [line.strip() for line in lines]:
        raise InputError(f"{path}: is not a binary little-endian PLY.", "Convert it to that form first.")
    notes: dict[str, str] = {}
    fields: list[tuple[str, str]] = []
    elements: list[tuple[str, int]] = []
    for line in lines:
        words = line.split()
        if words[:1] == ["comment"] and (found := _COMMENT.fullmatch(" ".join(words[1:]))):
            notes[found[1]] = found[2]
        elif words[:1] == ["element"] and len(words) == 3 and words[2].isdecimal():
            elements.append((words[1], int(words[2])))
        elif words[:1] == ["property"] and len(elements) == 1:
            if len(words) != 3 or words[1] not in _TYPES:
                raise InputError(f"{path}: has the field '{line.strip()[:60]}'.", "Only numbers are read.")
            fields.append((words[2], "<" + _TYPES[words[1]]))
    names = [name for name, _ in fields]
    if not elements or elements[0][0] != "vertex":
        raise InputError(f"{path}: its first element is not 'vertex'.", "Pass a .ply file with Gaussians.")
    missing = [name for name in FIELDS if name not in names]
    if missing or len(set(names)) != len(names):
        what = f"lacks the field {missing[0]}" if missing else "has a field twice"
        raise InputError(f"{path}: {what}, so it holds no Gaussians.", "Pass a 3DGS .ply file.")
    return np.dtype(fields), elements[0][1], notes


def _time(notes: dict[str, str], path: Path) -> float | None:
    if "time" not in notes:
        return None
    try:
        value = float(notes["time"])
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(
            f"{path}: its time is '{notes['time'][:40]}'.", "The file is damaged; save it again."
        )
    return value
