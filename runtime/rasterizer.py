"""The CPU rasterizer: Gaussians to RGB, depth and alpha.

Semantics of the published model (REFERENCE.md section 3). World axes: x right, y depth, z up; the image spans
x and z in [-1, 1], orthographic. The work is done by the native module `_core` (threads and SIMD, the GIL
released); this module owns the types and checks the arguments.

    rasterizer = Rasterizer(288, 512)
    buffers = rasterizer.render(splats)            # canonical view
    rasterizer.render(splats, view=View.swing(0.1, 0.0, pivot_depth=1.0), out=buffers)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .errors import InputError

Float32 = NDArray[np.float32]
SimdLevel = Literal["auto", "avx512", "avx2", "neon", "scalar"]
Extent = Literal["published", "full"]
DepthMapping = Literal["published", "paper"]

SIZE_MAX = 16384
"""Largest height and width in pixels."""

_THREADS_HINT = "Use 0 for all cores, or a positive number."
_LEVELS = ("auto", "avx512", "avx2", "neon", "scalar")


@dataclass
class Splats:
    """Gaussians in world space, as structure of arrays; C-contiguous float32, preallocated and reused.

    Attributes:
        means: [N, 3] x, depth, z in world units. depth <= 0 is behind the camera.
        scales: [N, 3] standard deviations along the Gaussian's own axes, world units.
        opacity: [N].
        rgb: [N, 3], not clamped.
        quats: [N, 4] (w, x, y, z), not normalised (published behaviour), or None for axis-aligned Gaussians.
        count: only the first `count` rows are used.
    """

    means: Float32
    scales: Float32
    opacity: Float32
    rgb: Float32
    quats: Float32 | None = None
    count: int = 0

    @classmethod
    def allocate(cls, capacity: int, *, quats: bool = False) -> Splats:
        """Zeroed arrays for `capacity` Gaussians, count 0."""
        return cls(
            means=np.zeros((capacity, 3), np.float32),
            scales=np.zeros((capacity, 3), np.float32),
            opacity=np.zeros(capacity, np.float32),
            rgb=np.zeros((capacity, 3), np.float32),
            quats=np.zeros((capacity, 4), np.float32) if quats else None,
        )


@dataclass(frozen=True)
class RenderStats:
    """Where the Gaussians of one render went; rendered and the culled_* counts add up to `Splats.count`.

    Attributes:
        rendered: Gaussians whose extent touches the image.
        culled_invalid: NaN or infinity in any input (or a projection beyond float64).
        culled_behind: view depth <= 0.
        culled_transparent: opacity < 1/255.
        culled_outside: the extent touches no tile of the image.
        pairs: tile-Gaussian pairs of the extent that was asked for (a measure of scene load).
        binned_pairs: those pairs that can reach alpha 1/255 somewhere (the work that was left).
    """

    rendered: int = 0
    culled_invalid: int = 0
    culled_behind: int = 0
    culled_transparent: int = 0
    culled_outside: int = 0
    pairs: int = 0
    binned_pairs: int = 0

    @property
    def culled(self) -> int:
        """Gaussians culled, for all reasons together."""
        return self.culled_invalid + self.culled_behind + self.culled_transparent + self.culled_outside


@dataclass
class RenderBuffers:
    """Images of one render, float32, preallocated and reused.

    Attributes:
        rgb: [H, W, 3] colour over the background.
        depth: [H, W] accumulated depth: sum of depth * weight (no background term).
        expected_depth: [H, W] depth / alpha, 0 where alpha is 0.
        alpha: [H, W] sum of weights.
        stats: of the last render into these buffers.
    """

    rgb: Float32
    depth: Float32
    expected_depth: Float32
    alpha: Float32
    stats: RenderStats = field(default_factory=RenderStats)

    @classmethod
    def allocate(cls, height: int, width: int) -> RenderBuffers:
        """Zeroed images of this size in pixels."""

        def plane() -> Float32:
            return np.zeros((height, width), np.float32)

        return cls(np.zeros((height, width, 3), np.float32), plane(), plane(), plane())


@dataclass(frozen=True, eq=False)
class View:
    """Rigid (or any linear) view transform: p_view = rotation @ p_world + translation.

    View axes: x right, y down, z depth. Rotation [3, 3] and translation [3], float32.
    """

    rotation: Float32
    translation: Float32

    def __post_init__(self) -> None:
        for name, shape in (("rotation", (3, 3)), ("translation", (3,))):
            value = np.ascontiguousarray(getattr(self, name), np.float32)
            if value.shape != shape or not np.isfinite(value).all():
                raise InputError(
                    f"View.{name} has shape {value.shape} or a value that is not finite.",
                    f"Pass {shape} finite numbers.",
                )
            object.__setattr__(self, name, value)

    @staticmethod
    def canonical() -> View:
        """The view of the published model, (x, -z, depth). `view=None` renders the same faster."""
        return View(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32), np.zeros(3, np.float32))

    @staticmethod
    def swing(yaw: float, pitch: float, pivot_depth: float) -> View:
        """The canonical camera swung about the world point (0, pivot_depth, 0), which stays in place.

        Args:
            yaw: radians about the vertical axis; positive moves the camera to the right, so what is nearer
                than the pivot moves left in the image.
            pitch: radians about the horizontal axis; positive moves the camera up, so what is nearer moves
                down.
            pivot_depth: world depth of the pivot.
        """
        cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
        # In view axes (x right, y down, z depth), relative to the pivot.
        about_vertical = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
        about_horizontal = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
        canonical = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        rotation = about_horizontal @ about_vertical @ canonical
        pivot = np.array([0.0, pivot_depth, 0.0])
        return View(rotation.astype(np.float32), (canonical @ pivot - rotation @ pivot).astype(np.float32))


class Rasterizer:
    """Renders Gaussians on the CPU. Bit-identical from run to run and for any number of threads.

    Working memory grows to the largest call seen and is kept. Calls from several threads are served one after
    the other; the GIL is released while rendering.

    Args:
        height, width: image size in pixels, 1 to 16384.
        threads: 0 = all cores this process may run on.
        simd: "auto" takes the best instruction set of this CPU; the others differ from it by rounding only.

    Raises:
        InputError: size or threads out of range or more than the system starts, or an instruction set this
            CPU lacks.
    """

    def __init__(self, height: int, width: int, *, threads: int = 0, simd: SimdLevel = "auto") -> None:
        if not (1 <= height <= SIZE_MAX and 1 <= width <= SIZE_MAX):
            raise InputError(
                f"Image size {height}x{width} is out of range.", f"Use 1 to {SIZE_MAX} pixels per side."
            )
        if threads < 0:
            raise InputError(f"{threads} threads cannot be started.", _THREADS_HINT)
        if simd not in _LEVELS:
            raise InputError(f"Unknown SIMD level {simd!r}.", f"Use one of {', '.join(_LEVELS)}.")
        if not _core.simd_supported(simd):
            raise InputError(f"This CPU does not support {simd}.", 'Use simd="auto".')
        self.height = height
        self.width = width
        try:
            self.threads = _core.pool_threads(threads)
        except RuntimeError as error:
            raise InputError(
                f"{threads} threads cannot be started ({error}).", "Use fewer threads."
            ) from error
        self.simd: str = _core.simd_best() if simd == "auto" else simd
        self._native = _core.Rasterizer(height, width, self.threads, self.simd)

    def render(
        self,
        splats: Splats,
        *,
        background: Sequence[float] | Float32 = (0.5, 0.5, 0.5),
        view: View | None = None,
        extent: Extent = "published",
        out: RenderBuffers | None = None,
    ) -> RenderBuffers:
        """Render the first `splats.count` Gaussians.

        Args:
            background: three finite numbers, not clamped.
            view: None = canonical, the fast path where `splats.quats` is None.
            extent: "published" limits a Gaussian to the tiles that 3 sigma touch, as the published model was
                trained (tails are cut there, up to 1e-2 in rgb); "full" blends wherever alpha >= 1/255.
            out: buffers to write into; allocated when None.

        Raises:
            InputError: an array has another shape, dtype or layout, or a setting is out of range.
        """
        full, colour = extent_number(extent) == 1, check_background(background)
        _check_splats(splats)
        buffers = RenderBuffers.allocate(self.height, self.width) if out is None else out
        plane = (self.height, self.width)
        _check_array("out.rgb", buffers.rgb, (*plane, 3), writeable=True)
        for name in ("depth", "expected_depth", "alpha"):
            _check_array(f"out.{name}", getattr(buffers, name), plane, writeable=True)
        buffers.stats = RenderStats(
            *self._native.render(
                splats.means,
                splats.scales,
                splats.opacity,
                splats.rgb,
                splats.quats,
                splats.count,
                colour,
                None if view is None else view.rotation,
                None if view is None else view.translation,
                full,
                buffers.rgb,
                buffers.depth,
                buffers.expected_depth,
                buffers.alpha,
            )
        )
        return buffers


def evaluate_at(
    gaussians: Float32,
    motion: Float32,
    fade: Float32,
    dt: float,
    depth_mapping: DepthMapping,
    out: Splats,
    offset: int = 0,
    *,
    threads: int = 0,
) -> None:
    """Write the Gaussians of one key frame, moved and faded to a time of the pair, into rows of `out`.

    Position = xyz + motion * dt, depth from the normalised inverse depth y, opacity = alpha *
    sigmoid(-g0 (|dt| - g1)) / sigmoid(g0 g1), scales = (s_x, (s_x + s_z) / 2, s_z), colour constant
    (REFERENCE.md section 2).

    Args:
        gaussians: [M, 9] x, y, z, r, g, b, scale_x, scale_z, opacity; y in [0, 1], larger = nearer.
        motion: [M, 3] per pair length.
        fade: [M, 2] gamma0, gamma1. NaN or infinity makes the opacity NaN: the rasterizer culls it.
        dt: t - anchor, with t in [0, 1] over the pair and anchor 0 (earlier frame) or 1 (later frame).
        depth_mapping: "published" 1 / (0.2 + 9.8 y), "paper" 2 / (1 + y); y outside [0, 1] ends behind the
            camera.
        out: rows offset to offset + M are written; `out.count` and `out.quats` are left alone.

    Raises:
        InputError: shapes do not fit, or a setting is out of range.
    """
    if depth_mapping not in ("published", "paper"):
        raise InputError(f"Unknown depth mapping {depth_mapping!r}.", 'Use "published" or "paper".')
    if not math.isfinite(dt):
        raise InputError(f"dt is {dt}.", "Pass a finite time difference.")
    if threads < 0:
        raise InputError(f"{threads} threads cannot be started.", _THREADS_HINT)
    rows = int(np.shape(gaussians)[0]) if np.ndim(gaussians) else 0
    _check_array("gaussians", gaussians, (rows, 9))
    _check_array("motion", motion, (rows, 3))
    _check_array("fade", fade, (rows, 2))
    capacity = _check_splats(out, writeable=True)
    if offset < 0 or offset + rows > capacity:
        raise InputError(
            f"{rows} Gaussians at offset {offset} do not fit into {capacity} rows.", "Allocate larger splats."
        )
    _core.evaluate_at(
        gaussians,
        motion,
        fade,
        dt,
        depth_mapping == "paper",
        threads,
        out.means,
        out.scales,
        out.opacity,
        out.rgb,
        offset,
    )


def extent_number(extent: str) -> int:
    """`Extent` of cuda/splat_project.h.

    Raises:
        InputError: there is no such extent.
    """
    if extent not in ("published", "full"):
        raise InputError(f"Unknown extent {extent!r}.", 'Use "published" or "full".')
    return int(extent == "full")


def check_background(background: Sequence[float] | Float32) -> Float32:
    """Three finite numbers as float32, C-contiguous.

    Raises:
        InputError: they are something else.
    """
    try:
        colour = np.ascontiguousarray(background, np.float32)
    except (TypeError, ValueError):
        colour = np.empty(0, np.float32)
    if colour.shape != (3,) or not np.isfinite(colour).all():
        raise InputError(f"Background {background!r} is not a colour.", "Pass three finite numbers.")
    return colour


def _check_splats(splats: Splats, *, writeable: bool = False) -> int:
    """Checks shapes, dtypes and the count; returns the number of rows."""
    rows = int(np.shape(splats.means)[0]) if np.ndim(splats.means) else 0
    _check_array("means", splats.means, (rows, 3), writeable=writeable)
    _check_array("scales", splats.scales, (rows, 3), writeable=writeable)
    _check_array("opacity", splats.opacity, (rows,), writeable=writeable)
    _check_array("rgb", splats.rgb, (rows, 3), writeable=writeable)
    if splats.quats is not None:
        _check_array("quats", splats.quats, (rows, 4))
    if not 0 <= splats.count <= rows:
        raise InputError(
            f"count is {splats.count} of {rows} rows.", "Set Splats.count to the rows to be rendered."
        )
    return rows


def _check_array(name: str, array: Float32, shape: tuple[int, ...], *, writeable: bool = False) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(
            f"{name} is {found}, expected float32{list(shape)}.", "Convert it with np.ascontiguousarray."
        )
    if not array.flags.c_contiguous or (writeable and not array.flags.writeable):
        raise InputError(
            f"{name} is not C-contiguous{' and writeable' if writeable else ''}.",
            "Pass a np.ascontiguousarray copy.",
        )
