"""Evaluation as the runtime renders, on a bundle whose outputs are known by formula."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from lpips_samples import narrow
from media_samples import HEIGHT, WIDTH, moving, write_clip
from safetensors.torch import save_file

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.stream import open_stream
from streamsplat_edge.training import baselines
from streamsplat_edge.training.data.cache import Cache, prepare
from streamsplat_edge.training.data.loader import EvalShot, eval_clips
from streamsplat_edge.training.evaluate import NAMES, evaluate, format_table
from streamsplat_edge.training.metrics import Meter, psnr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return build_fake_bundle(folder / "fake.bundle", height=HEIGHT, width=WIDTH, key_frame_gap=3)


@pytest.fixture(scope="module")
def long_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Two held-out clips, of 13 frames and of 8."""
    root = tmp_path_factory.mktemp("long")
    (root / "clips").mkdir()
    manifest = []
    for seed, (name, count) in enumerate((("long", 13), ("short", 8))):
        file = f"clips/{name}.mkv"
        write_clip(root / file, moving(10 + seed, count, 2), [40 * i for i in range(count)])
        manifest.append(
            {"name": name, "file": file, "split": "eval", "crop": [4, 4, WIDTH, HEIGHT], "fps": 25.0,
             "frames": count, "shots": [[0, count]]}
        )  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest))
    return prepare(root, root / "cache", HEIGHT, WIDTH, progress=False)


def rendered(bundle: Bundle, shot: EvalShot, keys: list[int]) -> dict[int, np.ndarray]:
    """Every frame as the runtime shows it: the first key frame in its pair, the others as they end theirs."""
    out = {}
    with open_stream(bundle.path) as stream:
        stream.push(shot.frames[0], shot.times[0])
        for first, last in itertools.pairwise(keys):
            stream.push(shot.frames[last], shot.times[last])
            rows = range(first if first == 0 else first + 1, last + 1)
            out |= {row: stream.render(shot.times[row]).rgb for row in rows}
    return out


def means(meter: Meter, shot: EvalShot, pictures: dict[int, np.ndarray]) -> dict[str, float]:
    values = [meter(shot.frames[row], {"x": picture})["x"] for row, picture in pictures.items()]
    return {metric: float(np.mean([v[metric] for v in values])) for metric in meter.metrics}


def test_scores_are_those_of_the_frames_the_runtime_renders(bundle: Bundle, cache: Cache) -> None:
    (shot,) = eval_clips(cache)
    keys = [0, 3, 6, 8]
    pictures = rendered(bundle, shot, keys)
    result = evaluate(bundle.path, cache)
    clip = result["clips"]["held_out"]
    assert (result["gap"], result["split"], clip["frames"]) == (3, "eval", 9)
    meter = Meter()
    assert set(result["metrics"]) == set(meter.metrics)
    groups = {
        "key": {row: pictures[row] for row in keys},
        "between": {row: picture for row, picture in pictures.items() if row not in keys},
        "all": pictures,
    }
    assert len(groups["between"]) == 5
    for name, group in groups.items():
        want = means(meter, shot, group)
        assert clip[name] == pytest.approx(want.pop("psnr"), abs=1e-3)
        for metric, value in want.items():
            assert clip[metric][name] == pytest.approx(value, abs=6e-4), metric
    assert result["average"] == {name: clip[name] for name in result["average"]}
    json.dumps(result, allow_nan=False)


def test_baselines_are_measured_on_the_same_frames(bundle: Bundle, cache: Cache) -> None:
    result = evaluate(bundle.path, cache)
    clip = result["clips"]["held_out"]
    assert set(NAMES) <= set(clip) and all(set(clip[m]) == set(NAMES) for m in ("ssim", "psnr_256"))
    other = baselines.measure(cache, gap=3)["clips"]["held_out"]
    for name in ("blend", "nearest", "dis"):
        assert clip[name] == pytest.approx(other[name], abs=1e-3)
    (shot,) = eval_clips(cache)
    pictures = rendered(bundle, shot, [0, 3, 6, 8])
    with open_stream(bundle.path) as stream:  # key frames as their own pair begins
        for row, first, last in ((1, 0, 3), (4, 3, 6), (7, 6, 8)):
            stream.reset()
            stream.push(shot.frames[first], shot.times[first])
            stream.push(shot.frames[last], shot.times[last])
            ends = (stream.render(shot.times[k]).rgb for k in (first, last))
            pictures[row] = baselines.blend(*ends, (row - first) / (last - first))
            if last - first == 3:
                ends = (stream.render(shot.times[k]).rgb for k in (first, last))
                pictures[row + 1] = baselines.blend(*ends, 2 / 3)
    blended = np.mean([psnr(pictures[row], shot.frames[row]) for row in (1, 2, 4, 5, 7)])
    # Frames 6 to 8 need not be evenly spaced in time: the middle one is only nearly at one half.
    assert clip["rendered_blend"] == pytest.approx(blended, abs=0.05)


def test_pairs_without_frames_in_between_have_no_such_scores(bundle: Bundle, cache: Cache) -> None:
    result = evaluate(bundle.path, cache, gap=1)
    for scores in (result["average"], result["clips"]["held_out"]):
        assert set(scores) & set(NAMES) == {"key", "all"} == set(scores["ssim"])
    average = next(line for line in format_table(result).splitlines() if line.startswith("average "))
    assert average.split().count("-") == 5
    json.dumps(result, allow_nan=False)


