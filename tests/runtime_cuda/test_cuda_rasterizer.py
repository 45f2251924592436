"""The CUDA rasterizer against golden renders, the float64 renderer and the C++ rasterizer.

Tests named `[on_cpu]` run the kernels' own source on the CPU. Those marked `gpu` are the same on a device;
`make gpu-check` runs them.
"""

from __future__ import annotations

import ctypes
import weakref

import golden_render
import numpy as np
import pytest
from kernel_rasterizer import KernelRasterizer, download, fetch, upload
from reference_renderer import assert_close, assert_identical, random_splats, render

from streamsplat_edge.runtime.cuda import layout
from streamsplat_edge.runtime.cuda.rasterizer import OUTPUTS, CudaRasterizer, DeviceSplats
from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats, View
from streamsplat_edge.runtime.scene import to_bytes

SWING = View.swing(0.4, -0.3, 1.0)
VIEWS = pytest.mark.parametrize("view", [None, SWING], ids=["canonical", "swing"])
FIELDS = ("means", "scales", "opacity", "rgb")


def select(splats: Splats, rows: np.ndarray) -> Splats:
    quats = None if splats.quats is None else np.ascontiguousarray(splats.quats[rows])
    picked = {name: np.ascontiguousarray(getattr(splats, name)[rows]) for name in FIELDS}
    return Splats(**picked, quats=quats, count=len(rows))


@pytest.mark.parametrize(("case", "path"), golden_render.PATHS)
@pytest.mark.parametrize(("golden", "extent"), golden_render.GOLDENS)
def test_matches_published(any_device, case, path, golden, extent) -> None:
    buffers = KernelRasterizer(any_device, *golden_render.size(case)).render(
        golden_render.scene(case, quats=path == "general"),
        background=golden_render.DATA[f"{case}/in_bg"],
        view=View.canonical() if path == "general" else None,
        extent=extent,
    )
    golden_render.check(buffers, case, golden)


@VIEWS
@pytest.mark.parametrize("extent", ["published", "full"])
@pytest.mark.parametrize("quats", [False, True], ids=["plain", "quats"])
@pytest.mark.parametrize("sigma", [0.2, 12.0])
def test_matches_float64_and_counts_as_cpp(any_device, view, extent, quats, sigma) -> None:
    splats = random_splats(250, seed=int(10 * sigma) + quats, quats=quats, sigma=sigma)
    buffers = KernelRasterizer(any_device).render(splats, view=view, extent=extent)
    assert_close(buffers, render(splats, 64, 96, view=view, extent=extent))
    assert buffers.stats == Rasterizer(64, 96).render(splats, view=view, extent=extent).stats


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (17, 33), (15, 16), (31, 129)])
@VIEWS
def test_odd_sizes(any_device, size, view) -> None:
    height, width = size
    splats = random_splats(60, seed=height + width, height=height, width=width)
    background = (0.1, 0.6, 0.9)
    buffers = KernelRasterizer(any_device, height, width).render(splats, view=view, background=background)
    assert_close(buffers, render(splats, height, width, view=view, background=background))


# Up to 3,000 Gaussians in one tile; 1,024 are sorted at a time.
LONG = {
    count: random_splats(count, seed=count, height=20, width=30, sigma=8.0)
    for count in (256, 257, 512, 1024, 1025, 3000)
}


@pytest.mark.parametrize("slots", [4096, 64, 1])
@pytest.mark.parametrize("count", LONG)
def test_long_lists_and_tiles_with_more_keys_than_slots(any_device, count, slots) -> None:
    splats = LONG[count]
    splats.opacity[:] = 0.02  # nothing is saturated: the last Gaussian counts
    kernels = KernelRasterizer(any_device, 20, 30, slots=slots)
    buffers = kernels.render(splats)
    want = Rasterizer(20, 30).render(splats)
    for name in ("rgb", "alpha", "depth"):
        np.testing.assert_allclose(getattr(buffers, name), getattr(want, name), atol=1e-5, err_msg=name)
    assert buffers.stats == want.stats
    assert kernels.images.overflowing_tiles == [4 if slots < 100 else 0]


@VIEWS
def test_slots_never_change_a_bit(any_device, view) -> None:
    splats = random_splats(1500, seed=3, sigma=4.0)
    splats.opacity[:] *= 0.2
    few, many = (KernelRasterizer(any_device, slots=slots).render(splats, view=view) for slots in (16, 2048))
    assert_identical(few, many)


