"""The truth for rasterizer tests: a dense float64 renderer after REFERENCE.md section 3, slow and obvious.

Every Gaussian is evaluated at every pixel; there are no tiles, no support boxes and no early exit of a loop.
The decisions of the published algorithm (alpha < 1/255 skipped, blending stopped before transmittance falls
below 1e-4, tile rectangles) are discontinuous, so pixels where one of them hangs on float32 rounding are
reported as `fragile`: there two correct float32 implementations may differ by one Gaussian's contribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.rasterizer import RenderBuffers, Splats, View

Float64 = NDArray[np.float64]

ALPHA_MIN = np.float64(np.float32(1.0 / 255.0))
ALPHA_MAX = np.float64(np.float32(0.99))
TRANSMITTANCE_MIN = np.float64(np.float32(1e-4))
TILE = 16
PLANES = ("rgb", "depth", "expected_depth", "alpha")


@dataclass
class Reference:
    """Images in float64; `fragile` [H, W] marks pixels where a threshold decision hangs on rounding."""

    rgb: Float64
    depth: Float64
    alpha: Float64
    fragile: NDArray[np.bool_]
    order: list[int]
    """Indices of the rendered Gaussians, front to back."""


def rotation_matrix(quat: Float64) -> Float64:
    """Rotation of a quaternion (w, x, y, z) that is not normalised first, as published."""
    w, x, y, z = quat
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def tile_range(centre: float, radius: float, pixels: int) -> tuple[int, int]:
    """First and one-past-last pixel of the tiles between centre - radius and centre + radius."""
    tiles = -(-pixels // TILE)
    low = min(max(int((centre - radius) / TILE), 0), tiles)
    high = min(max(int((centre + radius + TILE - 1) / TILE), 0), tiles)
    return low * TILE, min(high * TILE, pixels)


def render(
    splats: Splats,
    height: int,
    width: int,
    *,
    background: tuple[float, float, float] = (0.5, 0.5, 0.5),
    view: View | None = None,
    extent: str = "published",
) -> Reference:
    """Render the first `count` Gaussians; arguments as `Rasterizer.render`."""
    view = View.canonical() if view is None else view
    rotation = view.rotation.astype(np.float64)
    n = splats.count
    positions = splats.means[:n].astype(np.float64) @ rotation.T + view.translation.astype(np.float64)
    depths = positions[:, 2].astype(np.float32)
    order = [int(i) for i in np.argsort(depths, kind="stable")]

    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    transmittance = np.ones((height, width))
    live = np.ones((height, width), bool)
    fragile = np.zeros((height, width), bool)
    image, depth, alpha_sum = (
        np.zeros((height, width, 3)),
        np.zeros((height, width)),
        np.zeros((height, width)),
    )
    jacobian = np.array([[width / 2, 0, 0], [0, height / 2, 0]])
    rendered: list[int] = []
    for i in order:
        inputs = [splats.means[i], splats.scales[i], splats.rgb[i], splats.opacity[i : i + 1]]
        if splats.quats is not None:
            inputs.append(splats.quats[i])
        if not np.isfinite(np.concatenate(inputs)).all() or depths[i] <= 0:
            continue
        own = np.eye(3) if splats.quats is None else rotation_matrix(splats.quats[i].astype(np.float64))
        root = jacobian @ rotation @ own @ np.diag(splats.scales[i].astype(np.float64))
        covariance = root @ root.T + np.float64(np.float32(0.3)) * np.eye(2)
        (a, b), (_, c) = covariance
        # The determinant from the 2x2 minors of `root` (Cauchy-Binet): a c - b b cancels for needles.
        minors = sum(np.linalg.det(root[:, list(pair)]) ** 2 for pair in ((0, 1), (0, 2), (1, 2)))
        low_pass = np.float64(np.float32(0.3))
        det = minors + low_pass * (a + c - 2 * low_pass) + low_pass**2
        u = ((positions[i, 0] + 1) * width - 1) / 2
        v = ((positions[i, 1] + 1) * height - 1) / 2

        inside = np.ones((height, width), bool)
        if extent == "published":
            mid = (a + c) / 2
            reach = 3 * np.sqrt(mid + np.sqrt(max(0.1, mid * mid - det)))
            slack = 1e-4 + 1e-6 * reach + 1e-5 * (abs(u) + abs(v))
            rectangles = []
            for radius in sorted({np.ceil(reach - slack), np.ceil(reach), np.ceil(reach + slack)}):
                for du in (0.0, -slack, slack):
                    for dv in (0.0, -slack, slack):
                        x0, x1 = tile_range(u + du, radius, width)
                        y0, y1 = tile_range(v + dv, radius, height)
                        box = np.zeros((height, width), bool)
                        box[y0:y1, x0:x1] = True
                        rectangles.append((radius, box))
            inside = next(box for radius, box in rectangles if radius == np.ceil(reach))
            uncertain = np.any([box != inside for _, box in rectangles], axis=0)
        else:
            uncertain = np.zeros((height, width), bool)

        dx, dy = u - columns, v - rows
        # Sum of squares: the exponent of the published form, without its cancellation.
        power = -0.5 * (c / det) * (dx - b / c * dy) ** 2 - 0.5 * dy**2 / c
        value = np.float64(splats.opacity[i]) * np.exp(power)
        alpha = np.minimum(ALPHA_MAX, value)
        hit = live & inside & (value >= ALPHA_MIN)
        fragile |= live & inside & (np.abs(value / ALPHA_MIN - 1) < 2e-4)
        fragile |= live & uncertain & (value >= ALPHA_MIN * 0.999)
        after = transmittance * (1 - alpha)
        fragile |= hit & (np.abs(after / TRANSMITTANCE_MIN - 1) < 2e-3)
        stop = hit & (after < TRANSMITTANCE_MIN)
        live &= ~stop
        weight = np.where(hit & ~stop, alpha * transmittance, 0.0)
        image += weight[..., None] * splats.rgb[i].astype(np.float64)
        depth += weight * np.float64(depths[i])
        alpha_sum += weight
        transmittance = np.where(hit & ~stop, after, transmittance)
        rendered.append(i)
    image += transmittance[..., None] * np.asarray(background, np.float32).astype(np.float64)
    return Reference(image, depth, alpha_sum, fragile, rendered)


def random_splats(
    count: int, seed: int, *, height: int = 64, width: int = 96, quats: bool = False, sigma: float = 3.0
) -> Splats:
    """A scene with all depths different, sigma around `sigma` pixels (log-normal), opacities from 0 to 1."""
    rng = np.random.default_rng(seed)
    splats = Splats.allocate(count, quats=quats)
    splats.count = count
    splats.means[:, 0] = rng.uniform(-1.2, 1.2, count)
    splats.means[:, 2] = rng.uniform(-1.2, 1.2, count)
    splats.means[:, 1] = rng.permutation(np.linspace(0.2, 3.0, count) if count else np.zeros(0))
    size = sigma * np.exp(0.5 * rng.standard_normal((count, 3)))
    splats.scales[:] = size * np.array([2 / width, 2 / width, 2 / height])
    splats.opacity[:] = rng.uniform(0, 1, count)
    splats.rgb[:] = rng.uniform(0, 1, (count, 3))
    if splats.quats is not None:
        splats.quats[:] = rng.standard_normal((count, 4))
        splats.quats /= np.linalg.norm(splats.quats, axis=1, keepdims=True)
    return splats


def assert_close(
    buffers: RenderBuffers, reference: Reference, *, tolerance: float = 1e-5, fragile_tolerance: float = 2e-2
) -> None:
    """Compare a render with the truth: tightly away from fragile pixels, bounded at them.

    `tolerance` is absolute for rgb and alpha. Accumulated depth is a sum of the same weights times depths, so
    its rounding error scales with the largest depth: its tolerance is multiplied by max(1, depth).
    """
    far = max(1.0, float(reference.depth.max(initial=0.0)))
    assert reference.fragile.mean() < 0.1, (
        "the scene hangs on rounding nearly everywhere: nothing would be compared"
    )
    for name, scale in (("rgb", 1.0), ("alpha", 1.0), ("depth", far)):
        error = np.abs(getattr(buffers, name).astype(np.float64) - getattr(reference, name)) / scale
        error = error.max(axis=-1) if error.ndim == 3 else error
        worst = float(error[~reference.fragile].max(initial=0.0))
        assert worst <= tolerance, f"{name} is off by {worst:.2e}"
        at_edge = float(error.max(initial=0.0))
        assert at_edge <= fragile_tolerance, f"{name} is off by {at_edge:.2e} at a fragile pixel"


def assert_identical(a: RenderBuffers, b: RenderBuffers) -> None:
    """Every image of both results has the same bits."""
    for name in PLANES:
        np.testing.assert_array_equal(
            getattr(a, name).view(np.uint32), getattr(b, name).view(np.uint32), name
        )
