"""Synthetic scenes: their ground truth against what the rendered frames show."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from streamsplat_edge.training.data.synthetic import LEAVES_BY, MAX_FLOW, SyntheticSampler
from streamsplat_edge.training.data.synthetic_scene import Scene
from streamsplat_edge.training.data.video import pixel_grid, warp

HEIGHT, WIDTH = 96, 160


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    """A texture without fine detail, so that resampling it twice stays close."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def sampler() -> SyntheticSampler:
    sprite = np.zeros((70, 100, 4), np.uint8)
    sprite[..., :3] = smooth(99, 96, 112)[:70, :100]
    alpha = np.zeros((70, 100), np.uint8)
    cv2.ellipse(alpha, (50, 35), (45, 30), 0, 0, 360, 255, -1, cv2.LINE_AA)
    sprite[..., 3] = alpha
    return SyntheticSampler([smooth(i, 192, 320) for i in range(4)], [sprite], HEIGHT, WIDTH)


def scenes(sampler: SyntheticSampler, count: int) -> list[Scene]:
    return [sampler.scene(np.random.default_rng([5, i])) for i in range(count)]


def inner(ids: np.ndarray, margin: int) -> np.ndarray:
    """Pixels at least `margin` away from any edge between layers."""
    kernel = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    return cv2.erode(ids, kernel) == cv2.dilate(ids, kernel)


