"""Gaussians at a time of the pair against a float64 NumPy twin of the formulas (REFERENCE.md section 2)."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats, evaluate_at


def twin(gaussians, motion, fade, dt, mapping):
    """means, scales, opacity, rgb in float64, from the formulas as they are written down."""
    g, v, (g0, g1) = gaussians.astype(np.float64), motion.astype(np.float64), fade.astype(np.float64).T
    position = g[:, :3] + v * dt
    y = position[:, 1]
    inside = (y >= 0) & (y <= 1)
    with np.errstate(divide="ignore"):
        near = 1 / (0.2 + 9.8 * y + 1e-6) if mapping == "published" else 2 / (1 + y)
    depth = np.where(inside, near, y - 10)

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    means = np.stack([position[:, 0], depth, position[:, 2]], axis=1)
    scales = np.stack([g[:, 6], (g[:, 6] + g[:, 7]) / 2, g[:, 7]], axis=1)
    return means, scales, g[:, 8] * sigmoid(-g0 * (abs(dt) - g1)) / sigmoid(g0 * g1), g[:, 3:6]


def random_inputs(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    gaussians = rng.uniform(0, 1, (count, 9)).astype(np.float32)
    gaussians[:, [0, 2]] = rng.uniform(-1, 1, (count, 2))
    motion = rng.normal(0, 0.2, (count, 3)).astype(np.float32)
    fade = np.stack([rng.exponential(5, count), rng.uniform(0, 1, count)], axis=1).astype(np.float32)
    fade[: count // 10, 0] = 0
    return gaussians, motion, fade


@pytest.mark.parametrize("mapping", ["published", "paper"])
@pytest.mark.parametrize("dt", [0.0, 0.3, 1.0, -0.3, -1.0])
@pytest.mark.parametrize("count", [1, 63, 64, 5000])
def test_matches_twin(mapping, dt, count) -> None:
    inputs = random_inputs(count)
    splats = Splats.allocate(count)
    evaluate_at(*inputs, dt, mapping, splats)
    means, scales, opacity, rgb = twin(*inputs, np.float64(np.float32(dt)), mapping)
    # At the borders of y in [0, 1] the float32 sum may fall on the other side: behind the camera or not.
    y = inputs[0][:, 1] + inputs[1][:, 1].astype(np.float64) * dt
    steady = (np.abs(y) > 1e-6) & (np.abs(y - 1) > 1e-6)
    assert steady.mean() > 0.99
    np.testing.assert_allclose(splats.means[steady], means[steady], rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(splats.scales, scales, rtol=1e-6)
    np.testing.assert_allclose(splats.opacity, opacity, rtol=2e-6)
    np.testing.assert_array_equal(splats.rgb, rgb.astype(np.float32))


def test_opacity_is_exact_at_the_anchor_and_never_grows() -> None:
    inputs = random_inputs(2000, seed=1)
    splats = Splats.allocate(2000)
    evaluate_at(*inputs, 0.0, "published", splats)
    np.testing.assert_array_equal(splats.opacity, inputs[0][:, 8])
    previous = splats.opacity.copy()
    for dt in np.linspace(0.1, 1, 10):
        evaluate_at(*inputs, float(dt), "published", splats)
        assert (splats.opacity <= previous * (1 + 1e-6)).all()
        constant = inputs[2][:, 0] == 0
        np.testing.assert_array_equal(splats.opacity[constant], inputs[0][constant, 8])
        previous = splats.opacity.copy()


def test_extreme_fade_stays_finite() -> None:
    gaussians, motion, fade = random_inputs(4)
    fade[:] = [[1e4, 0.5], [1e30, 0.0], [3e38, 1.0], [1e-38, 1e-38]]
    splats = Splats.allocate(4)
    evaluate_at(gaussians, motion, fade, 0.75, "published", splats)
    assert np.isfinite(splats.opacity).all()
    assert (splats.opacity[:2] < 1e-30).all()
    assert splats.opacity[2] == pytest.approx(gaussians[2, 8], rel=1e-5)
    assert splats.opacity[3] == pytest.approx(gaussians[3, 8], rel=1e-5)


@pytest.mark.parametrize("column", range(9))
def test_poisoned_gaussians_are_culled(column) -> None:
    gaussians, motion, fade = random_inputs(50, seed=2)
    motion[:] = 0
    gaussians[7, column] = np.nan
    splats = Splats.allocate(50)
    splats.count = 50
    evaluate_at(gaussians, motion, fade, 0.5, "published", splats)
    stats = Rasterizer(16, 16).render(splats).stats
    assert (stats.culled_invalid, stats.culled_behind) == (1, 0)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", ["motion", "gamma0", "gamma1"])
def test_poisoned_motion_and_fade_are_culled(array, poison) -> None:
    gaussians, motion, fade = random_inputs(50, seed=3)
    motion[:] = 0
    if array == "motion":
        motion[9] = poison
    else:
        fade[9, int(array[-1])] = poison
    splats = Splats.allocate(50)
    splats.count = 50
    evaluate_at(gaussians, motion, fade, 0.5, "published", splats)
    assert Rasterizer(16, 16).render(splats).stats.culled_invalid == 1


def test_out_of_range_depth_ends_behind_the_camera() -> None:
    gaussians, motion, fade = random_inputs(4)
    motion[:] = 0
    gaussians[:, 1] = [-0.001, 1.001, 0.0, 1.0]
    for mapping in ("published", "paper"):
        splats = Splats.allocate(4)
        splats.count = 4
        evaluate_at(gaussians, motion, fade, 0.5, mapping, splats)
        assert Rasterizer(16, 16).render(splats).stats.culled_behind == 2


def test_writes_its_rows_only() -> None:
    inputs = random_inputs(100, seed=4)
    splats = Splats.allocate(300, quats=True)
    splats.count = 17
    for name in ("means", "scales", "opacity", "rgb", "quats"):
        getattr(splats, name)[...] = 7
    evaluate_at(*inputs, 0.25, "published", splats, 150)
    alone = Splats.allocate(100)
    evaluate_at(*inputs, 0.25, "published", alone, threads=1)
    for name in ("means", "scales", "opacity", "rgb"):
        np.testing.assert_array_equal(getattr(splats, name)[150:250], getattr(alone, name))
        assert (getattr(splats, name)[:150] == 7).all() and (getattr(splats, name)[250:] == 7).all()
    assert splats.count == 17
    assert splats.quats is not None and (splats.quats == 7).all()


def test_bad_arguments_are_refused() -> None:
    gaussians, motion, fade = random_inputs(10)
    splats = Splats.allocate(12)
    for arguments, message in (
        ((gaussians, motion, fade, 0.5, "published", splats, 3), "fit"),
        ((gaussians, motion, fade, 0.5, "published", splats, -1), "fit"),
        ((gaussians, motion[:5], fade, 0.5, "published", splats), "motion"),
        ((gaussians[:, :8], motion, fade, 0.5, "published", splats), "gaussians"),
        ((gaussians, motion, fade.astype(np.float64), 0.5, "published", splats), "fade"),
        ((gaussians, motion, fade, np.nan, "published", splats), "dt"),
        ((gaussians, motion, fade, 0.5, "linear", splats), "mapping"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_at(*arguments)
