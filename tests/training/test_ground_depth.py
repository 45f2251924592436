"""Rough depth of clips of a still camera: what it says, and which clips get it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from media_samples import HEIGHT, WIDTH, texture

from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.depth import add_depth
from streamsplat_edge.training.data.ground_depth import (
    FARTHEST,
    NEAREST,
    STANDS_OUT,
    add_ground_depth,
    background,
    ground_depth,
    main,
    moving,
)
from streamsplat_edge.training.data.loader import Mixer

PICTURE = texture(7, HEIGHT, WIDTH) // 2
TOP, FOOT = 12, 29  # rows of the walker


def walk(count: int) -> np.ndarray:
    """A bright box, 8 columns wide, walks over a picture that stands still."""
    frames = np.repeat(PICTURE[None], count, axis=0)
    for i, frame in enumerate(frames):
        left = 4 + 60 * i // count
        frame[TOP : FOOT + 1, left : left + 8] = (250, 240, 230)
    return frames


def test_background_is_what_stays() -> None:
    frames = walk(20)
    middle = background(frames)
    assert middle is not None and np.array_equal(middle, PICTURE)
    mask = moving(frames[0], middle)
    assert mask[TOP + 2 : FOOT - 1, 6:10].all() and not mask[:, 30:].any()


def test_moving_camera_has_no_background() -> None:
    wide = texture(3, HEIGHT, 4 * WIDTH)
    assert background(np.stack([wide[:, 3 * i : 3 * i + WIDTH] for i in range(20)])) is None


def test_upright_things_on_a_ground() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[TOP : FOOT + 1, 20:30] = True
    depth = ground_depth(mask)
    assert depth is not None
    ramp = np.linspace(FARTHEST, NEAREST, HEIGHT)
    assert np.allclose(depth[:, 50], ramp, atol=1e-6)
    inside = depth[TOP : FOOT + 1, 20:30]
    assert np.allclose(inside, ramp[FOOT] + STANDS_OUT, atol=1e-6), "one depth, nearer than where it stands"


def test_nearer_things_cover_farther_ones() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:20, 10:22] = True  # two things whose hulls overlap: the nearer one is hollow
    mask[25:45, 8:12] = mask[25:45, 40:44] = mask[41:45, 8:44] = True
    mask[22:24, 60:61] = True  # too small to count
    depth = ground_depth(mask)
    assert depth is not None
    ramp = np.linspace(FARTHEST, NEAREST, HEIGHT)
    assert depth[35, 25] == pytest.approx(ramp[44] + STANDS_OUT, abs=1e-6), "hollow things are filled"
    assert depth[10, 15] == pytest.approx(ramp[19] + STANDS_OUT, abs=1e-6)
    assert depth[22, 60] == pytest.approx(ramp[22], abs=1e-6)


def test_nothing_is_said_of_pictures_that_flicker() -> None:
    assert ground_depth(np.zeros((HEIGHT, WIDTH), bool)) is None
    many = np.zeros((HEIGHT, WIDTH), bool)
    for column in range(0, 72, 8):
        many[10:16, column : column + 5] = True
    assert ground_depth(many) is None
    assert ground_depth(np.ones((HEIGHT, WIDTH), bool)) is None


@pytest.fixture
def labelled(cache: Cache, tmp_path: Path) -> Path:
    """A copy of the cache in which the clip `face_x` is a walk before a still camera."""
    shutil.copytree(cache.root, tmp_path / "cache")
    np.save(tmp_path / "cache/face_x.npy", walk(12))
    return tmp_path / "cache"


def test_clips_are_labelled_once(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(labelled)]) == 0
    assert "1 clips have depth" in capsys.readouterr().out
    clips = {clip.name: clip for clip in Cache(labelled).clips}
    assert {name for name, clip in clips.items() if clip.depth_path is not None} == {"face_x"}
    depth = clips["face_x"].inv_depth
    assert depth is not None and depth.shape == (12, HEIGHT, WIDTH)
    assert depth[0, 20, 8] > depth[0, 20, 60] and depth[-1, 20, 60] > depth[-1, 20, 8]
    index = (labelled / "index.json").read_bytes()
    assert add_ground_depth(labelled, progress=False) == []
    assert (labelled / "index.json").read_bytes() == index
    assert not list(labelled.glob("*.tmp"))


def test_labels_reach_the_depth_stage(labelled: Path) -> None:
    add_ground_depth(labelled, progress=False)
    batch = Mixer(labelled, 0.0, seed=1).batch_depths(0, 4)
    assert batch.depth_valid.all() and (batch.inv_depth.float().amax((1, 2)) > NEAREST / 2).all()


def test_depth_anything_replaces_it(labelled: Path) -> None:
    add_ground_depth(labelled, progress=False)

    class Flat(torch.nn.Module):
        def forward(self, rgb: torch.Tensor) -> torch.Tensor:
            return rgb.mean(1, keepdim=True)

    add_depth(labelled, Flat(), "weights 1", progress=False)
    index = json.loads((labelled / "index.json").read_text())
    assert {entry["depth"]["origin"] for entry in index["clips"]} == {"weights 1"}


def test_no_cache_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "is not a media cache" in capsys.readouterr().err
