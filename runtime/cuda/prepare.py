"""Pictures on a device, of any size, to the float planes that the networks read there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array
from ..video.frames import Orientation
from ..video.surface import Surface
from . import layout
from .device import Device
from .resampling import Size, Table, resizing, sampling

# Shares of red and blue in luma, by AVCOL_SPC_*: BT.709, FCC, BT.601 (two names), SMPTE 240M, BT.2020.
_LUMA = {1: (0.2126, 0.0722), 4: (0.3, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114)}
_LUMA |= {7: (0.212, 0.087), 9: (0.2627, 0.0593)}


@dataclass(frozen=True)
class DevicePicture:
    """A picture in device memory.

    Attributes:
        kernel: which one reads it. size: height and width of the upright picture. params: what the kernel
            must know of it. held: what must not be freed before the kernel is done.
    """

    kernel: str
    size: Size
    params: np.ndarray
    held: tuple[Any, ...]


def rgb_picture(device: Device, pixels: Array, size: Size) -> DevicePicture:
    """A picture of packed RGB8 (uint8 [h, w, 3]) in a device array."""
    params = _params(size, Orientation())
    params["pitch"], params["pixels"] = 3 * size[1], device.address(pixels)
    return DevicePicture("prepare_rgb", size, params, (pixels,))


def surface_picture(device: Device, surface: Surface) -> DevicePicture:
    """A picture that a decoder left on this device. The device, not the host, waits until it is decoded.

    Raises:
        InputError: it is on another device.
    """
    luma, chroma = planes = surface.planes
    arrays = [device.adopt(plane) for plane in planes]
    device.follow_default()
    params = _params(surface.stored, surface.turn)
    params["pitch"], params["chroma_pitch"] = luma.pitch, chroma.pitch
    params["pixels"], params["chroma"] = (device.address(array) for array in arrays)
    params["matrix"] = colour_matrix(surface.space, full_range=surface.full_range)
    if surface.sample_bytes == 2:
        kernel = "prepare_smooth16"
    else:  # as libav, which has two ways
        kernel = "prepare_smooth8" if surface.stored[0] % 2 else "prepare_nv12"
    return DevicePicture(kernel, surface.size, params, (surface, *arrays))


def _params(stored: Size, turn: Orientation) -> np.ndarray:
    params = np.zeros((), layout.PREPARE_PARAMS)
    params["stored_height"], params["stored_width"] = stored
    height, width = stored[::-1] if turn.transposed else stored
    across = (-1, 0, width - 1) if turn.flip_x else (1, 0, 0)
    down = (0, -1, height - 1) if turn.flip_y else (0, 1, 0)
    params["column"], params["row"] = (down, across) if turn.transposed else (across, down)
    return params


def colour_matrix(space: int, *, full_range: bool) -> np.ndarray:
    """`layout.COLOUR_MATRIX` of Y'CbCr to RGB.

    Args:
        space: an AVCOL_SPC_* number that `frames.source_space` gives.
    """
    red, blue = _LUMA[space]
    green = 1 - red - blue
    luma, chroma = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    u, v = 2 * (1 - blue) * chroma, 2 * (1 - red) * chroma
    factors = luma, v, -u * blue / green, -v * red / green, u
    matrix = np.zeros((), layout.COLOUR_MATRIX)
    matrix["offset"] = 0 if full_range else 16
    for name, factor in zip((layout.COLOUR_MATRIX.names or ())[1:], factors, strict=True):
        matrix[name] = int(np.floor(factor * (1 << layout.COLOUR_BITS) + 0.5))
    return matrix


@dataclass(frozen=True)
class _Tables:
    """Resampling tables on the device, for pictures of one size."""

    source: Size
    arrays: tuple[Array, ...]  # spans down, spans across, weights down, weights across
    taps: tuple[int, int]


class Preparer:
    """Writes pictures into planes of one size. Not thread-safe.

    Tables are made when a picture of another size than the last one comes; otherwise nothing is allocated,
    and nothing waits.

    Args:
        target: height and width of the planes.
        samples: take single pixels (see `resampling.sampling`) instead of resizing.
    """

    def __init__(self, device: Device, target: Size, *, samples: bool = False) -> None:
        self.device, self.target = device, target
        self._make = sampling if samples else resizing
        self._tables: _Tables | None = None

    def enqueue(self, picture: DevicePicture, out: Array) -> None:
        """Start the kernel.

        Args:
            picture: must stay as it is until the kernel is done; hold it.
            out: float32 [3, H, W] on the device, C-contiguous, in any number of further dimensions of 1.
        """
        tables = self._tables
        if tables is None or tables.source != picture.size:
            tables = self._tables = self._upload(picture.size)
        params, address = picture.params.copy(), self.device.address
        params["height"], params["width"] = self.target
        params["taps_down"], params["taps_across"] = tables.taps
        for name, array in zip(
            ("down", "across", "weights_down", "weights_across"), tables.arrays, strict=True
        ):
            params[name] = address(array)
        params["out"] = address(out)
        pixels = self.target[0] * self.target[1]
        self.device.launch(picture.kernel, (layout.blocks(pixels), 1, 1), params)

    def _upload(self, source: Size) -> _Tables:
        down, across = self._make(source, self.target)
        arrays = [self._on_device(a) for a in (down.spans, across.spans, down.weights, across.weights)]
        self.device.synchronize()  # the host's copies go, and the tables before may be in use
        return _Tables(source, tuple(array for array, _ in arrays), (_taps(down), _taps(across)))

    def _on_device(self, values: np.ndarray) -> tuple[Array, np.ndarray]:
        array, host = self.device.shared(values.shape, values.dtype)
        host[...] = values
        self.device.copy(array, host)
        return array, host


def _taps(table: Table) -> int:
    return int(table.weights.shape[1])


class Fetcher:
    """Brings pictures to the host, resized on the device. Not thread-safe.

    Args: as of `Preparer`.
    """

    def __init__(self, device: Device, target: Size, *, samples: bool = False) -> None:
        self.device = device
        self._preparer = Preparer(device, target, samples=samples)
        self._planes, self._host = device.shared((3, *target), np.float32)

    def __call__(self, picture: DevicePicture) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Waits for the device."""
        self._preparer.enqueue(picture, self._planes)
        self.device.copy(self._host, self._planes)
        self.device.synchronize()
        return np.rint(self._host.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)
