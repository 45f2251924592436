"""The published augmentation: its statistics, and that everything in a sample moves together."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media_samples import texture

from streamsplat_edge.training.data.augment import PublishedAugmentation
from streamsplat_edge.training.data.sample import Sample

HEIGHT, WIDTH = 72, 128


def draws(count: int) -> list[PublishedAugmentation]:
    return [PublishedAugmentation.draw(np.random.default_rng(i), HEIGHT, WIDTH) for i in range(count)]


def about_centre(matrix: np.ndarray) -> np.ndarray:
    """The map in coordinates about the centre of the image."""
    move = np.array([[1, 0, (WIDTH - 1) / 2], [0, 1, (HEIGHT - 1) / 2], [0, 0, 1.0]])
    return np.asarray(np.linalg.inv(move) @ matrix @ move)


def test_published_chances() -> None:
    maps = [about_centre(a.place) for a in draws(4000)]
    linear = np.array([m[:2, :2] for m in maps])
    only_flips = np.abs(np.abs(linear) - np.eye(2)).max(axis=(1, 2)) < 1e-9
    mirrored = np.linalg.det(linear) < 0
    # Flips: 0.5 and 0.06. Scale, rotation and stretch, each in 0.12 of the draws, leave 0.88^3 as they are.
    assert mirrored.mean() == pytest.approx(0.5, abs=0.03)
    assert only_flips.mean() == pytest.approx(0.88**3, abs=0.03)
    assert (linear[only_flips][:, 1, 1] < 0).mean() == pytest.approx(0.06, abs=0.015)
    shifts = np.array([m[:2, 2] for m in maps])
    moved = np.abs(shifts).max(axis=1) > 1e-9
    assert moved.mean() == pytest.approx(0.12, abs=0.02)
    assert shifts[moved].std(axis=0) == pytest.approx([0.125 * WIDTH, 0.125 * HEIGHT], rel=0.12)
    area = np.log2(np.abs(np.linalg.det(linear))) / 2
    scaled = np.abs(area) > 1e-9
    assert scaled.mean() == pytest.approx(0.12, abs=0.02)
    assert area[scaled].std() == pytest.approx(0.2, rel=0.15)
    singular = np.linalg.svd(linear, compute_uv=False)
    stretch = np.log2(singular[:, 0] / singular[:, 1]) / 2
    assert (stretch > 1e-6).mean() == pytest.approx(0.12, abs=0.02)
    assert np.sqrt(np.mean(stretch[stretch > 1e-6] ** 2)) == pytest.approx(0.2, rel=0.15)


def test_published_colours() -> None:
    colours = np.array([a.colour for a in draws(4000)])
    untouched = np.array([np.array_equal(c, np.eye(3, 4)) for c in colours])
    assert untouched.mean() == pytest.approx(0.88**4, abs=0.03)
    grey = colours[:, :, :3] @ np.ones(3)
    assert np.ptp(grey, axis=1).max() < 1e-9, "grey stays grey"
    brighter = np.abs(colours[:, 0, 3]) > 1e-9
    assert brighter.mean() == pytest.approx(0.12, abs=0.02)
    contrast = np.log2(grey[:, 0])
    assert contrast[np.abs(contrast) > 1e-9].std() == pytest.approx(0.1, rel=0.15)
    # In the plane of colours without grey: a turn of +-0.05 pi, and a factor 2^(0.1 n) beside the contrast.
    first, second = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    along, across = (np.einsum("i,nij,j->n", first, colours[:, :, :3], to) for to in (first, second))
    hue = np.arctan2(across, along)
    turned = np.abs(hue) > 1e-9
    assert turned.mean() == pytest.approx(0.12, abs=0.02)
    assert 0.045 * np.pi < np.abs(hue).max() <= 0.05 * np.pi + 1e-9
    assert np.abs(hue[turned]).mean() == pytest.approx(0.025 * np.pi, rel=0.1)
    saturation = np.log2(np.hypot(along, across)) - contrast
    changed = np.abs(saturation) > 1e-9
    assert changed.mean() == pytest.approx(0.12, abs=0.02)
    assert saturation[changed].std() == pytest.approx(0.1, rel=0.15)


def test_colour_map_of_bytes() -> None:
    images = texture(3, 40, 60)[None]
    change = PublishedAugmentation(np.eye(3), np.column_stack([0.9 * np.eye(3), [0.1, 0.0, -0.1]]))
    expected = 127.5 * (0.9 * (images / 127.5 - 1) + [0.1, 0.0, -0.1] + 1)
    assert np.abs(change.images(images).astype(float) - np.clip(expected, 0, 255)).max() <= 0.51


def spot(x: float, y: float) -> np.ndarray:
    """A soft spot, float in [0, 1]."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))


def middle(image: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


@pytest.mark.parametrize("seed", range(6))
def test_frames_depth_masks_and_flow_move_together(seed: int) -> None:
    """A spot moves from a to b; after the change the flow at its new place leads to its new end."""
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(0.8, 1.0)
    place = np.eye(3)
    place[:2] = cv2.getRotationMatrix2D(((WIDTH - 1) / 2, (HEIGHT - 1) / 2), np.degrees(angle), scale)
    if seed % 2:
        place = place @ np.array([[-1, 0, WIDTH - 1], [0, 1, 0], [0, 0, 1.0]])
    change = PublishedAugmentation(place, np.eye(3, 4))
    start, stop = np.array([60.0, 34.0]), np.array([68.0, 38.0])
    spots = np.stack([spot(*start), spot(*stop)])
    flow = np.broadcast_to(stop - start, (HEIGHT, WIDTH, 2)).astype(np.float16)
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    sample = change.sample(
        Sample(
            frames=np.repeat((200 * spots[..., None]).astype(np.uint8), 3, axis=3),
            times=np.array([0, 1], np.float32),
            inv_depth=spots.astype(np.float16),
            depth_valid=True,
            flow_fwd=flow,
            flow_bwd=-flow,
            valid_fwd=everywhere,
            valid_bwd=everywhere,
            mask=spots > 0.5,
            source="spot",
        )
    )
    ends = [place[:2] @ [*point, 1.0] for point in (start, stop)]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for i, end in enumerate(ends):
        near = (columns - end[0]) ** 2 + (rows - end[1]) ** 2 < 13**2  # farther off there are reflections
        for image in (sample.frames[i, ..., 0], sample.inv_depth[i], sample.mask[i]):
            assert middle(near * image.astype(float)) == pytest.approx(end, abs=0.4)
    x, y = np.round(ends[0]).astype(int)
    assert sample.flow_fwd[y, x] == pytest.approx(ends[1] - ends[0], abs=0.02)
    assert sample.flow_bwd[y, x] == pytest.approx(ends[0] - ends[1], abs=0.02)
    corner = np.linalg.solve(place, [0.0, 0.0, 1.0])[:2]
    outside = bool((corner < -1).any() or corner[0] > WIDTH or corner[1] > HEIGHT)
    assert sample.valid_fwd[y, x] and (not outside or not sample.valid_fwd[0, 0])


def test_no_change_is_none() -> None:
    change = PublishedAugmentation(np.eye(3), np.eye(3, 4))
    images = texture(1, HEIGHT, WIDTH)[None]
    assert np.array_equal(change.images(images), images)
