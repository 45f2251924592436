"""From a stream's Gaussians to what `.4dgs` files can say: straight motion, a bell curve of opacity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..interval import IntervalEvaluator
from ..rasterizer import DepthMapping, Splats, evaluate_at
from .cloud import Cloud, Picture
from .container import Births, ContainerWriter
from .key_frame import KeyFrame

_SHARES = (np.arange(8) + 1) / 8  # of an interval, where a fade is looked at
_FLAT = 1e-3  # curvature below which a fade counts as constant


def fit_bell(fade: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bell curves that are 1 at s = 0 and close to `fade` on (0, 1].

    The logarithm of a fade falls ever faster, like that of a bell curve: a parabola b s + c s^2 is fitted to
    it by least squares, weighted by the square of the fade, because opacity counts and not its logarithm.

    Args:
        fade: [8, N] opacity relative to s = 0, at s = 1/8, 2/8, ... 1.
        room: [N] how far the curve may rise above 1.

    Returns:
        Centre and sigma [N], in units of s; sigma is infinite, and the centre 0, where the fade is constant.
    """
    fade = np.maximum(fade.astype(np.float64), 1e-4)
    s, weight, log = _SHARES[:, None], np.square(fade), np.log(fade)
    a11, a12, a22 = ((weight * s**n).sum(0) for n in (2, 3, 4))
    r1, r2 = ((weight * s**n * log).sum(0) for n in (1, 2))
    determinant = np.maximum(a11 * a22 - a12 * a12, 1e-12)
    b = (r1 * a22 - r2 * a12) / determinant
    c = (a11 * r2 - a12 * r1) / determinant
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = (c < -_FLAT) & (np.square(b) / (-4 * c) <= np.log(room))
    b, c = np.where(fits, b, 0), np.where(fits, c, r2 / a22)  # else around s = 0
    constant = c > -_FLAT
    c = np.where(constant, -1.0, c)
    return np.where(constant, 0, b / (-2 * c)), np.where(constant, np.inf, np.sqrt(-0.5 / c))


def births_of_pair(
    earlier: KeyFrame, later: KeyFrame, depth_mapping: DepthMapping, picture: Picture, origin: float = 0.0
) -> Births:
    """All Gaussians of the interval between two key frames.

    Places are exact at each Gaussian's own key frame and, depth included, at the other end of the interval;
    between them depth runs straight. Gaussians that leave the range of depth on the way keep their depth
    instead.

    Args:
        earlier, later: neighbours; `later` holds the pair.
        origin: seconds that the times of the result count from.
    """
    assert later.motion is not None and later.fade is not None
    seconds = later.time - earlier.time
    parts: list[Births] = []
    splats = Splats.allocate(len(later.gaussians))
    for half, (key, towards) in enumerate(((earlier, 1.0), (later, -1.0))):
        motion, fade = later.motion[half], later.fade[half]

        def evaluate(dt: float, key: KeyFrame = key, motion=motion, fade=fade) -> Splats:  # type: ignore[no-untyped-def]
            evaluate_at(key.gaussians, motion, fade, dt, depth_mapping, splats)
            splats.count = len(key.gaussians)
            return splats

        parts.append(_half(evaluate, towards, seconds, key.time - origin, picture))
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("means", "scales", "rgb", "opacity", "motion", "birth", "spread")
    }
    return Births(**joined)


def _half(
    evaluate: Callable[[float], Splats], towards: float, seconds: float, birth: float, picture: Picture
) -> Births:
    """The Gaussians of one key frame, which move from their time `towards` the other end of the interval."""
    faded = np.stack([evaluate(towards * share).opacity for share in _SHARES])
    far = evaluate(towards).means.copy()
    here = evaluate(0.0)
    far[:, 1] = np.where(far[:, 1] > 0, far[:, 1], here.means[:, 1])
    # What cannot be seen or written is left out by `Cloud`; its rows are found again by marking them.
    usable = np.isfinite(far).all(1) & np.isfinite(faded).all(0)
    here.opacity[~usable] = 0
    travel = (far - here.means) * np.float32(towards / seconds)
    opacity = here.opacity.copy()
    cloud, rows = Cloud.visible(here, picture)
    centre, spread = fit_bell(faded[:, rows] / opacity[rows], 1 / np.minimum(opacity[rows], 1))
    motion = travel[rows][:, [0, 2, 1]] * np.array([picture.aspect, -1.0, 1.0])
    since = towards * seconds * centre
    return Births(
        means=cloud.means + motion * since[:, None],
        scales=cloud.scales,
        rgb=cloud.rgb,
        opacity=cloud.opacity * np.exp(0.5 * np.square(centre / spread)),
        motion=motion,
        birth=birth + since,
        spread=spread * seconds,
    )


def births_of_key_frame(
    key: KeyFrame, depth_mapping: DepthMapping, picture: Picture, origin: float
) -> Births:
    """The Gaussians of a scene of one key frame, which stand still."""
    splats = IntervalEvaluator(len(key.gaussians), depth_mapping).lone(key.gaussians)
    return births_of_cloud(Cloud.from_splats(splats, picture), key.time - origin)


def births_of_cloud(cloud: Cloud, birth: float = 0.0) -> Births:
    """Gaussians that stand still."""
    count = cloud.count
    return Births(
        means=cloud.means,
        scales=cloud.scales,
        rgb=cloud.rgb,
        opacity=cloud.opacity,
        motion=np.zeros((count, 3)),
        birth=np.full(count, birth),
        spread=np.full(count, np.inf),
        quats=cloud.quats,
    )


class PairWindows:
    """Writes key frames as they come: a window of time per pair. One waits until it is known when the next
    begins.

    Args:
        writer: closed or dropped with this object.
        depth_mapping, picture: of the model and the input.
    """

    def __init__(self, writer: ContainerWriter, depth_mapping: DepthMapping, picture: Picture) -> None:
        self._writer, self._mapping, self._picture = writer, depth_mapping, picture
        self._origin = 0.0
        self._earlier: KeyFrame | None = None
        self._waiting: tuple[Births, float] | None = None

    def add(self, key: KeyFrame) -> None:
        """Takes the next key frame; its arrays may be overwritten afterwards."""
        earlier = self._earlier
        if earlier is None:
            self._origin = key.time
        if key.motion is None:
            self._write(key.time)
            births = births_of_key_frame(key, self._mapping, self._picture, self._origin)
            self._waiting = births, key.time
        else:
            assert earlier is not None, "a pair has two key frames"
            self._write(earlier.time)  # of a scene's first key frame alone nothing is left to be shown
            births = births_of_pair(earlier, key, self._mapping, self._picture, self._origin)
            self._waiting = births, earlier.time
        self._earlier = replace(key, gaussians=key.gaussians.copy(), motion=None, fade=None)

    def _write(self, end: float) -> None:
        """What waits is shown until `end`."""
        if self._waiting is not None:
            births, start = self._waiting
            if end > start:
                self._writer.add(births, start - self._origin, end - self._origin)
        self._waiting = None

    def close(self, end: float) -> None:
        """The recording ends at `end`, in seconds."""
        self._write(end)
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()
