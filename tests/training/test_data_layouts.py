"""Folders of every layout into caches: what is found, how it is split, and the labels that come along."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from media_samples import HEIGHT, WIDTH, moving, texture, write_clip

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.data import cache as cache_command
from streamsplat_edge.training.data.cache import Cache, prepare
from streamsplat_edge.training.data.labels import read_inverse_depth
from streamsplat_edge.training.data.layouts import detect, read_folder
from streamsplat_edge.training.data.sources import images_in
from streamsplat_edge.training.data.video import VideoSampler

COUNT = 8
MOTION = 2  # pixels per frame, to the left


def pictures(seed: int, count: int = COUNT) -> list[np.ndarray]:
    """Frames of the cache's size, so that nothing is resized."""
    return [picture[4:-4, 4:-4] for picture in moving(seed, count, MOTION)]


def write_frames(folder: Path, images: list[np.ndarray], names: list[str] | None = None) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        name = f"{i:05d}" if names is None else names[i]
        cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])


def write_masks(folder: Path, names: list[str]) -> list[np.ndarray]:
    """A square that moves along, in a palette's dark red."""
    folder.mkdir(parents=True)
    masks = []
    for i, name in enumerate(names):
        mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        mask[10:30, 40 - 2 * i : 60 - 2 * i] = (0, 0, 128)
        cv2.imwrite(str(folder / f"{name}.png"), mask)
        masks.append(mask.any(axis=2))
    return masks


def cached(root: Path, **options: object) -> Cache:
    out = root.with_name(root.name + "_cache")
    return prepare(root, out, HEIGHT, WIDTH, progress=False, **options)  # type: ignore[arg-type]


def clip_of(cache: Cache, name: str):  # type: ignore[no-untyped-def]
    return next(clip for clip in cache.clips if clip.name == name)


def test_plain_folder(tmp_path: Path) -> None:
    root = tmp_path / "plain"
    (root / "train").mkdir(parents=True)
    images = pictures(1) + pictures(2)
    write_clip(root / "train" / "a.mkv", images, [40 * i for i in range(len(images))])
    (root / "train" / "broken.mp4").write_bytes(b"no video" * 100)
    write_frames(root / "eval" / "b", pictures(3), [f"f{i}" for i in range(7, 7 + COUNT)])
    (root / "eval" / "b" / "f9.png").write_bytes(b"no image")
    cv2.imwrite(str(root / "cover.jpg"), texture(5))  # one image is no sequence
    assert detect(root) == "plain"
    cache = cached(root, rate=10.0)
    assert [(c.name, c.split) for c in cache.clips] == [("eval__b", "eval"), ("train__a", "train")]
    a, b = clip_of(cache, "train__a"), clip_of(cache, "eval__b")
    assert [(s.start, s.stop) for s in a.shots] == [(0, COUNT), (COUNT, 2 * COUNT)], "the cut is found"
    assert np.array_equal(a.frames[3], images[3]) and a.times[3] == pytest.approx(0.12)
    assert b.fps == 10 and b.numbers.tolist() == [0, 1, 3, 4, 5, 6, 7], "f10 comes after f9, which is damaged"
    assert b.times[2] == pytest.approx(0.3) and "f9.png" in b.info["broken"]
    assert np.array_equal(b.frames[2], pictures(3)[3])
    assert [entry["name"] for entry in cache.skipped] == ["train__broken"]
    assert a.inv_depth is None and a.masks is None and a.span is None
    # Without photographs, clips lend their first frames as textures.
    assert len(cache.photos("train")) == 1 and min(cache.photos("train")[0].shape[:2]) == 2 * HEIGHT
    assert not list(cache.root.rglob("*.tmp"))


def test_kept_clips_are_not_decoded_again_unless_the_source_changed(tmp_path: Path) -> None:
    root = tmp_path / "plain"
    write_frames(root / "b", pictures(3))
    write_frames(root / "c", pictures(4))
    first = cached(root)
    files = {name: (first.root / f"{name}.npy").stat().st_mtime_ns for name in ("b", "c")}
    (root / "b" / "00007.png").unlink()
    second = cached(root)
    assert len(clip_of(second, "b")) == COUNT - 1
    assert (second.root / "c.npy").stat().st_mtime_ns == files["c"]


def test_split_by_name_is_stable(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"clip{i}.mp4").touch()
    held = {clip.name for clip in read_folder(tmp_path).clips if clip.split == "eval"}
    assert held == {"clip4", "clip6", "clip32"}, "SHA-256 of the name, divisible by ten"
    for i in range(20, 40):
        (tmp_path / f"clip{i}.mp4").unlink()
    assert {c.name for c in read_folder(tmp_path).clips if c.split == "eval"} == held - {"clip32"}
    for i in range(9, 20):
        (tmp_path / f"clip{i}.mp4").unlink()
    assert {clip.split for clip in read_folder(tmp_path).clips} == {"train"}, "nine are all for training"


