"""Properties of the rasterizer, with the float64 renderer of tests/reference_renderer.py as the truth."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from reference_renderer import assert_close, assert_identical, random_splats, render

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.rasterizer import Rasterizer, RenderBuffers, Splats, View

LEVELS = ["avx512", "avx2", "scalar"]
SWING = View.swing(0.4, -0.3, 1.0)
FIELDS = ("means", "scales", "opacity", "rgb", "quats")


def select(splats: Splats, rows: np.ndarray) -> Splats:
    picked = {name: np.ascontiguousarray(getattr(splats, name)[rows]) for name in FIELDS[:4]}
    quats = None if splats.quats is None else np.ascontiguousarray(splats.quats[rows])
    return Splats(**picked, quats=quats, count=len(rows))


def hashed(splats: Splats, *, view: View | None = None, **settings) -> RenderBuffers:
    return Rasterizer(64, 96, threads=2).render(splats, view=view, **settings)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("extent", ["published", "full"])
@pytest.mark.parametrize("view", [None, SWING], ids=["canonical", "swing"])
@pytest.mark.parametrize("quats", [False, True], ids=["plain", "quats"])
@pytest.mark.parametrize("sigma", [0.2, 3.0, 12.0])
def test_matches_float64(level, extent, view, quats, sigma, make_rasterizer) -> None:
    splats = random_splats(250, seed=int(10 * sigma) + quats, quats=quats, sigma=sigma)
    buffers = make_rasterizer(64, 96, simd=level).render(splats, view=view, extent=extent)
    reference = render(splats, 64, 96, view=view, extent=extent)
    assert len(reference.order) > 100
    assert_close(buffers, reference)


def test_unnormalised_quaternions_and_sheared_views() -> None:
    splats = random_splats(150, seed=5, quats=True)
    assert splats.quats is not None
    splats.quats *= np.linspace(0.5, 1.5, 150, dtype=np.float32)[:, None]
    view = View(
        np.array([[1, 0.2, 0], [0, 0.1, -0.8], [0.1, 1, 0.3]], np.float32),
        np.array([0.1, -0.2, 0.5], np.float32),
    )
    assert_close(hashed(splats, view=view), render(splats, 64, 96, view=view))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (17, 33), (50, 70), (15, 16), (31, 129)])
@pytest.mark.parametrize("view", [None, SWING], ids=["canonical", "swing"])
@pytest.mark.parametrize("level", LEVELS)
def test_odd_sizes(size, view, level, make_rasterizer) -> None:
    height, width = size
    splats = random_splats(60, seed=height + width, height=height, width=width)
    background = (0.1, 0.6, 0.9)
    buffers = make_rasterizer(height, width, simd=level).render(splats, view=view, background=background)
    assert_close(buffers, render(splats, height, width, view=view, background=background))


@pytest.mark.parametrize("view", [None, SWING], ids=["canonical", "swing"])
def test_bit_identical_for_any_number_of_threads(view) -> None:
    # More Gaussians than the size from which sorting and binning are split into chunks.
    splats = random_splats(20000, seed=1, height=144, width=256, sigma=1.5)
    first = Rasterizer(144, 256, threads=1).render(splats, view=view)
    for threads in (1, 2, 3, 8):
        rasterizer = Rasterizer(144, 256, threads=threads)
        for _ in range(3):
            assert_identical(rasterizer.render(splats, view=view), first)


def test_depth_order_matches_stable_sort_for_many() -> None:
    """The parallel radix sort against numpy's, with ties and exponents of every size."""
    rng = np.random.default_rng(3)
    splats = random_splats(20000, seed=2, sigma=0.5)
    splats.means[:, 1] = np.exp2(rng.integers(-100, 100, 20000)).astype(
        np.float32
    )  # about 100 Gaussians per depth
    order = np.argsort(splats.means[:, 1], kind="stable")
    in_order = select(splats, order)
    in_order.means[:, 1] = 1.0  # all tie: the index decides, and the indices are in depth order
    np.testing.assert_array_equal(hashed(splats).rgb, hashed(in_order).rgb)


@pytest.mark.parametrize("view", [None, SWING], ids=["canonical", "swing"])
@pytest.mark.parametrize("level", ["avx2", "scalar"])
def test_instruction_sets_agree(level, view, make_rasterizer) -> None:
    splats = random_splats(400, seed=4)
    best = make_rasterizer(64, 96).render(splats, view=view)
    other = make_rasterizer(64, 96, simd=level).render(splats, view=view)
    steady = ~render(splats, 64, 96, view=view).fragile
    assert other.stats == best.stats
    for name in ("rgb", "alpha", "depth"):
        difference = np.abs(getattr(other, name) - getattr(best, name))[steady].max()
        assert difference <= 2e-6 * max(1.0, float(getattr(best, name).max())), name