def test_a_tile_overflows_from_one_key_more_than_its_slots_on(any_device) -> None:
    splats = random_splats(40, seed=41, height=16, width=16, sigma=8.0)
    wide = KernelRasterizer(any_device, 16, 16).render(splats)
    assert wide.stats is not None and wide.stats.binned_pairs > 30
    for slots, overflowing in ((wide.stats.binned_pairs, 0), (wide.stats.binned_pairs - 1, 1)):
        kernels = KernelRasterizer(any_device, 16, 16, slots=slots)
        assert_identical(kernels.render(splats), wide)
        assert kernels.images.overflowing_tiles == [overflowing]


def test_keys_of_one_depth_and_of_every_exponent(any_device) -> None:
    """The radix select where keys differ in their row only, and where they differ in every bit."""
    splats = LONG[3000]
    for depths in (np.ones(3000), np.exp2(np.random.default_rng(0).integers(-120, 120, 3000))):
        tied = select(splats, np.arange(3000))
        tied.means[:, 1] = depths
        tied.opacity[:] = 0.02
        want = Rasterizer(20, 30).render(tied)
        for slots in (4096, 8):
            buffers = KernelRasterizer(any_device, 20, 30, slots=slots).render(tied)
            np.testing.assert_allclose(buffers.rgb, want.rgb, atol=1e-5)


def test_ties_resolve_by_index(any_device) -> None:
    splats = random_splats(2, seed=21)
    splats.means[:] = [[0, 1, 0], [0, 1, 0]]
    splats.scales[:] = 1.0
    splats.opacity[:] = 0.9
    splats.rgb[:] = [[1, 0, 0], [0, 1, 0]]
    rasterizer = KernelRasterizer(any_device)
    assert rasterizer.render(splats).rgb[32, 48, 0] > 0.85
    assert rasterizer.render(select(splats, np.array([1, 0]))).rgb[32, 48, 1] > 0.85


@VIEWS
@pytest.mark.parametrize("field", [*FIELDS, "quats"])
@pytest.mark.parametrize("poison", [np.nan, -np.inf])
def test_poison_changes_nothing_but_the_counter(any_device, field, view, poison) -> None:
    quats = field == "quats"
    clean, extra = random_splats(300, seed=7, quats=quats), random_splats(40, seed=9, quats=quats)
    rng = np.random.default_rng(8)
    values = getattr(extra, field).reshape(40, -1)
    for row in range(40):
        values[row, rng.integers(values.shape[1])] = poison
    rows = np.insert(np.arange(300), rng.integers(0, 301, 40), -1)
    merged = Splats.allocate(340, quats=quats)
    merged.count = 340
    for name in (*FIELDS, "quats") if quats else FIELDS:
        getattr(merged, name)[rows >= 0] = getattr(clean, name)
        getattr(merged, name)[rows < 0] = getattr(extra, name)
    rasterizer = KernelRasterizer(any_device)
    without, with_poison = (rasterizer.render(s, view=view) for s in (clean, merged))
    assert_identical(with_poison, without)
    assert with_poison.stats.culled_invalid == 40
    assert with_poison.stats.rendered == without.stats.rendered


@pytest.mark.parametrize("extent", ["published", "full"])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-10, 1e3, 1e15, 3e38])
@pytest.mark.parametrize("path", ["canonical", "general"])
def test_extreme_scales(any_device, scale, path, extent) -> None:
    splats = random_splats(1, seed=0)
    splats.means[:] = [[0.0, 1.0, 0.0]]
    splats.scales[:] = scale
    splats.opacity[:] = 0.5
    view = View.canonical() if path == "general" else None
    buffers = KernelRasterizer(any_device).render(splats, view=view, extent=extent)
    assert buffers.stats.rendered == 1
    assert_close(buffers, render(splats, 64, 96, extent=extent))


