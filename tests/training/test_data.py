"""Training data on a tiny generated media folder: cache, real sequences, mixer, baselines."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_samples import CUT, FRAMES, HEIGHT, PAUSE, REPEAT, WIDTH, moving

from streamsplat_edge.runtime.errors import InputError, OutputError
from streamsplat_edge.training import baselines
from streamsplat_edge.training.data.cache import Cache, prepare
from streamsplat_edge.training.data.clips import is_repeat
from streamsplat_edge.training.data.loader import Mixer, StepDataset, eval_clips
from streamsplat_edge.training.data.reader import Shot
from streamsplat_edge.training.data.video import VideoSampler, clip_weights, consistency_mask


def test_cache_keeps_numbers_times_and_pixels(cache: Cache) -> None:
    clip = next(c for c in cache.clips if c.name == "two_shots")
    expected = [i for i in range(FRAMES) if i != REPEAT]
    assert clip.numbers.tolist() == expected, "exactly the repeated frame is dropped"
    assert clip.times == pytest.approx([0.04 * i + (0.1 if i >= PAUSE else 0) for i in expected], abs=1e-6)
    assert [(s.start, s.stop) for s in clip.shots] == [(0, CUT - 1), (CUT - 1, FRAMES - 1)]
    truth = moving(1, CUT, 2)[3][4:-4, 4:-4]
    assert np.array_equal(clip.frames[3], truth), "crop at native size is lossless"


def test_unreadable_media_is_skipped_and_listed(cache: Cache) -> None:
    assert {entry["name"] for entry in cache.skipped} == {"broken", "missing", "images/bad.jpg"}
    assert all(entry["reason"] for entry in cache.skipped)
    assert {clip.name for clip in cache.clips} == {"two_shots", "face_x", "held_out"}
    assert not list(cache.root.rglob("*.tmp"))
    assert len(cache.photos("train")) == 2 and len(cache.photos("eval")) == 1 and len(cache.sprites()) == 1


def test_truncated_clip_keeps_what_can_be_decoded(media: Path, tmp_path: Path) -> None:
    whole = (media / "clips/held_out.mkv").read_bytes()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/held_out.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    entry = next(e for e in json.loads((media / "manifest.json").read_text()) if e["name"] == "held_out")
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    clips = prepare(tmp_path, tmp_path / "out", HEIGHT, WIDTH, progress=False).clips
    assert len(clips) == 1 and 2 <= len(clips[0]) < 9


def test_cache_rejects_other_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a media cache"):
        Cache(tmp_path)
    with pytest.raises(InputError, match="manifest"):
        prepare(tmp_path, tmp_path / "out", progress=False)


def copied(cache: Cache, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the cache whose index was changed."""
    shutil.copytree(cache.root, folder)
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_damaged_caches_are_refused(cache: Cache, tmp_path: Path) -> None:
    def refuses(message: str, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        with pytest.raises(InputError, match=message):
            Cache(copied(cache, tmp_path / name, change))

    refuses("another format or version", "1", lambda index: index.update(version=99))
    refuses("damaged", "2", lambda index: index.pop("height"))
    refuses("damaged", "3", lambda index: index["clips"][0].pop("shots"))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "index.json").write_text("[]")
    with pytest.raises(InputError, match="another format"):
        Cache(tmp_path / "list")
    cut = Cache(copied(cache, tmp_path / "4", lambda index: None))
    cut.clips[0].path.write_bytes(cut.clips[0].path.read_bytes()[:-1])
    cut.clips[1].path.unlink()
    for clip in cut.clips[:2]:
        with pytest.raises(InputError, match="cannot be read"):
            _ = clip.frames
    whole = cut.clips[2].path.read_bytes()
    with io.BytesIO() as archive:
        np.savez(archive, a=np.zeros(3))
        zipped = archive.getvalue()
    assert b"'shape': (" in whole[:128]
    for content in (b"", whole[:50], whole[:128].replace(b"), ", b"(, "), zipped, zipped[:40], b"no array"):
        cut.clips[2].path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            _ = cut.clips[2].frames
    short = Cache(copied(cache, tmp_path / "5", lambda index: index["clips"][0]["numbers"].pop()))
    with pytest.raises(InputError, match=r"has 19 frames, index\.json says 18"):
        _ = short.clips[0].frames


