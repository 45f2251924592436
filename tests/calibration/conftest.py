"""A small bundle with real layers, and videos to calibrate it on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from small_bundle import build_small_bundle
from video_samples import write_video

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.preprocess import Resizer

for folder in ("export", "training"):  # small models, keyed weights
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_small_bundle(tmp_path_factory.mktemp("small") / "small.bundle")


@pytest.fixture
def bundle(pristine: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    return Bundle.load(shutil.copytree(pristine.path, tmp_path / "small.bundle"))


def scene(seed: int, count: int) -> list[np.ndarray]:
    """A smooth random picture that moves: uint8 RGB [48, 64, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    planes = np.empty((3, 48 + count, 64 + 2 * count), np.float32)
    Resizer(*planes.shape[1:]).into(coarse, planes)
    whole = np.rint(planes.transpose(1, 2, 0) * 255).astype(np.uint8)
    return [np.ascontiguousarray(whole[i : i + 48, 2 * i : 2 * i + 64]) for i in range(count)]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos of three shots each, and one of one shot beside it: `other.mp4`."""
    folder = tmp_path_factory.mktemp("clips")
    inside = folder / "videos"
    inside.mkdir()
    for i, name in enumerate(("a.mp4", "b.mp4")):
        write_video(inside / name, [f for shot in range(3) for f in scene(3 * i + shot, 22)])
    write_video(folder / "other.mp4", scene(77, 22))
    return folder