@pytest.mark.parametrize("turn", [0.3, 1.0, 3.0])
def test_an_exponent_that_is_not_a_number_adds_nothing(any_device, turn) -> None:
    """A needle of 3e38, turned so little that its shear overflows: infinity times 0, as in C++."""
    splats = random_splats(1, seed=0, quats=True)
    splats.means[:] = [[0, 1, 0]]
    splats.scales[:] = [[3e38, 0, 0]]
    splats.opacity[:] = 0.9
    assert splats.quats is not None
    splats.quats[:] = [[1, 0, 2.85e-41 * turn, 0]]
    got, want = (
        r.render(splats, view=View.canonical()) for r in (KernelRasterizer(any_device), Rasterizer(64, 96))
    )
    assert got.stats == want.stats and got.stats is not None and got.stats.rendered == 1
    assert not got.alpha.any() and not want.alpha.any()


def test_far_depths_positions_and_opacities_count_as_in_cpp(any_device) -> None:
    splats = random_splats(10, seed=12, quats=True)
    splats.means[:] = [
        *([0, 1e-38, 0], [0, 3e38, 0], [1e30, 1, 0], [-3e38, 1, 3e38], [0, 1, -1e20]),
        *([0, -1, 0], [0, 0, 0], [5, 1, 5], [0, 1, 0], [0, 1, 0]),
    ]
    splats.scales[:] = 0.1
    splats.opacity[:] = [0.9] * 8 + [1e30, np.nextafter(np.float32(1 / 255), np.float32(0))]
    assert splats.quats is not None
    splats.quats[7] = 3e38
    plain = Splats(splats.means, splats.scales, splats.opacity, splats.rgb, None, 10)
    huge = View(np.full((3, 3), 3e38, np.float32), np.zeros(3, np.float32))
    for scene, view in ((plain, None), (plain, View.canonical()), (splats, SWING), (splats, huge)):
        got, want = (r.render(scene, view=view) for r in (KernelRasterizer(any_device), Rasterizer(64, 96)))
        assert got.stats == want.stats
        assert np.isfinite(got.rgb).all() and np.isfinite(got.depth).all()


@VIEWS
def test_hidden_gaussians_change_nothing(any_device, view) -> None:
    front, wall, hidden = (random_splats(n, seed=n) for n in (100, 3, 500))
    wall.means[:] = [[0, 4.0, 0], [0, 4.1, 0], [0, 4.2, 0]]
    wall.scales[:] = 1e3
    wall.opacity[:] = 1
    hidden.means[:, 1] += 50
    parts = {name: np.concatenate([getattr(s, name) for s in (hidden, front, wall)]) for name in FIELDS}
    everything = Splats(**parts, count=603)
    rasterizer = KernelRasterizer(any_device)
    whole, visible, open_ = (
        rasterizer.render(select(everything, rows), view=view)
        for rows in (np.r_[0:603], np.r_[500:603], np.r_[0:600])
    )
    assert_identical(whole, visible)
    assert (whole.rgb != open_.rgb).any()


def test_input_order_does_not_matter_without_ties(any_device) -> None:
    splats = random_splats(2000, seed=19, sigma=1.0)
    shuffled = select(splats, np.random.default_rng(20).permutation(2000))
    rasterizer = KernelRasterizer(any_device, slots=32)
    assert_identical(rasterizer.render(shuffled), rasterizer.render(splats))


def test_everything_culled_or_nothing_given(any_device) -> None:
    poisoned = random_splats(50, seed=11)
    poisoned.rgb[:] = np.nan
    for splats in (poisoned, Splats.allocate(0)):
        for view in (None, SWING):
            buffers = KernelRasterizer(any_device).render(splats, view=view, background=(0.1, 0.2, 0.3))
            want = np.broadcast_to(np.float32([0.1, 0.2, 0.3]), (64, 96, 3))
            np.testing.assert_array_equal(buffers.rgb, want)
            assert not buffers.alpha.any() and not buffers.depth.any() and not buffers.expected_depth.any()
            assert buffers.stats.culled_invalid == splats.count


def test_bytes_are_rounded_as_on_the_cpu(any_device) -> None:
    splats = random_splats(200, seed=31)
    splats.rgb[:] = np.random.default_rng(0).uniform(-0.5, 1.5, (200, 3))  # beyond both ends
    kernels = KernelRasterizer(any_device)
    buffers = kernels.render(splats)
    want = np.zeros((64, 96, 3), np.uint8)
    to_bytes(buffers.rgb, np.zeros((64, 96, 3), np.float32), want)
    got = fetch(any_device, kernels.images.bytes)[0]
    np.testing.assert_array_equal(got, want)
    assert got.min() == 0 and got.max() == 255


