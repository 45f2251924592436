"""The lifecycle on the device against that on the host, and its rendering against the C++ rasterizer."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_rasterizer import download, fetch, to_device
from reference_renderer import assert_identical
from spawning import spawn

from streamsplat_edge.runtime.bundle_schema import ModelConfig
from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.cuda.lifecycle import DeviceLifecycle
from streamsplat_edge.runtime.cuda.rasterizer import OUTPUTS, CudaRasterizer
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.lifecycle import Lifecycle
from streamsplat_edge.runtime.rasterizer import Rasterizer, View

# 374 Gaussians alive: more than a block of threads, and no whole number of warps per key frame.
MODEL = ModelConfig("test", height=40, width=56, patch=8, grid=(11, 17), token_dim=4, feature_dim=2)
G = MODEL.gaussians
SIZE = MODEL.height, MODEL.width
VIEW = View.swing(0.3, -0.2, 1.0)


def key_frame(number: int) -> dict[str, np.ndarray]:
    """Gaussians, motion and fade of a key frame: some broken, some that no time shows, some out of range."""
    rng = np.random.default_rng(number)
    gaussians = rng.uniform(0, 1, (1, G, 9)).astype(np.float32)
    gaussians[..., [0, 2]] = rng.uniform(-1, 1, (1, G, 2))
    gaussians[..., 6:8] = rng.uniform(0.02, 0.3, (1, G, 2))
    gaussians[0, ::7, 8] = 1e-3
    gaussians[0, 3::11, rng.integers(9)] = np.nan
    motion = rng.normal(0, 0.2, (2, G, 3)).astype(np.float32)
    fade = np.stack([rng.exponential(8, (2, G)), rng.uniform(0, 1, (2, G))], axis=-1).astype(np.float32)
    fade[:, ::5] = 0
    motion[1, 4::13, 1] = np.inf
    fade[0, 5::17, 0] = np.nan
    return {"gaussians": gaussians, "motion": motion, "fade": fade}


class Both:
    """The same key frames in both lifecycles."""

    def __init__(self, device: Device, times: int = 1) -> None:
        self.device = device
        self.host = Lifecycle(MODEL)
        self.ours = DeviceLifecycle(device, MODEL)
        self.cpp = Rasterizer(*SIZE)
        self.rasterizer = CudaRasterizer(device, *SIZE, 2 * G, times=times, slots=16, outputs=OUTPUTS)

    def spawn(self, number: int, time: float, *, cut: bool = False) -> None:
        arrays = key_frame(number)
        slot, pair = self.ours.spare, self.ours.spare_pair
        for target, name in ((slot.gaussians, "gaussians"), (pair.motion, "motion"), (pair.fade, "fade")):
            self.device.copy(target, to_device(self.device, arrays[name]))
        host = spawn(self.host, time, **arrays, cut=cut)
        assert self.ours.spawn(time, cut=cut) == host == self.ours.stats
        np.testing.assert_array_equal(fetch(self.device, self.ours.ids), self.host.ids)
        assert self.ours.interval == self.host.interval

    def compare(self, times: list[float], view: View | None = None) -> None:
        views = None if view is None else [view] * len(times)
        images = self.ours.render(self.rasterizer, times, views=views)
        totals = self.ours.totals
        assert totals.living == self.host.stats.alive
        assert totals.living == totals.listed + totals.culled_invalid + totals.culled_transparent
        for i, time in enumerate(times):
            splats = self.host.at(time)
            want = self.cpp.render(splats, view=view)
            got = download(self.device, images, i)
            for name in ("rgb", "alpha", "depth"):
                error = np.abs(getattr(got, name) - getattr(want, name)) / max(1.0, float(want.depth.max()))
                # At a threshold (alpha, transmittance, tile rectangle) one Gaussian more or less.
                assert error.max() <= 0.012 and (error > 1e-5).mean() <= 0.005, name
            a, b = images.stats[i], want.stats
            assert (a.rendered, a.culled_invalid, a.culled_outside) == (
                *(b.rendered, b.culled_invalid, b.culled_outside),
            )
            # What is transparent throughout is not asked whether it is behind the camera as well.
            assert a.culled_transparent + a.culled_behind == b.culled_transparent + b.culled_behind
            assert a.culled_transparent >= b.culled_transparent
            assert (a.pairs, a.binned_pairs) == (b.pairs, b.binned_pairs)


def test_a_stream_with_a_cut_and_a_reset(any_device: Device) -> None:
    both = Both(any_device)
    both.spawn(0, 0.0)
    both.compare([0.0])
    for number in range(1, 8):  # every slot with every pair
        both.spawn(number, float(number), cut=number == 4)
        first, last = both.host.interval or (0.0, 0.0)
        for share in (0.0, 0.37, 1.0):
            both.compare([first + share * (last - first)])
    both.compare([6.5], VIEW)
    both.host.reset()
    both.ours.reset()
    assert both.ours.stats == both.host.stats and both.ours.interval is None
    assert len(fetch(any_device, both.ours.ids)) == 0
    both.spawn(20, 0.5)
    both.compare([0.5])


def test_several_times_in_one_launch(any_device: Device) -> None:
    many, one = Both(any_device, times=3), Both(any_device)
    for both in (many, one):
        both.spawn(0, 0.0)
        both.spawn(1, 2.0)
    times = [0.0, 0.7, 2.0]
    many.compare(times)
    many.compare(times, VIEW)
    many.compare(times[:2])  # fewer than there is room for
    images = many.ours.render(many.rasterizer, times)
    for i, time in enumerate(times):
        alone = one.ours.render(one.rasterizer, [time])
        assert_identical(download(any_device, images, i), download(any_device, alone))


def test_what_cannot_be_seen_is_not_listed_and_order_is_kept(any_device: Device) -> None:
    both = Both(any_device)
    both.spawn(0, 0.0)
    both.spawn(1, 1.0)
    rows = fetch(any_device, both.ours._lists["rows"])[1][: both.ours.totals.listed]
    first, second = key_frame(0), key_frame(1)
    gaussians = np.concatenate([first["gaussians"][0], second["gaussians"][0]])
    moved = np.concatenate([second["motion"].reshape(-1, 3), second["fade"].reshape(-1, 2)], axis=1)
    finite = np.isfinite(np.concatenate([gaussians, moved], axis=1)).all(axis=1)
    np.testing.assert_array_equal(rows, np.flatnonzero(finite & (gaussians[:, 8] >= 1 / 255)))
    assert 0 < both.ours.totals.culled_invalid == (~finite).sum()


def test_a_fade_that_grows_is_listed(any_device: Device) -> None:
    """gamma0 below 0, which no published model gives: opacity is largest at the end of the interval."""
    both = Both(any_device)
    for number in range(2):
        arrays = key_frame(number)
        arrays["gaussians"][...] = np.nan_to_num(arrays["gaussians"], nan=0.5)
        arrays["gaussians"][..., 8] = 2e-3
        arrays["motion"][...] = 0
        arrays["fade"][...] = (-3.0, 0.9)
        slot, pair = both.ours.spare, both.ours.spare_pair
        for target, name in ((slot.gaussians, "gaussians"), (pair.motion, "motion"), (pair.fade, "fade")):
            any_device.copy(target, to_device(any_device, arrays[name]))
        spawn(both.host, float(number), **arrays)
        both.ours.spawn(float(number))
    both.compare([0.9])
    assert both.ours.totals.listed == 2 * G


def test_bad_use_is_refused(device: Device) -> None:
    both = Both(device, times=2)
    with pytest.raises(InputError, match="Nothing was pushed"):
        both.ours.render(both.rasterizer, [0.0, 0.0])
    with pytest.raises(InputError, match="nothing to count"):
        _ = both.ours.totals
    both.spawn(0, 1.0)
    with pytest.raises(InputError, match="not later"):
        both.ours.spawn(1.0)
    with pytest.raises(InputError, match="outside the current interval"):
        both.ours.render(both.rasterizer, [1.0, 2.0])
    with pytest.raises(InputError, match=r"3 times.*takes 1 to 2 in one launch"):
        both.ours.render(both.rasterizer, [1.0] * 3)
    with pytest.raises(InputError, match=r"^0 times"):
        both.ours.render(both.rasterizer, [])
    for shape, problem in (((1, *SIZE), "room for 1 of 2 images in depth"), ((2, 3, 4), r"\[2, 3, 4\], not")):
        buffers = {"depth": device.zeros(shape, np.float32)}
        with pytest.raises(InputError, match=problem):
            both.ours.render(both.rasterizer, [1.0, 1.0], into=buffers)
    with pytest.raises(InputError, match="1 views for 2 times"):
        both.ours.render(both.rasterizer, [1.0, 1.0], views=[VIEW])
    small = CudaRasterizer(device, *SIZE, G)
    with pytest.raises(InputError, match=f"holds {G} Gaussians, {2 * G} on this device"):
        both.ours.render(small, [1.0])
    both.compare([1.0, 1.0])  # the failed calls changed nothing
