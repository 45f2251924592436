"""The CUDA rasterizer: Gaussians on a device to RGB, depth and alpha there, for several views in one launch.

Semantics, culling and counts are those of `runtime.rasterizer`. After construction nothing is allocated, and
`render` does not wait for the device.

    rasterizer = CudaRasterizer(device, 288, 512, capacity=73728)
    images = rasterizer.render(splats)
    images.rgb            # [1, 288, 512, 3] on the device
    images.stats[0]       # waits for this frame
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..array import Array
from ..errors import InputError
from ..rasterizer import SIZE_MAX, Extent, RenderStats, View, check_background, extent_number
from . import layout
from .device import Device
from .ring import Ring, Slot

Output = Literal["rgb", "bytes", "depth", "expected_depth", "alpha"]
OUTPUTS: tuple[Output, ...] = ("rgb", "bytes", "depth", "expected_depth", "alpha")

Start = Callable[[tuple[Hashable, ...], Callable[[], None]], None]

TIMES_MAX = 64
"""Most images of one launch."""

SLOTS_PER_TILE = 1024
"""Keys that a tile keeps by default; a tile with more is rendered all the same, more slowly."""

_IN_FLIGHT = 4  # frames whose arguments and counts may be on their way
_FIELDS = {"rgb": "rgb_out", "bytes": "bytes_out", "depth": "depth_out"}
_FIELDS |= {"expected_depth": "expected_out", "alpha": "alpha_out"}


@dataclass(frozen=True)
class DeviceSplats:
    """Gaussians on the device, float32 and C-contiguous, shapes as in `runtime.rasterizer.Splats`.

    Arrays of any library that has DLPack or `__cuda_array_interface__` are taken without a copy, and their
    stream is waited for on the device, by DLPack where the array has it. What is given as a CuPy array, or
    has only an interface without a stream, was written in the device's stream, or is finished. They are kept
    from being freed until the device has read them; whoever writes into them waits by himself.
    """

    means: Any
    scales: Any
    opacity: Any
    rgb: Any
    quats: Any = None


@dataclass(frozen=True)
class _Staging:
    """Pinned memory for the arguments and the counts of one launch."""

    frames: np.ndarray
    stats: np.ndarray


@dataclass(frozen=True)
class DeviceImages:
    """Images of one `render`, device arrays that the next one overwrites; None where not asked for.

    Attributes:
        rgb: [T, H, W, 3] float32. bytes: the same rounded to uint8. depth, expected_depth, alpha: [T, H, W]
            float32, as in `RenderBuffers`. T is the number of images that were asked for.
    """

    rgb: Any
    bytes: Any
    depth: Any
    expected_depth: Any
    alpha: Any
    _slot: Slot[_Staging]
    _generation: int
    _count: int

    def _counts(self) -> np.ndarray:
        slot = self._slot
        if slot.generation != self._generation:
            raise InputError(
                f"The counts of this frame were overwritten {_IN_FLIGHT} frames later.", "Read them sooner."
            )
        if slot.event is not None:
            slot.event.synchronize()
        return slot.buffers.stats[: self._count]

    @property
    def stats(self) -> list[RenderStats]:
        """Counts of every image. Waits until the device has finished them.

        Raises:
            InputError: too many frames were rendered since.
        """
        return [RenderStats(*(int(v) for v in row[: layout.TALLIES - 1])) for row in self._counts()]

    @property
    def overflowing_tiles(self) -> list[int]:
        """Tiles of every image that had more keys than slots: they took the slow way. Waits as `stats`."""
        return [int(row[-1]) for row in self._counts()]


class CudaRasterizer:
    """Renders Gaussians on a device. The same bits in every run on the same device.

    Args:
        device: where.
        height, width: image size in pixels, 1 to 16384.
        capacity: most Gaussians of one call.
        times: most images of one launch.
        slots: keys kept per tile. A choice of speed and memory (8 bytes each), never of results.
        extent: see `Rasterizer.render`.
        outputs: which images it has buffers for; none where every call of `DeviceLifecycle.render` brings its
            own.

    Raises:
        InputError: a setting is out of range.
        EngineError: the device has not enough memory.
    """

    def __init__(
        self,
        device: Device,
        height: int,
        width: int,
        capacity: int,
        *,
        times: int = 1,
        slots: int = SLOTS_PER_TILE,
        extent: Extent = "published",
        outputs: Sequence[Output] = ("rgb", "depth", "expected_depth", "alpha"),
    ) -> None:
        for name, value, high in (
            ("height", height, SIZE_MAX),
            ("width", width, SIZE_MAX),
            ("capacity", capacity, 2**31 - 1 - layout.THREADS),
            ("times", times, TIMES_MAX),
            ("slots", slots, 2**20),
        ):
            if not 1 <= value <= high:
                raise InputError(f"{name} is {value}.", f"Use 1 to {high}.")
        unknown = set(outputs) - set(OUTPUTS)
        if unknown:
            raise InputError(f"Outputs {outputs!r} are not known.", f"Use some of {', '.join(OUTPUTS)}.")
        self.device, self.height, self.width = device, height, width
        self.capacity, self.times = capacity, times
        tiles, plane = layout.tiles(height, width), (times, height, width)
        self._buffers = {
            "frames": device.zeros((times,), layout.RASTER_FRAME),
            "splats": device.zeros((times, capacity, layout.SPLAT_BYTES), np.uint8),
            "filled": device.zeros((times, tiles), np.uint32),
            "keys": device.zeros((times, tiles, slots), np.uint64),
            "tally": device.zeros((times, layout.TALLIES), np.uint64),
            "stats": device.zeros((times, layout.TALLIES), np.uint64),
        }
        self._images: dict[Output, Any] = {
            name: device.zeros(
                (*plane, 3) if name in ("rgb", "bytes") else plane,
                np.uint8 if name == "bytes" else np.float32,
            )
            if name in outputs
            else None
            for name in OUTPUTS
        }
        self.params = np.zeros((), layout.RASTER_PARAMS)
        """Arguments of the kernels, without those of the Gaussians."""
        for name, value in (("width", width), ("height", height), ("times", times), ("slots", slots)):
            self.params[name] = value
        self.params["extent"] = extent_number(extent)
        for name, array in self._buffers.items():
            self.params[name] = device.address(array)
        for name, array in self._images.items():
            self.params[_FIELDS[name]] = 0 if array is None else device.address(array)
        self._ring: Ring[_Staging] = Ring(_IN_FLIGHT, self._staging, device.record)

    def _staging(self) -> _Staging:
        pinned = self.device.pinned
        return _Staging(
            pinned((self.times,), layout.RASTER_FRAME), pinned((self.times, layout.TALLIES), np.uint64)
        )

    def render(
        self,
        splats: DeviceSplats,
        *,
        views: Sequence[View] | None = None,
        background: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> DeviceImages:
        """Render the Gaussians, once per view. Returns before the device is done.

        Args:
            views: one per image, up to `times`; None is the canonical view for `times` images, the fast path
                where `splats.quats` is None.
            background: three finite numbers, not clamped.

        Raises:
            InputError: an array has another shape, dtype, layout or place, or a setting is out of range.
        """
        count = self.times if views is None else len(views)
        if not 1 <= count <= self.times:
            raise InputError(f"{count} views.", f"This rasterizer takes 1 to {self.times} in one launch.")
        frames = raster_frames(count, views, background)
        params = self.params.copy()
        params["count"], arrays = self._bind(splats, params)
        path = "canonical" if views is None and splats.quats is None else "general"
        kernels = f"project_given_{path}", int(params["count"]), f"blend_given_{path}"
        return self.run(frames, *kernels, params, keep=arrays)

    def run(
        self,
        frames: np.ndarray,
        project: str,
        rows: int,
        blend: str,
        *arguments: np.ndarray,
        into: Mapping[Output, Array] | None = None,
        start: Start | None = None,
        keep: object = None,
    ) -> DeviceImages:
        """Upload `frames` [T] of `layout.RASTER_FRAME`, start both kernels, and fetch the counts.

        Args:
            frames: 1 to `times` of them: so many images are rendered.
            arguments: what `arguments` gives for the same `into`, then others.
            start: starts both kernels, given what is baked into them, and a function that does it.
            keep: what must not be freed before the device is done.
        """
        count, params, arrays = len(frames), arguments[0], self._images if into is None else into
        for name, array in arrays.items():
            if array is not None and array.shape[0] < count:
                raise InputError(f"There is room for {array.shape[0]} of {count} images in {name}.")
        baked = project, rows, blend, count, *(structure.tobytes() for structure in arguments)

        def enqueue() -> None:
            self.enqueue(project, rows, blend, *arguments, times=count)

        with self._ring.use() as slot:
            slot.keeps = keep
            staged = slot.buffers.frames[:count]
            np.copyto(staged, frames)
            self.device.copy(self._buffers["frames"][:count], staged)
            if start is None:
                enqueue()
            else:
                start(baked, enqueue)
            self.device.copy(slot.buffers.stats[:count], self._buffers["stats"][:count])
        images = {name: arrays[name][:count] if params[_FIELDS[name]] else None for name in OUTPUTS}
        return DeviceImages(**images, _slot=slot, _generation=slot.generation, _count=count)

    def enqueue(
        self, project: str, rows: int, blend: str, *arguments: np.ndarray, times: int | None = None
    ) -> None:
        """Start the two kernels and nothing else: what a graph captures. `times`: images; None is all."""
        times = self.times if times is None else times
        self.device.launch(project, (layout.blocks(rows), 1, times), *arguments)
        self.device.launch(blend, (layout.tiles(self.height, self.width), 1, times), *arguments)

    def arguments(
        self, outputs: Collection[Output] | None = None, into: Mapping[Output, Array] | None = None
    ) -> np.ndarray:
        """A copy of `params` that asks for certain images.

        Args:
            outputs: their names; None is all that there are buffers for.
            into: buffers to be used instead of the rasterizer's, of its height and width.

        Raises:
            InputError: a buffer has another size.
        """
        params, arrays = self.params.copy(), self._images if into is None else into
        for name in OUTPUTS:
            array = arrays.get(name)
            if array is None or (outputs is not None and name not in outputs):
                params[_FIELDS[name]] = 0
                continue
            if array.shape[1:3] != (self.height, self.width):
                raise InputError(f"{name} is {list(array.shape)}, not {self.height}x{self.width}.")
            params[_FIELDS[name]] = self.device.address(array)
        return params

    def _bind(self, splats: DeviceSplats, params: np.ndarray) -> tuple[int, list[Array]]:
        """Puts the addresses of the Gaussians into the arguments; returns their number, and the arrays."""
        count, arrays = -1, []
        for name, width in (("means", 3), ("scales", 3), ("opacity", 0), ("rgb", 3), ("quats", 4)):
            value = getattr(splats, name)
            if value is None and name == "quats":
                continue
            array = self.device.adopt(value)
            if count < 0:
                count = int(array.shape[0]) if array.ndim else 0
            wanted = (count, width) if width else (count,)
            if array.shape != wanted or array.dtype != np.float32:
                raise InputError(
                    f"{name} is {array.dtype}{list(array.shape)}, expected float32{list(wanted)}.",
                    "Convert it on the device.",
                )
            if not array.flags.c_contiguous:
                raise InputError(f"{name} is not C-contiguous.", "Pass a contiguous copy.")
            params[name] = self.device.address(array)
            arrays.append(array)
        if count > self.capacity:
            raise InputError(
                f"{count} Gaussians exceed the capacity of {self.capacity}.", "Make a larger rasterizer."
            )
        return count, arrays


def raster_frames(count: int, views: Sequence[View] | None, background: Sequence[float]) -> np.ndarray:
    """`layout.RASTER_FRAME` [count] of the views, None being the canonical one; times are left at 0.

    Raises:
        InputError: the background is no colour.
    """
    frames = np.zeros(count, layout.RASTER_FRAME)
    for i in range(count):
        view = View.canonical() if views is None else views[i]
        frames[i]["rotation"], frames[i]["translation"] = view.rotation, view.translation
    frames["background"] = check_background(background)
    return frames