def test_fingerprint_tells_caches_apart(cache: Cache, tmp_path: Path) -> None:
    assert Cache(cache.root).fingerprint == cache.fingerprint
    moved = copied(cache, tmp_path / "other", lambda index: index["clips"][0]["times"].reverse())
    assert Cache(moved).fingerprint != cache.fingerprint


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{}", "is not a list"),
        ("[", "cannot be read"),
        ('[{"name": "a"}]', "entry 0 lacks file, split, fps, crop, shots, frames"),
        ("[3]", "entry 0 lacks name"),
    ],
)
def test_manifests_of_no_use_are_refused(tmp_path: Path, entries: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(entries)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["face_x", "../face_y"])
def test_names_that_would_overwrite_are_refused(media: Path, tmp_path: Path, name: str) -> None:
    entries = json.loads((media / "manifest.json").read_text())
    entries[0]["name"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match="taken or not a plain name"):
        prepare(tmp_path, tmp_path / "out", progress=False)


def test_full_disk_is_not_taken_for_an_unreadable_clip(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save
    writes = 0

    def full(sink: Any, array: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            sink.write(b"half")
            raise OSError(28, "No space left on device")
        save(sink, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        prepare(media, tmp_path / "out", HEIGHT, WIDTH, progress=False)
    assert {p.name for p in (tmp_path / "out").iterdir() if p.is_file()} == {
        "two_shots.npy",
        "two_shots.json",
    }
    monkeypatch.undo()
    assert len(prepare(media, tmp_path / "out", HEIGHT, WIDTH, progress=False).clips) == 3


def test_more_frames_than_any_shot_has_are_refused(cache: Cache) -> None:
    sampler = VideoSampler(cache)
    longest = max(s.stop - s.start for clip in sampler.clips for s in clip.shots)
    assert len(sampler.sample(np.random.default_rng(0), longest).frames) == longest
    with pytest.raises(InputError, match=f"shot of {longest + 1} frames; the longest shot has {longest}"):
        sampler.sample(np.random.default_rng(0), longest + 1)


def test_cache_without_photographs_cannot_train(cache: Cache, tmp_path: Path) -> None:
    folder = copied(cache, tmp_path / "cache", lambda index: index.update(photos=[]))
    with pytest.raises(InputError, match="no train photographs"):
        Mixer(folder)


def test_small_moving_thing_is_no_repeat() -> None:
    still = np.full((144, 256, 3), 90, np.uint8)
    noisy = still.copy()
    noisy[::2, ::3] += 1
    moved = still.copy()
    moved[40:44, 60:64] += 60
    assert is_repeat(noisy, still)
    assert np.abs(moved.astype(int) - still).mean() < 0.35, "the mean alone would drop it"
    assert not is_repeat(moved, still)


def test_sequences_never_cross_a_cut(cache: Cache) -> None:
    sampler = VideoSampler(cache, ["two_shots"])
    clip = sampler.clips[0]
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        frames = int(rng.integers(2, 5)) if rng.random() < 0.5 else None
        _, _, rows = sampler._window(rng, frames)
        shots = {n for n, s in enumerate(clip.shots) for r in rows if s.start <= r < s.stop}
        assert len(shots) == 1
        assert np.all(np.diff(rows) > 0) and rows[-1] - rows[0] <= 6
        assert frames is None or len(rows) == frames
        seen |= shots
    assert seen == {0, 1}


def test_times_come_from_the_time_stamps(cache: Cache) -> None:
    sampler = VideoSampler(cache, ["two_shots"])
    uneven = 0
    for i in range(40):
        sample = sampler.sample(np.random.default_rng(i), 5)
        assert sample.frames.shape == (5, HEIGHT, WIDTH, 3) and sample.frames.dtype == np.uint8
        assert sample.times[0] == 0 and sample.times[-1] == 1 and np.all(np.diff(sample.times) > 0)
        uneven += bool(np.ptp(np.diff(sample.times)) > 0.05)
        assert not sample.depth_valid
    assert uneven > 5, "the pause and the dropped frame must show in the times"


def test_flow_labels_follow_the_slide(cache: Cache) -> None:
    """The first shot slides 2 pixels a frame to the left: flow labels have that length where they are
    valid.
    """
    sampler = VideoSampler(cache, ["two_shots"], augmented=False)
    checked = 0
    for i in range(30):
        sample = sampler.sample(np.random.default_rng(i), 3)
        start = int(sample.source.split("@")[1])
        numbers = sampler.clips[0].numbers
        if start >= sampler.clips[0].shots[1].start or sample.valid_fwd.mean() < 0.5:
            continue
        x = np.median(sample.flow_fwd[..., 0][sample.valid_fwd].astype(np.float32))
        lengths = [2.0 * (numbers[start + g] - numbers[start]) for g in range(2, 7) if start + g < CUT - 1]
        assert min(abs(abs(x) - length) for length in lengths) < 0.5
        back = np.median(sample.flow_bwd[..., 0][sample.valid_bwd].astype(np.float32))
        assert back == pytest.approx(-x, abs=0.5)
        checked += 1
    assert checked >= 5


def of_one_shot(cache: Cache, levels: np.ndarray, **options: bool) -> VideoSampler:
    """Draws from a single shot of even frames of these grey levels."""
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), HEIGHT, WIDTH, 3)).astype(np.uint8)
    own = Cache(cache.root)
    clip = next(clip for clip in own.clips if clip.name == "two_shots")
    clip.numbers, clip.times = np.arange(len(levels)), np.arange(len(levels)) / 25
    clip.shots = [Shot(0, len(levels))]
    vars(clip)["frames"] = frames  # in place of the mapped file
    return VideoSampler(own, [clip.name], **options)


