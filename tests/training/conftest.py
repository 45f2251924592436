"""Fixtures of the training tests."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from media_samples import CUT, FRAMES, HEIGHT, MODEL, PAUSE, REPEAT, WIDTH, moving, texture, write_clip

from streamsplat_edge.training.data.cache import Cache, prepare
from streamsplat_edge.training.recipe import Recipe

# The models of these tests are so small that a second thread only adds waiting, and a lot of it on a
# busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("media")
    for folder in ("clips", "images", "sprites"):
        (root / folder).mkdir()
    images = moving(1, CUT, 2) + moving(2, FRAMES - CUT, 1)
    images[REPEAT] = images[REPEAT - 1]
    times = [40 * i + (100 if i >= PAUSE else 0) for i in range(FRAMES)]
    write_clip(root / "clips/two_shots.mkv", images, times)
    write_clip(root / "clips/face_x.mkv", moving(3, 12, 1), [40 * i for i in range(12)])
    write_clip(root / "clips/held_out.mkv", moving(4, 9, 2), [40 * i for i in range(9)])
    (root / "clips/broken.mkv").write_bytes(b"not a video at all" * 100)
    crop = [4, 4, WIDTH, HEIGHT]

    def entry(name: str, frames: int, shots: list[list[int]], split: str = "train") -> dict[str, object]:
        return {"name": name, "file": f"clips/{name}.mkv", "split": split, "crop": crop, "shots": shots,
                "fps": 25.0, "frames": frames}  # fmt: skip

    manifest = [
        entry("two_shots", FRAMES, [[0, CUT], [CUT, FRAMES]]),
        entry("face_x", 12, [[0, 12]]),
        entry("held_out", 9, [[0, 9]], "eval"),
        entry("broken", 9, [[0, 9]]),
        entry("missing", 9, [[0, 9]]),
    ]
    (root / "manifest.json").write_text(json.dumps(manifest))
    photos = []
    for i, split in enumerate(["train", "train", "eval"]):
        cv2.imwrite(str(root / f"images/p{i}.png"), texture(20 + i))
        photos.append({"file": f"images/p{i}.png", "split": split})
    (root / "images/bad.jpg").write_bytes(b"no image")
    photos.append({"file": "images/bad.jpg", "split": "train"})
    (root / "images.json").write_text(json.dumps(photos))
    sprite = np.zeros((60, 90, 4), np.uint8)
    cv2.ellipse(sprite, (45, 30), (40, 25), 0, 0, 360, (10, 200, 60, 255), -1, cv2.LINE_AA)
    cv2.imwrite(str(root / "sprites/s.png"), sprite)
    return root


@pytest.fixture(scope="session")
def cache(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return prepare(media, tmp_path_factory.mktemp("cache"), HEIGHT, WIDTH, progress=False)


@pytest.fixture(scope="session")
def recipe(cache: Cache) -> Recipe:
    """Six small steps of stage 1 that are saved after three."""
    return Recipe(
        stage="static", preset="tiny", data=str(cache.root), steps=6, batch=2, seed=3,
        model={**MODEL, "colour": "absolute", "depth_levels": 0},
        optimizer="muon", lr=2e-3, warmup=2, save_every=3, warm_start=10, synthetic=0.5,
    )  # fmt: skip
