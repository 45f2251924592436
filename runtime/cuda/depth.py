"""The running range of depth on a device: `preprocess.DepthRange` without the plane leaving it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..array import Array
from ..key_frame_ring import PAIRS
from . import layout
from .device import Device
from .ring import Ring

_IN_FLIGHT = 2  # key frames whose moment may be on its way


class DeviceDepthRange:
    """Scales inverse depth to [0, 1] in place, by a range that runs with the stream. Not thread-safe.

    The range after a key frame lies beside that of the key frame before, so that a key frame which fails
    changes nothing: the next one reads the same range again.

    Args:
        planes: float32 on the device, C-contiguous and of one size: for each pair of `KeyFrameRing` the one
            that it uses.
    """

    def __init__(self, device: Device, planes: Sequence[Array]) -> None:
        count = int(np.prod(planes[0].shape))
        self.device, self._blocks = device, max(1, -(-count // layout.DEPTH_BLOCK))
        self._moment = device.zeros((1,), layout.DEPTH_MOMENT)
        self._states = device.zeros((PAIRS,), layout.DEPTH_STATE)
        self._parts = device.zeros((self._blocks, layout.DEPTH_PART_BYTES), np.uint8)
        self._uploads: Ring[np.ndarray] = Ring(
            _IN_FLIGHT, lambda: device.pinned((1,), layout.DEPTH_MOMENT), device.record
        )
        address = device.address
        states = [address(self._states) + i * layout.DEPTH_STATE.itemsize for i in range(PAIRS)]
        self._params = [np.zeros((), layout.DEPTH_PARAMS) for _ in range(PAIRS)]
        for i, params in enumerate(self._params):
            params["count"], params["blocks"] = count, self._blocks
            params["depth"], params["parts"] = address(planes[i]), address(self._parts)
            params["moment"] = address(self._moment)
            params["before"], params["after"] = states[i - 1], states[i]

    def begin(self, time: float, *, fresh: bool) -> None:
        """Upload the moment of the next key frame.

        Args:
            time: seconds, later than that of the frame before. fresh: a scene begins.
        """
        with self._uploads.use() as slot:
            slot.buffers["time"], slot.buffers["fresh"] = time, fresh
            self.device.copy(self._moment, slot.buffers)

    def enqueue(self, pair: int) -> None:
        """Scale the plane: two kernels and nothing else.

        Args:
            pair: `KeyFrameRing.spare_pair` of the key frame that is being made.
        """
        for kernel in ("depth_extent", "depth_scale"):
            self.device.launch(kernel, (self._blocks, 1, 1), self._params[pair])