def test_identity_rotation_equals_canonical_path() -> None:
    splats = random_splats(400, seed=6)
    reference = render(splats, 64, 96)
    for view, quats in ((View.canonical(), None), (None, np.tile(np.float32([1, 0, 0, 0]), (400, 1)))):
        general = hashed(
            Splats(splats.means, splats.scales, splats.opacity, splats.rgb, quats, 400), view=view
        )
        canonical = hashed(splats)
        assert general.stats == canonical.stats
        difference = np.abs(general.rgb - canonical.rgb).max(axis=-1)[~reference.fragile].max()
        assert difference <= 2e-6


def test_swing_keeps_the_pivot_and_moves_the_rest() -> None:
    splats = Splats.allocate(2)
    splats.means[:] = [[0, 1.0, 0], [0, 0.5, 0]]
    splats.scales[:] = 0.02
    splats.opacity[:] = 1
    splats.rgb[:] = [[1, 0, 0], [0, 1, 0]]
    splats.count = 2

    def centre(buffers: RenderBuffers, channel: int) -> np.ndarray:
        weight = buffers.rgb[..., channel].astype(np.float64)
        rows, columns = np.mgrid[0:65, 0:97]
        return np.array([(weight * rows).sum(), (weight * columns).sum()]) / weight.sum()

    rasterizer = Rasterizer(65, 97)
    still = rasterizer.render(splats, background=(0, 0, 0))
    right = rasterizer.render(splats, background=(0, 0, 0), view=View.swing(0.4, 0.0, 1.0))
    up = rasterizer.render(splats, background=(0, 0, 0), view=View.swing(0.0, 0.4, 1.0))
    np.testing.assert_allclose(centre(still, 1), [32, 48], atol=1e-3)
    np.testing.assert_allclose(centre(right, 0), [32, 48], atol=1e-3)
    np.testing.assert_allclose(centre(up, 0), [32, 48], atol=1e-3)
    # Half a unit nearer: sin(0.4) / 2 of the half image to the left, or down.
    np.testing.assert_allclose(centre(right, 1), [32, 48 - np.sin(0.4) / 2 * 97 / 2], atol=1e-2)
    np.testing.assert_allclose(centre(up, 1), [32 + np.sin(0.4) / 2 * 65 / 2, 48], atol=1e-2)


@pytest.mark.parametrize(
    ("field", "path"),
    [(field, path) for field in FIELDS for path in ("quats", "swing")]
    + [(field, "canonical") for field in FIELDS[:4]],
)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_changes_nothing_but_the_counter(field, path, poison) -> None:
    quats, view = path != "canonical", SWING if path == "swing" else None
    fields = FIELDS if quats else FIELDS[:4]
    clean = random_splats(300, seed=7, quats=quats)
    rng = np.random.default_rng(8)
    extra = random_splats(40, seed=9, quats=quats)
    values = getattr(extra, field).reshape(40, -1)
    for row in range(40):
        values[row, rng.integers(values.shape[1])] = poison
    rows = np.insert(np.arange(300), rng.integers(0, 301, 40), -1)
    merged = Splats.allocate(340, quats=quats)
    merged.count = 340
    for name in fields:
        getattr(merged, name)[rows >= 0] = getattr(clean, name)
        getattr(merged, name)[rows < 0] = getattr(extra, name)
    without, with_poison = hashed(clean, view=view), hashed(merged, view=view)
    assert_identical(with_poison, without)
    assert with_poison.stats.culled_invalid == 40
    assert without.stats.culled_invalid == 0
    assert with_poison.stats.rendered == without.stats.rendered


def test_poison_in_scales_the_view_does_not_use() -> None:
    """The y scale does not reach the canonical image, but NaN in it means that the Gaussian is broken."""
    splats = random_splats(10, seed=10)
    splats.scales[3, 1] = np.nan
    assert hashed(splats).stats.culled_invalid == 1


def test_everything_poisoned_leaves_the_background() -> None:
    splats = random_splats(50, seed=11)
    splats.rgb[:] = np.nan
    buffers = hashed(splats, background=(0.1, 0.2, 0.3))
    np.testing.assert_array_equal(buffers.rgb, np.broadcast_to(np.float32([0.1, 0.2, 0.3]), (64, 96, 3)))
    assert buffers.stats.culled_invalid == 50
    assert not buffers.alpha.any() and not buffers.depth.any() and not buffers.expected_depth.any()