def test_the_papers_protocol_takes_whole_pairs(bundle: Bundle, long_cache: Cache) -> None:
    """Four in between: frames 0-5-10 of the long clip, 0-5 of the short one. Eight: 0-9 of the long one."""
    result = evaluate(bundle.path, long_cache, paper=True)
    assert result["gap"] == 3 and result["clips"]["long"]["frames"] == 13
    middle, interpolation = (result["paper"][name] for name in ("middle_4", "interpolation_8"))
    assert (middle["gap"], interpolation["gap"]) == (5, 9)
    assert {name: clip["frames"] for name, clip in middle["clips"].items()} == {"long": 11, "short": 6}
    assert {name: clip["frames"] for name, clip in interpolation["clips"].items()} == {"long": 10}
    long, short = eval_clips(long_cache)
    meter = Meter()
    for part, shot, keys in (
        (middle, long, [0, 5, 10]),
        (middle, short, [0, 5]),
        (interpolation, long, [0, 9]),
    ):
        pictures = rendered(bundle, shot, keys)
        between = {row: picture for row, picture in pictures.items() if row not in keys}
        clip = part["clips"][shot.clip]
        want = means(meter, shot, between)
        assert clip["between"] == pytest.approx(want["psnr"], abs=1e-3)
        assert clip["ssim_256"]["between"] == pytest.approx(want["ssim_256"], abs=1e-4)
    both = [middle["clips"][name]["ssim"]["dis"] for name in ("long", "short")]
    assert middle["average"]["ssim"]["dis"] == pytest.approx(np.mean(both), abs=1e-4)
    text = format_table(result)
    assert "middle_4, gap 5" in text and f"{interpolation['average']['between']:.2f}" in text


def test_lpips_needs_weights_and_is_measured_with_them(
    bundle: Bundle, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lpips = narrow(monkeypatch, "alex")
    save_file(lpips.state_dict(), str(tmp_path / "lpips.safetensors"))
    result = evaluate(bundle.path, cache, gap=8, lpips=tmp_path / "lpips.safetensors")
    (shot,) = eval_clips(cache)
    pictures = rendered(bundle, shot, [0, 8])
    want = means(Meter(lpips), shot, pictures)
    for metric in ("lpips", "lpips_256"):
        assert want[metric] > 1e-3
        assert result["average"][metric]["all"] == pytest.approx(want[metric], abs=6e-5)
    assert "lpips_256" in format_table(result)


def test_the_picture_shows_a_typical_and_the_worst_frame_of_each_clip(
    bundle: Bundle, cache: Cache, tmp_path: Path
) -> None:
    path = tmp_path / "sheet.png"
    evaluate(bundle.path, cache, picture=path)
    sheet = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    (shot,) = eval_clips(cache)
    pictures = rendered(bundle, shot, [0, 3, 6, 8])
    order = sorted((1, 2, 4, 5, 7), key=lambda row: psnr(pictures[row], shot.frames[row]))

    def shows(image: np.ndarray) -> list[tuple[int, int]]:
        """Where the lowest third of an image is (a number is written over the top), as (x, y)."""
        part = np.ascontiguousarray(image[2 * HEIGHT // 3 :])
        distance = cv2.matchTemplate(sheet, part, cv2.TM_SQDIFF_NORMED)  # rounds: only candidates
        places = [(int(x), int(y)) for y, x in np.argwhere(distance < 1e-3)]
        return [(x, y) for x, y in places if np.array_equal(sheet[y:, x:][: len(part), :WIDTH], part)]

    tops = []
    for row in (order[2], order[0]):  # the median and the worst of five
        (truth,), (ours,) = shows(shot.frames[row]), shows(pictures[row])
        assert ours[1] == truth[1] and ours[0] == truth[0] + WIDTH + 8
        error = np.minimum(4 * np.abs(pictures[row].astype(int) - shot.frames[row]), 255).astype(np.uint8)
        assert (truth[0] + 4 * (WIDTH + 8), truth[1]) in shows(error)
        tops.append(truth[1])
    assert tops == sorted(tops) and not shows(shot.frames[order[1]])


def test_progress_goes_to_stderr(bundle: Bundle, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(bundle.path, cache, progress=True)
    captured = capsys.readouterr()
    assert "9/9" in captured.err and captured.out == ""


def test_what_cannot_be_measured_is_refused(bundle: Bundle, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clip in the split 'test'"):
        evaluate(bundle.path, cache, split="test")
    other = build_fake_bundle(tmp_path / "other.bundle", height=HEIGHT, width=WIDTH + 8)
    with pytest.raises(InputError, match="holds frames of 80x48, the bundle takes 88x48") as error:
        evaluate(other.path, cache)
    assert "--height 48 --width 88" in error.value.hint
    with pytest.raises(InputError, match="A gap of 9 needs a shot of 10 frames; the longest here has 9"):
        evaluate(bundle.path, cache, gap=9)
    with pytest.raises(InputError, match="A gap of 9 needs a shot of 10 frames") as error:
        evaluate(bundle.path, cache, paper=True)
    assert "no --paper" in error.value.hint
    with pytest.raises(InputError, match="the picture would be empty"):
        evaluate(bundle.path, cache, gap=1, picture=tmp_path / "sheet.png")
    with pytest.raises(InputError, match="LPIPS weights cannot be read"):
        evaluate(bundle.path, cache, lpips=tmp_path / "none.safetensors")