def test_equal_names(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv", "x/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {clip.name for clip in read_folder(tmp_path).clips} == {"a.mp4", "a.mkv", "x__a"}
    (tmp_path / "x__a.mp4").touch()
    with pytest.raises(InputError, match="several clips named x__a"):
        read_folder(tmp_path)


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        InputError, match=r"Looked for media: manifest\.json.*davis: JPEGImages.*plain: videos"
    ):
        detect(tmp_path)
    with pytest.raises(InputError, match="absent is not a folder"):
        prepare(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="not of the layout davis: it needs JPEGImages"):
        prepare(tmp_path, tmp_path / "out", layout="davis")
    with pytest.raises(InputError, match=r"Nothing in .* could be read. a: "):
        prepare(tmp_path, tmp_path / "out", progress=False)
    with pytest.raises(SystemExit):
        cache_command.main([str(tmp_path), str(tmp_path / "out"), "--layout", "re10k"])
    assert "it needs pose files" in capsys.readouterr().err


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    root = tmp_path_factory.mktemp("davis") / "DAVIS"
    names = [f"{i:05d}" for i in range(COUNT)]
    for sequence, seed in (("bear", 1), ("dog", 2)):
        write_frames(root / "JPEGImages" / "480p" / sequence, pictures(seed))
    write_frames(root / "JPEGImages" / "Full-Resolution" / "bear", pictures(1))
    write_frames(root / "JPEGImages" / "Full-Resolution" / "dog", pictures(2))
    masks = write_masks(root / "Annotations" / "480p" / "bear", names)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("bear\ngone\n")
    (lists / "val.txt").write_text("dog\n")
    return root, masks


def test_davis(davis: tuple[Path, list[np.ndarray]]) -> None:
    root, masks = davis
    assert detect(root) == "davis"
    cache = cached(root)
    bear, dog = clip_of(cache, "bear"), clip_of(cache, "dog")
    assert (bear.split, dog.split, bear.span, bear.fps) == ("train", "eval", 4, 24.0)
    assert "Full-Resolution" in str(read_folder(root).clips[0].path)
    assert bear.masks is not None and bear.masks.dtype == bool and np.array_equal(bear.masks, masks)
    assert dog.masks is None
    assert [entry["name"] for entry in cache.skipped] == ["gone"]


def test_masks_move_with_the_frames(davis: tuple[Path, list[np.ndarray]]) -> None:
    """The annotated square slides with the texture, so a sample's mask must follow its own flow labels."""
    sampler = VideoSampler(cached(davis[0]))
    flips = set()
    for i in range(12):
        sample = sampler.sample(np.random.default_rng(i), 3)
        assert sample.mask.any(axis=(1, 2)).all()
        columns = [float(np.nonzero(mask)[1].mean()) for mask in sample.mask[[0, -1]]]
        flow = np.median(sample.flow_fwd[..., 0][sample.mask[0]].astype(np.float32))
        assert columns[1] - columns[0] == pytest.approx(flow, abs=2.0)
        flips.add(bool(flow > 0))
    assert flips == {False, True}


def test_published_temporal_range(davis: tuple[Path, list[np.ndarray]]) -> None:
    sampler = VideoSampler(cached(davis[0]))
    seen = set()
    for i in range(200):
        _, start, rows = sampler._window(np.random.default_rng(i), 3)
        assert rows[0] == start and len(rows) == 3 and (np.diff(rows) > 0).all() and rows[-1] - start <= 4
        seen.add(tuple(rows - start))
    assert seen == {(0, a, b) for a in range(1, 5) for b in range(a + 1, 5)}, "any two of the next four"
    rows = sampler._window(np.random.default_rng(0), 6)[2]
    assert (np.diff(rows) == 1).all(), "six frames raise the range to five: consecutive ones"


def test_youtube_vos(tmp_path: Path) -> None:
    root = tmp_path / "vos"
    names = [f"{5 * i:05d}" for i in range(COUNT)]
    write_frames(root / "train" / "JPEGImages" / "0a1b", pictures(1), names)
    write_masks(root / "train" / "Annotations" / "0a1b", names[:4])
    write_frames(root / "valid" / "JPEGImages" / "0c2d", pictures(2), names)
    (root / "train" / "meta.json").write_text("{}")
    assert detect(root) == "youtube-vos" and detect(root / "train") == "youtube-vos"
    cache = cached(root)
    clip = clip_of(cache, "0a1b")
    assert (clip.split, clip_of(cache, "0c2d").split, clip.span) == ("train", "eval", 3)
    assert clip.times[1] == pytest.approx(5 / 30)
    assert clip.masks is not None and clip.masks.any(axis=(1, 2)).tolist() == [True] * 4 + [False] * 4