@pytest.mark.parametrize("extent", ["published", "full"])
@pytest.mark.parametrize(
    ("scale", "visible"),
    [(0.0, "dot"), (1e-38, "dot"), (1e-10, "dot"), (1e3, "all"), (1e15, "all"), (1e30, "all"), (3e38, "all")],
)
@pytest.mark.parametrize("path", ["canonical", "general"])
def test_extreme_scales_stay_visible(scale, visible, path, extent) -> None:
    splats = random_splats(1, seed=0)
    splats.means[:] = [[0.0, 1.0, 0.0]]
    splats.scales[:] = scale
    splats.opacity[:] = 0.5
    buffers = hashed(splats, view=View.canonical() if path == "general" else None, extent=extent)
    assert buffers.stats.rendered == 1
    assert np.isfinite(buffers.rgb).all()
    if visible == "all":
        np.testing.assert_allclose(buffers.alpha, 0.5, atol=1e-5)
    else:
        assert 0.2 < buffers.alpha.max() <= 0.5
        assert (buffers.alpha > 0).sum() < 30
    assert_close(buffers, render(splats, 64, 96, extent=extent))


@pytest.mark.parametrize("needle", [10.0, 1e3, 1e6])
def test_needles_stay_thin(needle) -> None:
    """One axis far longer than the others, turned by 0.6 rad: the determinant would cancel in float32."""
    splats = Splats.allocate(1, quats=True)
    splats.count = 1
    splats.means[:] = [[0.0, 1.0, 0.0]]
    splats.scales[:] = [[needle, 0.01, 0.01]]
    splats.opacity[:] = 1
    splats.rgb[:] = 1
    assert splats.quats is not None
    splats.quats[:] = [[np.cos(0.3), 0, np.sin(0.3), 0]]
    for extent in ("published", "full"):
        buffers = hashed(splats, extent=extent)
        assert 0.02 < (buffers.alpha > 0).mean() < 0.2
        assert_close(buffers, render(splats, 64, 96, extent=extent), tolerance=1e-4)


def test_far_away_depths_and_positions() -> None:
    splats = random_splats(8, seed=12)
    splats.means[:] = [
        [0, 1e-38, 0],
        [0, 3e38, 0],
        [1e30, 1, 0],
        [-3e38, 1, 3e38],
        [0, 1, -1e20],
        [0, -1, 0],
        [0, 0, 0],
        [5, 1, 5],
    ]
    splats.scales[:] = 0.1
    splats.opacity[:] = 0.9
    for view in (None, View.canonical()):
        buffers = hashed(splats, view=view)
        assert buffers.stats.rendered == 2  # the first two: nearest and farthest depth that float32 holds
        assert buffers.stats.culled_behind == 2
        assert buffers.stats.culled_outside == 4
        assert np.isfinite(buffers.rgb).all() and np.isfinite(buffers.depth).all()


def test_huge_gaussian_far_outside_covers_the_image() -> None:
    splats = random_splats(1, seed=13)
    splats.means[:] = [[1e6, 1.0, -1e6]]
    splats.scales[:] = 1e7
    splats.opacity[:] = 0.8
    for view in (None, View.canonical()):
        buffers = hashed(splats, view=view)
        assert_close(buffers, render(splats, 64, 96), tolerance=1e-4)
        assert buffers.alpha.min() > 0.7


def test_overflowing_projection_is_culled_not_rendered() -> None:
    splats = random_splats(2, seed=14, quats=True)
    assert splats.quats is not None
    splats.quats[0] = 3e38
    buffers = hashed(splats, view=View(np.full((3, 3), 3e38, np.float32), np.zeros(3, np.float32)))
    assert buffers.stats.rendered + buffers.stats.culled == 2
    assert np.isfinite(buffers.rgb).all()


def test_opacity_threshold_and_clamp() -> None:
    splats = random_splats(4, seed=15)
    splats.means[:, 0] = [-0.75, -0.25, 0.25, 0.75]
    splats.means[:, 2] = 0
    splats.scales[:] = 0.2
    below = np.nextafter(np.float32(1 / 255), np.float32(0))
    splats.opacity[:] = [below, -1.0, 1 / 255, 1e30]
    buffers = hashed(splats)
    assert buffers.stats.culled_transparent == 2
    assert buffers.stats.rendered == 2
    assert buffers.alpha.max() == pytest.approx(0.99, abs=1e-6)


@pytest.mark.parametrize("view", [None, View.canonical()], ids=["canonical", "general"])
def test_hidden_gaussians_change_nothing(view) -> None:
    front = random_splats(100, seed=16)
    wall = random_splats(3, seed=17)
    wall.means[:] = [[0, 4.0, 0], [0, 4.1, 0], [0, 4.2, 0]]
    wall.scales[:] = 1e3
    wall.opacity[:] = 1
    hidden = random_splats(500, seed=18)
    hidden.means[:, 1] += 5
    parts = {name: np.concatenate([getattr(s, name) for s in (hidden, front, wall)]) for name in FIELDS[:4]}
    everything = Splats(**parts, count=603)
    rows = np.r_[500:603]
    assert_identical(hashed(everything, view=view), hashed(select(everything, rows), view=view))
    without_wall = np.r_[0:600]
    assert (
        hashed(select(everything, without_wall), view=view).rgb != hashed(everything, view=view).rgb
    ).any()


