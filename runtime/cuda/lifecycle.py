"""The Gaussian lifecycle on a device: what `runtime.lifecycle` does, without the Gaussians ever leaving it.

Engines write a key frame into the spare slot and motion and fade into the spare pair; `spawn` makes them the
current interval. Two kernels then list the Gaussians that can be seen at any time of it, and every image is
rendered from that list: moved and faded in registers, one launch for several times. Nothing is allocated
after construction, and no call but the reading of counts waits for the device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array
from ..bundle_schema import ModelConfig
from ..errors import InputError
from ..key_frame_ring import PAIRS, SLOTS, LifecycleStats, RingLife
from ..rasterizer import Extent, View, extent_number
from ..stage_tensors import GAUSSIAN_COLUMNS
from . import layout
from .device import Device
from .rasterizer import CudaRasterizer, DeviceImages, Output, Start, raster_frames
from .ring import Ring, Slot

_IN_FLIGHT = 4  # intervals whose state and totals may be on their way

_State = np.ndarray  # [1] of `layout.RING_STATE`
_Totals = np.ndarray  # [1] of `layout.RING_TOTALS`


@dataclass(frozen=True)
class DeviceKeyFrame:
    """Device arrays of one slot, float32: gaussians [1,G,9], tokens [1,N,D], features [1,G,F] and condition
    [1,M,C] or None."""

    gaussians: Array
    tokens: Array
    features: Array
    condition: Array | None


@dataclass(frozen=True)
class DeviceKeyFrameAt:
    """A living key frame: its number, its time in seconds, its arrays."""

    index: int
    time: float
    arrays: DeviceKeyFrame


@dataclass(frozen=True)
class DevicePair:
    """Device arrays of a pair, float32: motion [2,G,3] and fade [2,G,2]."""

    motion: Array
    fade: Array


@dataclass(frozen=True)
class IntervalTotals:
    """Gaussians of an interval: living, and those of them that can be seen at some time of it (`listed`).

    The others are counted with every image: `culled_invalid` (NaN or infinity) and `culled_transparent`
    (opacity below 1/255 from beginning to end, whether or not they are in front of the camera).
    """

    living: int
    listed: int
    culled_invalid: int
    culled_transparent: int


class DeviceLifecycle(RingLife[DeviceKeyFrame, DevicePair]):
    """The key frames alive on a device, and their Gaussians at any time in between. Not thread-safe.

    Raises:
        EngineError: the device has not enough memory.
    """

    def __init__(
        self, device: Device, model: ModelConfig, *, condition_shape: tuple[int, ...] | None = None
    ) -> None:
        self.device, self.model = device, model
        count = model.gaussians
        # One array over all slots: the kernels find a slot by its number, whichever is alive.
        self._gaussians = device.zeros((SLOTS, 1, count, GAUSSIAN_COLUMNS), np.float32)
        tokens = device.zeros((SLOTS, 1, model.tokens, model.token_dim), np.float32)
        features = device.zeros((SLOTS, 1, count, model.feature_dim), np.float32)
        condition = None if condition_shape is None else device.zeros((SLOTS, *condition_shape), np.float32)
        slots = [
            DeviceKeyFrame(
                self._gaussians[i], tokens[i], features[i], None if condition is None else condition[i]
            )
            for i in range(SLOTS)
        ]
        self._motion = device.zeros((PAIRS, 2, count, 3), np.float32)
        self._fade = device.zeros((PAIRS, 2, count, 2), np.float32)
        # Views made once: an engine binds arrays by identity.
        pairs = [DevicePair(self._motion[i], self._fade[i]) for i in range(PAIRS)]
        super().__init__(count, slots, pairs)
        self._blocks = layout.blocks(2 * count)
        self._buffers = {
            "fates": device.zeros((2 * count,), np.uint8),
            "counts": device.zeros((self._blocks, layout.BLOCK_COUNTS_BYTES), np.uint8),
        }
        # The current interval's, and the next one's: a key frame that fails leaves the current one as it was.
        self._lists = {
            "state": device.zeros((PAIRS,), layout.RING_STATE),
            "rows": device.zeros((PAIRS, 2 * count), np.int32),
            "ids": device.zeros((PAIRS, 2 * count), np.int64),
            "totals": device.zeros((PAIRS,), layout.RING_TOTALS),
        }
        params = np.zeros((), layout.RING_PARAMS)
        params["per_frame"], params["mapping"] = count, model.depth_mapping == "paper"
        arrays = {"gaussians": self._gaussians, "motion": self._motion, "fade": self._fade}
        for name, array in (arrays | self._buffers | self._lists).items():
            params[name] = device.address(array)
        self._params = [params.copy() for _ in range(PAIRS)]
        for i, each in enumerate(self._params):
            for name, array in self._lists.items():
                each[name] += np.uint64(i * (array.nbytes // PAIRS))  # NumPy 1 makes a float of an int
        pinned, record = device.pinned, device.record
        self._states: Ring[_State] = Ring(_IN_FLIGHT, lambda: pinned((1,), layout.RING_STATE), record)
        self._totals: Ring[_Totals] = Ring(_IN_FLIGHT, lambda: pinned((1,), layout.RING_TOTALS), record)
        self._last: tuple[Slot[_Totals], int] | None = None

    @property
    def params(self) -> np.ndarray:
        """Arguments of the kernels for the current interval."""
        return self._params[self._ring.pair]

    @property
    def key_frames(self) -> tuple[DeviceKeyFrameAt | None, DeviceKeyFrameAt | None]:
        """The latest key frame and the one before it, as far as they live."""
        ring = self._ring
        newest, previous = (
            None if i is None else DeviceKeyFrameAt(ring.number(i), ring.time(i), self._slots[i])
            for i in (ring.newest, ring.previous)
        )
        return newest, previous

    @property
    def ids(self) -> Any:
        """As `Lifecycle.ids`, int64 on the device; the `spawn` after the next overwrites it."""
        return self._lists["ids"][self._ring.pair][: self._ring.alive * self.model.gaussians]

    @property
    def phase(self) -> int:
        """Which slots the next `spawn` fills, where it makes a pair: equal phases use the same addresses, so
        that a graph captured in one can be replayed in the others (`push_graphs`). There are `SLOTS` *
        `PAIRS`."""
        return self._ring.key_frames % (SLOTS * PAIRS)

    def spawn(self, time: float, *, cut: bool = False) -> LifecycleStats:
        """Begin the interval that ends with the key frame in the spare slot. Does not wait for the device.

        Args: as `Lifecycle.spawn`.

        Raises:
            InputError: the time is not finite or not later. Nothing has changed then.
        """
        self.prepare(time, cut=cut)
        self.enqueue()
        return self.commit(time, cut=cut)

    # The parts of `spawn`: the second is what a graph can hold.

    def prepare(self, time: float, *, cut: bool = False) -> None:
        """Upload which slots the next interval has. The current one is as it was until `commit`.

        Raises:
            InputError: as `spawn`.
        """
        ring = self._ring
        ring.check_time(time)
        earlier = None if cut else ring.newest
        with self._states.use() as slot:
            state = slot.buffers
            state["earlier"] = -1 if earlier is None else earlier
            state["later"], state["pair"] = ring.spare, ring.spare_pair
            numbers = [0 if earlier is None else ring.number(earlier), ring.key_frames]
            state["first_id"] = np.array(numbers, np.int64) * self.model.gaussians
            pair = ring.spare_pair
            self.device.copy(self._lists["state"][pair : pair + 1], state)

    def enqueue(self) -> None:
        """Start the two kernels that list what can be seen in the prepared interval, and nothing else."""
        params = self._params[self._ring.spare_pair]
        self.device.launch("lifecycle_judge", (self._blocks, 1, 1), params)
        self.device.launch("lifecycle_compact", (self._blocks, 1, 1), params)

    def commit(self, time: float, *, cut: bool = False) -> LifecycleStats:
        """Make the prepared interval the current one, and fetch its counts.

        Raises:
            EngineError: the device refused. The current interval is as it was.
        """
        pair = self._ring.spare_pair
        with self._totals.use() as slot:
            self.device.copy(slot.buffers, self._lists["totals"][pair : pair + 1])
        self._ring.spawn(time, cut=cut)
        self._last = slot, slot.generation
        return self.stats

    @property
    def totals(self) -> IntervalTotals:
        """Counts of the current interval. Waits until the device has them.

        Raises:
            InputError: nothing was pushed yet.
        """
        if self._last is None or not self._ring.alive:
            raise InputError("Nothing was pushed yet, so there is nothing to count.", "Push a frame first.")
        slot, generation = self._last
        assert slot.generation == generation
        if slot.event is not None:
            slot.event.synchronize()
        row = slot.buffers[0]
        return IntervalTotals(*(int(row[name]) for name in layout.RING_TOTALS.names or ()))

    def render(
        self,
        rasterizer: CudaRasterizer,
        times: Sequence[float],
        *,
        views: Sequence[View] | None = None,
        background: Sequence[float] = (0.5, 0.5, 0.5),
        extent: Extent | None = None,
        outputs: Collection[Output] | None = None,
        into: Mapping[Output, Array] | None = None,
        start: Start | None = None,
    ) -> DeviceImages:
        """All living Gaussians at several times of the current interval, in one launch.

        Args:
            rasterizer: of this device, with a capacity of 2G and at least as many `times`.
            times: in seconds, one per image. views: one per image; None is the canonical view, the fast path.
            extent: None is the rasterizer's. outputs: None is all that there are buffers for.
            into: buffers to be used instead of the rasterizer's: at least as many images as `times`.
            start: see `CudaRasterizer.run`.

        Raises:
            InputError: nothing pushed yet, a time outside the interval, or the rasterizer does not fit.
        """
        rows = 2 * self.model.gaussians
        if rasterizer.device is not self.device or rasterizer.capacity != rows:
            raise InputError(
                f"The rasterizer holds {rasterizer.capacity} Gaussians, {rows} on this device are needed.",
                "Make one with capacity=2 * model.gaussians.",
            )
        if not 1 <= len(times) <= rasterizer.times:
            raise InputError(
                f"{len(times)} times.", f"This rasterizer takes 1 to {rasterizer.times} in one launch."
            )
        if views is not None and len(views) != len(times):
            raise InputError(f"{len(views)} views for {len(times)} times.", "Give one view per time.")
        frames = raster_frames(len(times), views, background)
        for frame, time in zip(frames, times, strict=True):
            t = self._ring.normalised(time)
            frame["dt"] = (t, t - 1.0)
        path = "canonical" if views is None else "general"
        params = rasterizer.arguments(outputs, into)
        params["count"] = rows
        if extent is not None:
            params["extent"] = extent_number(extent)
        kernels = f"project_ring_{path}", rows, f"blend_ring_{path}"
        return rasterizer.run(frames, *kernels, params, self.params, into=into, start=start)