def test_re10k(tmp_path: Path) -> None:
    root = tmp_path / "re10k"
    stamps = [1_000_000 + 33_000 * i + (100_000 if i > 4 else 0) for i in range(COUNT)]

    def poses(part: str, name: str, times: list[int]) -> None:
        (root / part).mkdir(parents=True, exist_ok=True)
        lines = [" ".join([str(t), *["0.5"] * 18]) for t in times]
        (root / part / f"{name}.txt").write_text("\n".join(["https://example.org/v", *lines]))

    poses("train", "named", stamps)
    write_frames(root / "train" / "named", pictures(1)[::2], [str(t) for t in stamps[::2]])
    poses("test", "counted", stamps)
    write_frames(root / "frames" / "test" / "counted", pictures(2))
    poses("test", "short", stamps)
    write_frames(root / "frames" / "test" / "short", pictures(3)[:5])
    poses("test", "gone", stamps)
    poses("test", "swapped", [*stamps[:3], stamps[4], stamps[3], *stamps[5:]])
    write_frames(root / "frames" / "test" / "swapped", pictures(4))
    assert detect(root) == "re10k"
    cache = cached(root)
    named, counted = clip_of(cache, "named"), clip_of(cache, "counted")
    assert (named.split, counted.split, named.span) == ("train", "eval", 15)
    assert named.times == pytest.approx([0, 0.066, 0.132, 0.298]) and named.numbers.tolist() == [0, 2, 4, 6]
    assert counted.times[5] == pytest.approx(0.265) and counted.fps == pytest.approx(1 / 0.033)
    reasons = {entry["name"]: entry["reason"] for entry in cache.skipped}
    assert reasons["short"] == "5 frames, 8 poses" and "no folder of frames" in reasons["gone"]
    assert reasons["swapped"] == "time stamps do not increase"
    rows = VideoSampler(cache)._window(np.random.default_rng(0), 4)[2]
    assert rows.tolist() == [0, 1, 2, 3], "a clip shorter than the range serves as far as it goes"


def test_co3d(tmp_path: Path) -> None:
    root = tmp_path / "co3d"
    names = [f"frame{i:06d}" for i in range(1, COUNT + 1)]
    write_frames(root / "apple" / "110_1" / "images", pictures(1), names)
    write_frames(root / "apple" / "110_2" / "images", pictures(2), names)
    write_masks(root / "apple" / "110_1" / "masks", names)
    lists = root / "apple" / "set_lists"
    lists.mkdir()

    def frames(numbers: range) -> list[list[object]]:
        return [["110_1", i, f"apple/110_1/images/frame{i:06d}.png"] for i in numbers]

    (lists / "set_lists_manyview_dev_0.json").write_text(
        json.dumps({"train": frames(range(1, 4)), "val": [], "test": frames(range(4, 7))})
    )
    assert detect(root) == "co3d"
    cache = cached(root)
    (clip,) = cache.clips
    assert (clip.name, clip.split, clip.span, len(clip)) == ("apple__110_1", "train", 5, 6)
    assert clip.masks is None, "its objects stand still"
    (lists / "set_lists_manyview_dev_0.json").write_text("[1]")
    with pytest.raises(InputError, match="not a list of frames of CO3Dv2"):
        read_folder(root)


