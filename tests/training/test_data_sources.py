"""Where samples come from: only photographs, only clips, labels from files or a network, pinned draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from media_samples import HEIGHT, WIDTH, moving, texture
from torch import Tensor, nn

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.data import depth as depth_command
from streamsplat_edge.training.data.cache import Cache, prepare
from streamsplat_edge.training.data.depth import add_depth
from streamsplat_edge.training.data.loader import Mixer

# Batch 3 and stills 3 of seed 5 from the cache of the tests, as version 0.1.0 made them.
PINNED_SOURCES = ["synthetic", "synthetic", "two_shots@10", "face_x@5", "two_shots@10"]
PINNED_TIMES = [
    [0, 1 / 3, 2 / 3, 1], [0, 1 / 3, 2 / 3, 1], [0, 1 / 6, 5 / 6, 1], [0, 0.25, 0.5, 1], [0, 2 / 3, 5 / 6, 1],
]  # fmt: skip
PINNED_GREY = [110.287, 119.960, 149.453, 137.429, 145.978]
PINNED_FLOW = [0.273, -0.301, 3.235, 2.372, 4.162]
PINNED_STILLS = [119.439, 127.572, 141.476, 120.753, 141.718, 154.575]
PINNED_VALID = [True, False, False, True, False, False]


def test_draws_are_pinned(cache: Cache) -> None:
    """A run that is resumed with a later version must see the samples it would have seen: these are of 0.1.0.

    Grey levels and not a checksum: the last bits of resampling may depend on the processor.
    """
    mixer = Mixer(cache, 0.5, seed=5)
    batch = mixer.batch(3, 5, 4)
    assert batch.source == PINNED_SOURCES
    assert batch.times.numpy() == pytest.approx(np.array(PINNED_TIMES), abs=1e-4)
    assert batch.frames.float().mean((1, 2, 3, 4)).tolist() == pytest.approx(PINNED_GREY, abs=0.05)
    assert batch.flow_fwd.float().mean((1, 2, 3)).tolist() == pytest.approx(PINNED_FLOW, abs=0.05)
    stills = mixer.batch_stills(3, 6)
    assert stills.images.float().mean((1, 2, 3)).tolist() == pytest.approx(PINNED_STILLS, abs=0.05)
    assert stills.depth_valid.tolist() == PINNED_VALID


def photographs(root: Path) -> Path:
    for part in ("photos/train", "photos/eval"):
        (root / part).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(root / part / f"{i}.png"), texture(i))
    return root


def test_photographs_alone_train_on_synthetic_scenes(tmp_path: Path) -> None:
    cache = prepare(photographs(tmp_path / "media"), tmp_path / "cache", HEIGHT, WIDTH, progress=False)
    assert not cache.clips and len(cache.photos("train")) == len(cache.photos("eval")) == 2
    with pytest.raises(InputError, match="no train clip with motion"):
        Mixer(cache, synthetic_fraction=0.9)
    mixer = Mixer(cache, synthetic_fraction=1.0, seed=1)
    mixer.check_frames(50)
    batch = mixer.batch(0, 4, 3)
    assert batch.source == ["synthetic"] * 4 and batch.depth_valid.all() and batch.flow_valid.any()
    assert batch.mask.any() and (batch.inv_depth > 0).all()
    stills = mixer.batch_stills(0, 40)
    assert 0.5 < stills.depth_valid.float().mean() < 0.95, "1/4 of 1/3 synthetic, the rest photographs"


def test_clips_alone_train_without_synthetic_scenes(cache: Cache, tmp_path: Path) -> None:
    shutil.copytree(cache.root, tmp_path / "cache")
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    index["photos"] = []
    (tmp_path / "cache" / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="no train photographs"):
        Mixer(tmp_path / "cache", synthetic_fraction=0.1)
    mixer = Mixer(tmp_path / "cache", synthetic_fraction=0.0)
    assert not any(source == "synthetic" for source in mixer.batch(0, 4, 3).source)
    assert not mixer.batch_stills(0, 12).depth_valid.any()


def test_published_augmentation_is_an_option(cache: Cache) -> None:
    plain, published = Mixer(cache, 0.5, seed=2), Mixer(cache, 0.5, seed=2, augmentation="published")
    a, b = plain.batch(0, 4, 3), published.batch(0, 4, 3)
    assert (a.depth_valid == b.depth_valid).all() and not torch.equal(a.frames, b.frames)
    assert torch.equal(b.frames, Mixer(cache, 0.5, 2, "published").batch(0, 4, 3).frames)
    assert not torch.equal(plain.batch_stills(0, 4).images, published.batch_stills(0, 4).images)


class Brightness(nn.Module):
    """Stands in for the network: a depth that can be checked, brighter = nearer."""

    def __init__(self, fails_after: int = 10**9) -> None:
        super().__init__()
        self.calls, self.fails_after = 0, fails_after

    def forward(self, rgb: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.fails_after:
            raise KeyboardInterrupt
        return 3 + 20 * rgb.mean(1, keepdim=True)


def test_depth_of_a_cache(tmp_path: Path) -> None:
    root = tmp_path / "frames"
    for name, seed in (("a", 1), ("b", 2)):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(moving(seed, 5, 2)):
            cv2.imwrite(str(root / name / f"{i}.png"), image[4:-4, 4:-4, ::-1])
    cache = prepare(root, tmp_path / "cache", HEIGHT, WIDTH, progress=False)
    before = cache.fingerprint
    with pytest.raises(KeyboardInterrupt):
        add_depth(cache.root, Brightness(fails_after=4), "grey 1", batch=2, progress=False)
    assert Cache(cache.root).fingerprint == before, "the index changes once, when all is done"
    assert not list(cache.root.glob("*.tmp"))
    network = Brightness()
    done = add_depth(cache.root, network, "grey 1", batch=2, progress=False)
    assert network.calls == 3, "the first clip was kept"
    assert done.fingerprint != before
    for clip in done.clips:
        grey = clip.frames.mean(axis=3)
        low, high = grey.min(axis=(1, 2), keepdims=True), grey.max(axis=(1, 2), keepdims=True)
        assert clip.inv_depth is not None
        assert np.abs(clip.inv_depth - (grey - low) / (high - low)).max() < 1e-3
    network = Brightness()
    add_depth(cache.root, network, "grey 1", batch=2, progress=False)
    assert network.calls == 0
    again = prepare(root, tmp_path / "cache", HEIGHT, WIDTH, progress=False)
    assert again.fingerprint == done.fingerprint, "preparing again keeps the depth"
    add_depth(cache.root, network, "grey 2", batch=5, progress=False)
    assert network.calls == 2, "other weights"
    batch = Mixer(done, 0.0, seed=1).batch(0, 3, 3)
    assert batch.depth_valid.all() and (batch.inv_depth.amax((2, 3)) > 0.5).all()
    assert Mixer(done, 0.0, seed=1).batch_stills(0, 12).depth_valid.any()


def test_depth_command_refuses(cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            depth_command.main([*arguments])
        return capsys.readouterr().err

    assert "not a media cache" in said(str(tmp_path), "--weights", "absent.pth")
    assert "absent.pth cannot be read as weights" in said(str(cache.root), "--weights", "absent.pth")
    assert "--batch is 0" in said(str(cache.root), "--weights", "absent.pth", "--batch", "0")
    with pytest.raises(InputError, match="not finite"):
        nan = nn.Sequential(Brightness(), nn.Threshold(1e9, float("nan")))
        add_depth(shutil.copytree(cache.root, tmp_path / "c"), nan, "nan", progress=False)  # type: ignore[arg-type]