def test_sequences_run_backwards_half_of_the_time(cache: Cache) -> None:
    sampler = of_one_shot(cache, np.linspace(20, 230, 30))
    backwards = 0
    for i in range(60):
        sample = sampler.sample(np.random.default_rng(i), 3)
        brightness = np.diff(sample.frames.mean((1, 2, 3)))
        assert (brightness > 0).all() or (brightness < 0).all()
        assert sample.times[0] == 0 and (np.diff(sample.times) > 0).all()
        backwards += bool(brightness[0] < 0)
    assert 18 <= backwards <= 42


def test_a_flash_is_not_taken_for_motion(cache: Cache) -> None:
    """Of three windows the one that changes most is taken, but not one that ends in a flash."""
    levels = np.linspace(100, 120, 60)
    levels[::12] = 255
    sampler = of_one_shot(cache, levels, augmented=False)
    flashes = 0
    for i in range(100):
        first, last = sampler.sample(np.random.default_rng(i), 2).frames.mean((1, 2, 3))
        flashes += bool((first > 200) != (last > 200))
    # A sixth of all windows has one flash at an end; the best of three would have it in 4 of 10.
    assert flashes <= 5


def test_consistency_mask_rejects_contradiction_and_outside() -> None:
    forward = np.zeros((20, 30, 2), np.float32)
    forward[..., 0] = 4
    backward = -forward
    backward[:, 10:16] = 5
    mask = consistency_mask(forward, backward)
    assert mask[:, :5].all() and not mask[:, 7:11].any() and not mask[:, -4:].any()


def test_eval_split_is_refused_for_training(cache: Cache) -> None:
    with pytest.raises(InputError, match="eval"):
        VideoSampler(cache, ["held_out"])
    with pytest.raises(InputError, match="not in"):
        VideoSampler(cache, ["nobody"])
    assert {clip.name for clip in VideoSampler(cache).clips} == {"two_shots", "face_x"}
    batch = Mixer(cache, synthetic_fraction=0.0).batch(0, 16, 2)
    assert not any(source.startswith("held_out") for source in batch.source)


def test_faces_are_capped(cache: Cache) -> None:
    clips = cache.split("train")
    weights = clip_weights(clips)
    face = sum(w for w, c in zip(weights, clips, strict=True) if c.name.startswith("face_"))
    assert weights.sum() == pytest.approx(1) and face == pytest.approx(0.10)