def ramp(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Depth that grows to the right: 2 at the left, 10 at the right."""
    return np.tile(np.linspace(2, 10, width, dtype=np.float32), (height, 1))


def test_depth_maps(tmp_path: Path) -> None:
    root, depths = tmp_path / "frames", tmp_path / "depths"
    write_frames(root / "b", pictures(3))
    write_frames(root / "c", pictures(4))
    (depths / "b").mkdir(parents=True)
    for i in range(COUNT):
        if i == 6:  # what a full disk leaves
            (depths / "b" / f"{i:05d}.npy").touch()
            continue
        if i == 2:
            cv2.imwrite(str(depths / "b" / f"{i:05d}.png"), (ramp() * 6000).astype(np.uint16))
        elif i == 3:
            cv2.imwrite(str(depths / "b" / f"{i:05d}.png"), (ramp(96, 160) * 25).astype(np.uint8))
        else:
            values = ramp()[None] if i == 0 else ramp()
            values[..., 7, 9] = np.nan if i == 5 else values[..., 7, 9]
            np.save(depths / "b" / f"{i:05d}.npy", values)
    cache = cached(root, depth_dir=depths)
    clip = clip_of(cache, "b")
    assert clip.inv_depth is not None and clip.inv_depth.dtype == np.float16
    expected = (ramp() - 2) / 8
    for row in (0, 1, 2, 3):
        assert np.abs(clip.inv_depth[row] - expected).max() < 0.02
    assert clip.no_depth == {5, 6} and clip.depth_known(np.array([0, 4, 7]))
    assert not clip.depth_known(np.array([0, 5])) and clip_of(cache, "c").inv_depth is None
    problem, empty = cache.skipped
    assert empty["name"].endswith("00006.npy")
    assert (
        problem["name"].endswith("00005.npy") and "1 of 3840 depth values are not finite" in problem["reason"]
    )

    sampler = VideoSampler(cache, ["b"])
    known, left_to_right = 0, set()
    for i in range(20):
        sample = sampler.sample(np.random.default_rng(i), 2)
        known += sample.depth_valid
        if sample.depth_valid:
            slope = np.diff(sample.inv_depth.astype(np.float32), axis=2)
            assert (slope >= -1e-3).all() or (slope <= 1e-3).all()
            left_to_right.add(bool(slope.mean() > 0))
    assert 0 < known < 20 and left_to_right == {False, True}, "depth is mirrored with its frames"
    image, depth = sampler.still(np.random.default_rng(1))
    assert depth is not None and depth.shape == image.shape[:2]


@pytest.mark.parametrize("name", ["v.depth", "v.mask", "index"])
def test_clips_that_would_share_a_file_of_the_cache_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    for clip in ("v", name):
        write_clip(root / f"{clip}.mkv", pictures(3), [40 * i for i in range(COUNT)])
    with pytest.raises(InputError, match=f"has a clip named {name}, which in a cache"):
        cached(root)
    (root / "v.mkv").unlink()
    if name != "index":
        assert [clip.name for clip in cached(root).clips] == [name], "alone it is as good as any"


def test_a_damaged_video_may_have_fewer_depth_maps_than_frames(tmp_path: Path) -> None:
    root, depths = tmp_path / "frames", tmp_path / "depths"
    (depths / "v").mkdir(parents=True)
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_clip(root / "v.mkv", list(noise), [40 * i for i in range(30)])
    content = (root / "v.mkv").read_bytes()
    (root / "v.mkv").write_bytes(content[: len(content) // 2])
    for i in range(5):
        np.save(depths / "v" / f"{i}.npy", ramp())
    clip = clip_of(cached(root, depth_dir=depths), "v")
    assert clip.info["broken"] and len(clip) > 5
    assert clip.inv_depth is not None and clip.no_depth == set(range(5, len(clip)))
    assert not clip.inv_depth[5:].any() and clip.inv_depth[:5].max() == 1


def test_depth_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    root, depths = tmp_path / "frames", tmp_path / "depths"
    write_frames(root / "b", pictures(3))
    write_clip(root / "v.mkv", pictures(4), [40 * i for i in range(COUNT)])
    with pytest.raises(InputError, match="depths is not a folder"):
        cached(root, depth_dir=depths)
    depths.mkdir()
    with pytest.raises(InputError, match="no folder named like a clip"):
        cached(root, depth_dir=depths)
    (depths / "b").mkdir()
    for i in range(COUNT - 1):
        np.save(depths / "b" / f"{i:05d}.npy", ramp())
    with pytest.raises(InputError, match="holds 7 depth maps, clip b has 8 frames, none for 00007"):
        cached(root, depth_dir=depths)
    np.save(depths / "b" / "00007.npy", np.zeros((HEIGHT, WIDTH, 3), np.float32))
    with pytest.raises(InputError, match=r"00007.npy has shape \[48, 80, 3\], not one value per pixel"):
        cached(root, depth_dir=depths)
    np.save(depths / "b" / "00007.npy", ramp())
    (depths / "v").mkdir()
    for i in range(COUNT - 2):
        np.save(depths / "v" / f"{i}.npy", ramp())
    with pytest.raises(InputError, match="holds 6 depth maps, clip v has 8 frames"):
        cached(root, depth_dir=depths)
    np.save(depths / "v" / "0.npy", np.zeros(3, np.complex64))
    with pytest.raises(InputError, match="complex64, not depth"):
        read_inverse_depth(depths / "v" / "0.npy", HEIGHT, WIDTH)


def test_constant_depth_becomes_zeros_and_names_sort_by_number(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.full((4, 4), 7.0))
    assert not read_inverse_depth(tmp_path / "d.npy", HEIGHT, WIDTH).any()
    for name in ("f10.png", "f2.png", ".f1.png", "f1.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["f2.png", "f10.png"]