def lookup(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Nearest value of `image` at float positions [H, W, 2]."""
    return cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize("start, stop", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.4)])
def test_warping_by_the_flow_gives_the_other_frame(
    sampler: SyntheticSampler, start: float, stop: float
) -> None:
    checked, errors = 0, []
    for scene in scenes(sampler, 40):
        a, _, ids_a = scene.render(start)
        b, _, ids_b = scene.render(stop)
        flow = scene.flow(ids_a, start, stop)
        target = pixel_grid(HEIGHT, WIDTH) + flow
        inside = (target >= 1).all(axis=2) & (target[..., 0] < WIDTH - 2) & (target[..., 1] < HEIGHT - 2)
        seen = inside & inner(ids_a, 3) & (lookup(ids_b, target) == ids_a)
        seen &= lookup(inner(ids_b, 3).astype(np.uint8), target) > 0
        difference = np.abs(warp(b, flow).astype(np.float32) - a).mean(axis=2)
        errors.append(difference[seen].mean())
        assert np.percentile(difference[seen], 99) < 12
        checked += int(seen.sum())
    assert checked > 40 * HEIGHT * WIDTH * 0.5
    assert np.mean(errors) < 1.5


def test_flow_matters(sampler: SyntheticSampler) -> None:
    """The same comparison without the flow fails: scenes do move, and by the length the flow says."""
    still, moved = [], []
    for scene in scenes(sampler, 20):
        a, _, ids = scene.render(0.0)
        b, _, _ = scene.render(1.0)
        still.append(np.abs(a.astype(np.float32) - b).mean())
        moved.append(np.abs(a.astype(np.float32) - warp(b, scene.flow(ids, 0.0, 1.0))).mean())
    assert np.mean(still) > 3 * np.mean(moved)


def test_what_covers_is_nearer(sampler: SyntheticSampler) -> None:
    overlaps = 0
    for scene in scenes(sampler, 120):
        for t in (0.0, 0.5, 1.0):
            for count in range(2, len(scene.layers) + 1):
                below = Scene(HEIGHT, WIDTH, scene.layers[: count - 1], scene.camera, scene.translation)
                above = Scene(HEIGHT, WIDTH, scene.layers[:count], scene.camera, scene.translation)
                _, depth_below, ids_below = below.render(t)
                _, depth_above, ids_above = above.render(t)
                covers = ids_above == count - 1
                assert (depth_above[covers] > depth_below[covers]).all()
                overlaps += int((covers & (ids_below > 0)).any())
    assert overlaps > 20, "foregrounds must also cover each other"


def test_points_keep_their_depth_or_are_hidden_by_something_nearer(sampler: SyntheticSampler) -> None:
    """Depth, flow and occlusion agree: follow each pixel and look at what the last frame shows there."""
    hidden = 0
    for scene in scenes(sampler, 60):
        _, _, ids = scene.render(0.0)
        _, depth, last_ids = scene.render(1.0)
        target = np.round(pixel_grid(HEIGHT, WIDTH) + scene.flow(ids, 0.0, 1.0))
        inside = (target >= 0).all(axis=2) & (target[..., 0] < WIDTH) & (target[..., 1] < HEIGHT)
        x, y = target[inside].astype(int).T
        own, shown = ids[inside], last_ids[y, x]
        planes = np.array([scene.image_plane(layer, 1.0) for layer in scene.layers])[own]
        expected = np.clip(planes[:, 0] * x + planes[:, 1] * y + planes[:, 2], 0, 1)
        same = own == shown
        assert np.abs(depth[y, x][same] - expected[same]).max() < 1e-4
        other = ~same & inner(last_ids, 2)[y, x] & inner(ids, 2)[inside]
        assert (depth[y, x][other] > expected[other]).all()
        hidden += int(other.sum())
    assert hidden > 500


def test_parallax_grows_with_nearness(sampler: SyntheticSampler) -> None:
    """Under a sideways camera translation alone, motion is proportional to inverse depth."""
    scene = next(s for s in scenes(sampler, 50) if len(s.layers) >= 3)
    scene.camera.shift, scene.camera.angle, scene.camera.log_scale = np.zeros(2), 0.0, 0.0
    scene.translation = np.array([8.0, -3.0, 0.0])
    for layer in scene.layers:
        layer.own.shift, layer.own.angle, layer.own.log_scale = np.zeros(2), 0.0, 0.0
    _, depth, ids = scene.render(0.0)
    flow = scene.flow(ids, 0.0, 1.0)
    assert flow[..., 0] == pytest.approx(8 * depth, abs=1e-3)
    assert flow[..., 1] == pytest.approx(-3 * depth, abs=1e-3)


def test_samples_are_well_formed(sampler: SyntheticSampler) -> None:
    longest, moving = 0.0, 0
    for i in range(60):
        sample = sampler.sample(np.random.default_rng(i))
        count = len(sample.frames)
        assert 2 <= count <= 7 and sample.inv_depth.shape == (count, HEIGHT, WIDTH)
        assert sample.times[0] == 0 and sample.times[-1] == 1 and np.all(np.diff(sample.times) > 0)
        assert sample.inv_depth.min() > 0 and sample.inv_depth.max() <= 1
        length = np.hypot(*np.moveaxis(sample.flow_fwd.astype(np.float32), -1, 0))
        assert np.isfinite(length).all() and length.max() <= MAX_FLOW * WIDTH / 256 * 1.05
        longest = max(longest, float(length.max()))
        target = pixel_grid(HEIGHT, WIDTH) + sample.flow_fwd.astype(np.float32)
        x, y = target[..., 0], target[..., 1]
        far = (
            (x < -LEAVES_BY - 0.1)
            | (y < -LEAVES_BY - 0.1)
            | (x > WIDTH + LEAVES_BY)
            | (y > HEIGHT + LEAVES_BY)
        )
        assert not sample.valid_fwd[far].any() and sample.valid_fwd.mean() > 0.9
        moving += bool(sample.mask.any())
    assert longest > 8 and moving > 30


def test_same_seed_same_sample(sampler: SyntheticSampler) -> None:
    a, b = (sampler.sample(np.random.default_rng(11), 4) for _ in range(2))
    c = sampler.sample(np.random.default_rng(12), 4)
    assert np.array_equal(a.frames, b.frames) and np.array_equal(a.flow_fwd, b.flow_fwd)
    assert not np.array_equal(a.frames, c.frames)


def test_edges_are_antialiased(sampler: SyntheticSampler) -> None:
    """A cut-out fades over its rim: half transparent texture pixels exist, and colour never exceeds alpha."""
    for i in range(30):
        texture = sampler._cutout(np.random.default_rng(i))
        alpha = texture[..., 3]
        assert ((alpha > 20) & (alpha < 235)).any() and alpha.max() > 200
        assert (texture[..., :3].max(axis=2).astype(int) <= alpha.astype(int) + 1).all()
        rim = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert rim.max() == 0