def test_batches_are_deterministic_per_seed_and_step(cache: Cache) -> None:
    first, second = Mixer(cache, 0.5, seed=3), Mixer(cache, 0.5, seed=3)
    second.batch(0, 2, 3)  # other history
    a, b = first.batch(7, 6, 4), second.batch(7, 6, 4)
    assert a.source == b.source
    for name in vars(a):
        if name != "source":
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert not torch.equal(a.frames, first.batch(8, 6, 4).frames)
    assert not torch.equal(a.frames, Mixer(cache, 0.5, seed=4).batch(7, 6, 4).frames)
    assert torch.equal(first.batch_stills(5, 6).images, second.batch_stills(5, 6).images)


def test_batch_shapes_and_labels(cache: Cache) -> None:
    batch = Mixer(cache, 0.5, seed=1).batch(0, 8, 4)
    b, t = 8, 4
    assert batch.frames.shape == (b, t, 3, HEIGHT, WIDTH) and batch.frames.dtype == torch.uint8
    assert batch.times.shape == (b, t) and batch.inv_depth.shape == (b, 2, HEIGHT, WIDTH)
    samples = [Mixer(cache, 0.5, seed=1).sequence(0, i, t) for i in range(b)]
    ends = np.stack([sample.inv_depth[[0, -1]] for sample in samples])
    assert np.array_equal(batch.inv_depth.numpy(), ends)
    assert batch.flow_fwd.shape == batch.flow_bwd.shape == batch.flow_valid.shape == (b, 2, HEIGHT, WIDTH)
    assert batch.mask.shape == (b, t, HEIGHT, WIDTH) and batch.mask.dtype == torch.bool
    synthetic = torch.tensor([source == "synthetic" for source in batch.source])
    assert torch.equal(batch.depth_valid, synthetic) and 0 < int(synthetic.sum()) < b
    assert (batch.inv_depth[synthetic] > 0).all() and (batch.inv_depth[~synthetic] == 0).all()
    stills = Mixer(cache, seed=1).batch_stills(0, 24)
    assert stills.images.shape == (24, 3, HEIGHT, WIDTH) and 0 < int(stills.depth_valid.sum()) < 16
    assert (stills.inv_depth[stills.depth_valid].amax(dim=(1, 2)) > 0).all()
    assert (stills.inv_depth[~stills.depth_valid] == 0).all()


def test_background_process_gives_the_same_batches(cache: Cache) -> None:
    mixer = Mixer(cache, 0.5, seed=2)
    loader = torch.utils.data.DataLoader(StepDataset(_Stills(mixer), 5, 9), batch_size=None, num_workers=2)
    for step, images in zip(range(5, 9), loader, strict=True):
        assert torch.equal(images, mixer.batch_stills(step, 4).images)


class _Stills:
    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def __call__(self, step: int) -> torch.Tensor:
        return self.mixer.batch_stills(step, 4).images


def test_eval_clips_and_baselines(cache: Cache) -> None:
    (shot,) = eval_clips(cache)
    assert shot.clip == "held_out" and shot.frames.shape == (9, HEIGHT, WIDTH, 3)
    assert baselines.pairs(9, 4) == [(0, 4), (4, 8)] and baselines.pairs(10, 4) == [(0, 4), (4, 8), (8, 9)]
    result = baselines.measure(cache, gap=4)
    clip = result["clips"]["held_out"]
    assert clip["in_between_frames"] == 6 and result["average"]["dis"] == clip["dis"]
    assert clip["dis"] > clip["blend"] > clip["nearest"] > 10, "flow must win on a plain slide"
    expected = [
        baselines.psnr(shot.frames[0] * (1 - t / 4) + shot.frames[4] * (t / 4), shot.frames[t])
        for t in (1, 2, 3)
    ] + [
        baselines.psnr(shot.frames[4] * (1 - t / 4) + shot.frames[8] * (t / 4), shot.frames[4 + t])
        for t in (1, 2, 3)
    ]
    assert clip["blend"] == pytest.approx(np.mean(expected), abs=0.05)
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert baselines.psnr(grey, grey + 10) == pytest.approx(20 * np.log10(25.5))
    assert baselines.psnr(grey, grey) == 100
