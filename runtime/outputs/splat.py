"""`.splat` files, one moment each: write and read. 32 bytes per Gaussian, little-endian, no header.

Position 3 float32, scale 3 float32, red green blue opacity 4 bytes, rotation w x y z 4 bytes (128 + 128 q).
Sorted by size times opacity, largest first, as readers that show a file while it loads expect. Neither time
nor picture is kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .cloud import COUNT_MAX, Cloud, check_cloud

LAYOUT = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def encode_splat(cloud: Cloud) -> bytes:
    """The bytes of a `.splat` file. Colours and opacity are rounded to 8 bits."""
    volume = cloud.scales.prod(1, dtype=np.float64) * cloud.opacity
    order = np.argsort(-volume, kind="stable")
    rows = np.empty(cloud.count, LAYOUT)
    rows["means"], rows["scales"] = cloud.means[order], cloud.scales[order]
    rgba = np.concatenate([cloud.rgb, cloud.opacity[:, None]], 1)[order]
    rows["rgba"] = np.rint(np.clip(rgba, 0, 1) * 255)
    lengths = np.linalg.norm(cloud.quats, axis=1, keepdims=True)
    rows["quats"] = np.clip(np.rint(cloud.quats[order] / lengths[order] * 128 + 128), 0, 255)
    return rows.tobytes()


def read_splat(path: Path | str) -> Cloud:
    """Reads a `.splat` file.

    Raises:
        InputError: its size is no multiple of 32 bytes, or it holds values that cannot be used.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size == 0 or size % LAYOUT.itemsize or size > COUNT_MAX * LAYOUT.itemsize:
            raise InputError(
                f"{path}: is {size} bytes long, which is no number of Gaussians of {LAYOUT.itemsize} bytes.",
                "The file is cut short, or is no .splat file.",
            )
        rows = np.fromfile(path, LAYOUT)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    rgba = rows["rgba"].astype(np.float32) / 255
    quats = (rows["quats"].astype(np.float32) - np.float32(128)) / np.float32(128)
    cloud = Cloud(
        means=np.ascontiguousarray(rows["means"]),
        scales=np.ascontiguousarray(rows["scales"]),
        quats=quats,
        rgb=np.ascontiguousarray(rgba[:, :3]),
        opacity=np.ascontiguousarray(rgba[:, 3]),
    )
    return check_cloud(cloud, str(path))