def test_input_order_does_not_matter_without_ties() -> None:
    splats = random_splats(20000, seed=19, sigma=1.0)
    splats.means[:, 1] = np.random.default_rng(0).permutation(np.arange(1, 20001)) / np.float32(4096)
    shuffled = select(splats, np.random.default_rng(20).permutation(20000))
    assert_identical(hashed(shuffled), hashed(splats))
    assert_identical(hashed(shuffled, view=View.canonical()), hashed(splats, view=View.canonical()))


def test_ties_resolve_by_index() -> None:
    splats = random_splats(2, seed=21)
    splats.means[:] = [[0, 1, 0], [0, 1, 0]]
    splats.scales[:] = 1.0
    splats.opacity[:] = 0.9
    splats.rgb[:] = [[1, 0, 0], [0, 1, 0]]
    assert hashed(splats).rgb[32, 48, 0] > 0.85
    assert hashed(select(splats, np.array([1, 0]))).rgb[32, 48, 1] > 0.85


def test_count_limits_the_rows_used() -> None:
    splats = random_splats(300, seed=22)
    splats.count = 120
    splats.means[120:] = np.nan
    limited = hashed(splats)
    assert limited.stats.culled_invalid == 0
    assert_identical(limited, hashed(select(splats, np.arange(120))))


@pytest.mark.parametrize("allocated", [0, 5])
def test_no_gaussians(allocated) -> None:
    splats = Splats.allocate(allocated)
    for view in (None, SWING):
        buffers = hashed(splats, background=(0.25, 0.5, 0.75), view=view)
        np.testing.assert_array_equal(
            buffers.rgb, np.broadcast_to(np.float32([0.25, 0.5, 0.75]), (64, 96, 3))
        )
        assert not buffers.alpha.any() and not buffers.expected_depth.any()
        assert buffers.stats.rendered == buffers.stats.culled == buffers.stats.pairs == 0


def test_expected_depth_is_depth_over_alpha() -> None:
    buffers = hashed(random_splats(60, seed=23, sigma=2.0))
    covered = buffers.alpha > 0
    assert covered.any() and not covered.all()
    np.testing.assert_allclose(
        buffers.expected_depth[covered], buffers.depth[covered] / buffers.alpha[covered], rtol=1e-6
    )
    assert not buffers.expected_depth[~covered].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0, "width": 5}, "out of range"),
        ({"height": 5, "width": 20000}, "out of range"),
        ({"height": 5, "width": 5, "threads": -1}, "threads"),
        ({"height": 5, "width": 5, "simd": "mmx"}, "SIMD"),
    ],
)
def test_bad_settings_are_refused(settings, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Rasterizer(**settings)
    assert caught.value.hint


def test_neon_is_the_name_of_the_plain_level_on_arm() -> None:
    if platform.machine() != "aarch64":
        assert Rasterizer(16, 16, simd="scalar").simd == "scalar"
        with pytest.raises(InputError, match="does not support neon"):
            Rasterizer(16, 16, simd="neon")
        return
    splats = random_splats(50, seed=3)
    neon, plain = (Rasterizer(40, 60, simd=name).render(splats) for name in ("neon", "scalar"))
    assert Rasterizer(16, 16).simd == "neon"
    assert_identical(neon, plain)


def test_bad_arrays_are_refused() -> None:
    rasterizer = Rasterizer(64, 96)
    good = random_splats(10, seed=50)

    def broken(**changes) -> Splats:
        fields = {name: getattr(good, name) for name in FIELDS} | {"count": 10} | changes
        return Splats(**fields)

    for splats, message in (
        (broken(count=11), "count"),
        (broken(count=-1), "count"),
        (broken(scales=good.scales[:5]), "scales"),
        (broken(rgb=good.rgb.astype(np.float64)), "rgb"),
        (broken(means=np.asfortranarray(good.means)), "means"),
        (broken(quats=np.zeros((10, 3), np.float32)), "quats"),
        (broken(opacity=[0.5] * 10), "opacity"),
    ):
        with pytest.raises(InputError, match=message):
            rasterizer.render(splats)
    with pytest.raises(InputError, match="rgb"):
        rasterizer.render(good, out=RenderBuffers.allocate(64, 97))
    for background in ((0.5, np.nan, 0.5), (0.5, 0.5), "red", None):
        with pytest.raises(InputError, match="Background"):
            rasterizer.render(good, background=background)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="extent"):
        rasterizer.render(good, extent="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rotation"):
        View(np.eye(4, dtype=np.float32), np.zeros(3, np.float32))
