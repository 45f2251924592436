"""`CudaRasterizer` with the interface of `Rasterizer`: NumPy arrays in and out, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.cuda.rasterizer import OUTPUTS, CudaRasterizer, DeviceImages, DeviceSplats
from streamsplat_edge.runtime.rasterizer import RenderBuffers, Splats, View


def to_device(device: Device, array: np.ndarray) -> Any:
    pinned = device.pinned(array.shape, array.dtype)
    pinned[...] = array
    out = device.zeros(array.shape, array.dtype)
    device.copy(out, pinned)
    device.synchronize()
    return out


def fetch(device: Device, array: Any) -> np.ndarray:
    out = device.pinned(array.shape, array.dtype)
    device.copy(out, array)
    device.synchronize()
    return np.array(out)


def upload(device: Device, splats: Splats) -> DeviceSplats:
    rows = slice(splats.count)
    arrays = [to_device(device, a[rows]) for a in (splats.means, splats.scales, splats.opacity, splats.rgb)]
    quats = None if splats.quats is None else to_device(device, splats.quats[rows])
    return DeviceSplats(*arrays, quats)


def download(device: Device, images: DeviceImages, time: int = 0) -> RenderBuffers:
    planes = [fetch(device, getattr(images, n))[time] for n in ("rgb", "depth", "expected_depth", "alpha")]
    return RenderBuffers(*planes, stats=images.stats[time])


class KernelRasterizer:
    """Renders one image per call, each with buffers of its own size."""

    def __init__(self, device: Device, height: int = 64, width: int = 96, **settings: Any) -> None:
        self.device, self.size, self.settings = device, (height, width), settings

    def render(
        self,
        splats: Splats,
        *,
        view: View | None = None,
        background: Sequence[float] = (0.5, 0.5, 0.5),
        extent: str = "published",
    ) -> RenderBuffers:
        rasterizer = CudaRasterizer(
            self.device,
            *self.size,
            max(1, splats.count),
            extent=extent,  # type: ignore[arg-type]
            outputs=OUTPUTS,
            **self.settings,
        )
        self.images = rasterizer.render(
            upload(self.device, splats), views=None if view is None else [view], background=background
        )
        return download(self.device, self.images)