def test_several_views_in_one_launch(any_device) -> None:
    splats = random_splats(400, seed=32, sigma=4.0)
    views = [View.canonical(), SWING, View.swing(-0.2, 0.1, 2.0)]
    rasterizer = CudaRasterizer(any_device, 50, 70, 400, times=3, slots=40, outputs=OUTPUTS)
    images = rasterizer.render(upload(any_device, splats), views=views, background=(0.2, 0.3, 0.4))
    for time, view in enumerate(views):
        alone = KernelRasterizer(any_device, 50, 70)
        want = alone.render(splats, view=view, background=(0.2, 0.3, 0.4))
        assert_identical(download(any_device, images, time), want)
        assert images.stats[time] == want.stats
    assert all(images.overflowing_tiles)


def test_a_rasterizer_is_as_new_after_every_frame(any_device) -> None:
    """Counters are reset, stale keys and splats are never seen, and counts stay apart."""
    scenes = [random_splats(n, seed=n, sigma=s) for n, s in ((900, 8.0), (30, 1.0), (0, 1.0), (900, 2.0))]
    rasterizer = CudaRasterizer(any_device, 64, 96, 900, slots=64)
    uploaded = [upload(any_device, splats) for splats in scenes]
    for splats, given in zip(scenes * 2, uploaded * 2, strict=True):
        images = rasterizer.render(given)
        want = KernelRasterizer(any_device).render(splats)
        assert_identical(download(any_device, images), want)
        assert images.stats[0] == want.stats


def test_arrays_live_until_the_device_has_read_them(device) -> None:
    """Gaussians that the caller lets go of at once: their memory could be another tensor's too early."""
    rasterizer = CudaRasterizer(device, 64, 96, 50)
    splats = random_splats(50, seed=34)
    arrays = [np.array(getattr(splats, name)) for name in FIELDS]
    watched = [weakref.ref(array) for array in arrays]
    images = rasterizer.render(DeviceSplats(*arrays))
    del arrays
    assert images.stats and all(array() is not None for array in watched)
    others = upload(device, splats)
    for _ in range(4):  # the ring of frames has gone round
        rasterizer.render(others)
    assert all(array() is None for array in watched)


def test_images_that_are_not_wanted_are_not_written(any_device) -> None:
    splats = random_splats(100, seed=33)
    given = upload(any_device, splats)
    whole = KernelRasterizer(any_device).render(splats)
    for name in OUTPUTS:
        images = CudaRasterizer(any_device, 64, 96, 100, outputs=[name]).render(given)
        assert all((getattr(images, other) is None) == (other != name) for other in OUTPUTS)
        if name != "bytes":
            np.testing.assert_array_equal(fetch(any_device, getattr(images, name))[0], getattr(whole, name))


def test_layout_is_that_of_the_compiler(device) -> None:
    found = (ctypes.c_size_t * 38)()
    device.native.on_cpu_layout(found)

    def offsets(of: np.dtype, *names: str) -> list[int]:
        assert of.fields is not None
        return [of.itemsize, *(of.fields[name][1] for name in names)]

    assert list(found) == [
        *offsets(layout.RASTER_PARAMS, "means", "frames", "rgb_out", "alpha_out"),
        *offsets(layout.RASTER_FRAME, "background", "dt"),
        *offsets(layout.RING_PARAMS, "state", "fates", "totals"),
        *offsets(layout.RING_STATE, "pair", "first_id"),
        layout.RING_TOTALS.itemsize,
        layout.BLOCK_COUNTS_BYTES,
        *offsets(layout.DEPTH_PARAMS, "depth", "before"),
        *offsets(layout.DEPTH_MOMENT, "fresh"),
        layout.DEPTH_STATE.itemsize,
        layout.DEPTH_PART_BYTES,
        layout.DEPTH_BLOCK,
        *offsets(layout.PREPARE_PARAMS, "column", "matrix", "pitch", "pixels", "out"),
        2 * np.dtype(np.int32).itemsize,  # a span
        layout.COLOUR_BITS,
        layout.SPLAT_BYTES,
        layout.TALLIES,
        layout.THREADS,
        layout.TILE,
        layout.SORT_CAPACITY,
    ]
