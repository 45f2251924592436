"""Gaussians of one moment in the conventions of 3D Gaussian splatting (3DGS) files.

The model's world is orthographic: x right and z up span [-1, 1] over the picture, whatever its shape, and y
is depth. Files take x right, y down, z forward (as COLMAP and the 3DGS training code do; viewers that turn
such a scene by 180 degrees about z when they load it, SuperSplat among them, show it upright):

    X = aspect x        Y = -z        Z = y

so one unit is half the height of the picture, and depth keeps the model's unit. Nothing is unprojected:
in a perspective viewer the scene is a relief, seen as the input was from straight ahead and far away.

The rasterizer widens every Gaussian by 0.3 px^2 before it draws it, and models learn to rely on that:
theirs may be much smaller than a pixel. Viewers widen by pixels of their own screen, which on a near look
are far smaller, and the scene would fall to dust. So a Gaussian is written in the size it has in the model's
picture, and as deep as it is wide on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..rasterizer import SIZE_MAX, Float32, Splats

OPACITY_MIN = 1.0 / 255.0  # below this a Gaussian changes no pixel, here and in 3DGS
COUNT_MAX = 20_000_000  # Gaussians of one moment; files that claim more are refused
WIDENING = 0.3  # px^2, of the rasterizer (`cuda/splat_math.h`)
_IDENTITY = np.array([1, 0, 0, 0], np.float32)


@dataclass(frozen=True)
class Picture:
    """The model's picture, which places and sizes refer to.

    Attributes:
        width, height: pixels of the model. aspect: width over height as shown (of the input).
    """

    width: int
    height: int
    aspect: float

    def to_text(self) -> str:
        """For headers of files."""
        return f"{self.width} {self.height} {float(self.aspect)!r}"

    @classmethod
    def of_text(cls, text: str, name: str) -> Picture:
        """The inverse of `to_text`. InputError where it makes no sense; `name` is the file it came from."""
        try:
            width, height, aspect = text.split(" ")
            picture = cls(int(width), int(height), float(aspect))
        except ValueError:
            picture = cls(0, 0, 0.0)
        if not (
            0 < picture.width <= SIZE_MAX and 0 < picture.height <= SIZE_MAX and 1e-3 < picture.aspect < 1e3
        ):
            raise InputError(f"{name}: its picture is '{text[:60]}'.", "The file is damaged; save it again.")
        return picture

    @property
    def widening(self) -> NDArray[np.float32]:
        """[2] standard deviations that the rasterizer adds (as squares) along x and z, world units."""
        return np.sqrt(WIDENING, dtype=np.float32) * np.array([2 / self.width, 2 / self.height], np.float32)


@dataclass(frozen=True)
class Cloud:
    """Gaussians at one time, float32, axes X right, Y down, Z forward.

    Attributes:
        means: [N, 3]. scales: [N, 3] standard deviations along the Gaussian's own axes.
        quats: [N, 4] w, x, y, z. rgb: [N, 3], 0 to 1 (not clamped). opacity: [N].
        time: seconds, picture: what it was made for; None where it is not known.
    """

    means: Float32
    scales: Float32
    quats: Float32
    rgb: Float32
    opacity: Float32
    time: float | None = None
    picture: Picture | None = None

    @property
    def count(self) -> int:
        return len(self.means)

    @classmethod
    def from_splats(cls, splats: Splats, picture: Picture, *, time: float | None = None) -> Cloud:
        """Copies what can be seen of the first `splats.count` (axis-aligned) Gaussians; see `visible`."""
        return cls.visible(splats, picture, time=time)[0]

    @classmethod
    def visible(
        cls, splats: Splats, picture: Picture, *, time: float | None = None
    ) -> tuple[Cloud, NDArray[np.int64]]:
        """The cloud of what can be seen, and the rows of `splats` it came from.

        Left out is what the rasterizer would cull in every view: values that are not finite, opacity below
        1/255, and depth of 0 or less, which marks a Gaussian that left the model's range of depth.
        """
        if splats.quats is not None:
            raise InputError("Rotated Gaussians cannot be exported.", "Export those of a stream.")
        rows = slice(0, splats.count)
        means, scales = splats.means[rows], splats.scales[rows]
        rgb, opacity = splats.rgb[rows], splats.opacity[rows]
        finite = np.isfinite(means).all(1) & np.isfinite(scales).all(1) & np.isfinite(rgb).all(1)
        with np.errstate(invalid="ignore"):
            seen = finite & (opacity >= OPACITY_MIN) & (opacity < np.inf) & (means[:, 1] > 0)
        chosen = np.flatnonzero(seen)
        means, scales = means[chosen], scales[chosen]
        stretch = np.float32(picture.aspect)
        flat = np.hypot(scales[:, ::2], picture.widening)  # x and z
        flat[:, 0] *= stretch
        cloud = cls(
            means=np.stack([means[:, 0] * stretch, -means[:, 2], means[:, 1]], 1),
            scales=np.concatenate([flat, flat.mean(1, keepdims=True)], 1),
            quats=np.tile(_IDENTITY, (len(chosen), 1)),
            rgb=rgb[chosen],
            opacity=opacity[chosen],
            time=time,
            picture=picture,
        )
        return cloud, chosen

    def to_splats(self) -> Splats:
        """The inverse of `from_splats`: what the rasterizer takes.

        Raises:
            InputError: a Gaussian is rotated, which those of this program never are.
        """
        if self.count and np.abs(self.quats[:, 1:]).max() > 1e-2 * np.abs(self.quats[:, 0]).min():
            raise InputError(
                "The file holds rotated Gaussians, so it was not written by this program.",
                "Look at it in a viewer for 3DGS files.",
            )
        out = Splats.allocate(self.count)
        flat, stretch = self.scales[:, :2].copy(), np.float32(1)
        if self.picture is not None:
            stretch = np.float32(1 / self.picture.aspect)
            flat[:, 0] *= stretch
            flat = np.sqrt(np.maximum(np.square(flat) - np.square(self.picture.widening), 0))
        out.means[:] = np.stack([self.means[:, 0] * stretch, self.means[:, 2], -self.means[:, 1]], 1)
        out.scales[:] = np.stack([flat[:, 0], flat.mean(1), flat[:, 1]], 1)  # the model's depth is their mean
        out.rgb[:], out.opacity[:], out.count = self.rgb, self.opacity, self.count
        return out


def check_cloud(cloud: Cloud, name: str) -> Cloud:
    """The cloud, where all its numbers are usable; `name` is the file it came from.

    Raises:
        InputError: NaN or infinity, a negative scale, an opacity outside [0, 1], a rotation of length 0.
    """
    good = cloud.opacity >= 0  # False for NaN as well
    good &= cloud.opacity <= 1
    good &= (cloud.scales >= 0).all(1)
    for values in (cloud.means, cloud.scales, cloud.quats, cloud.rgb):
        good &= np.isfinite(values).all(1)
    good &= (cloud.quats != 0).any(1)
    bad = int(cloud.count - np.count_nonzero(good))
    if bad:
        raise InputError(
            f"{name}: {bad} of {cloud.count} Gaussians hold values that are not usable (NaN, infinity, "
            "a negative size, an opacity outside 0 to 1).",
            "The file is damaged; save it again.",
        )
    return cloud
