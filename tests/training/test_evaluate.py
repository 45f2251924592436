"""Evaluation as the runtime renders, on a bundle whose outputs are known by formula."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from media_samples import HEIGHT, WIDTH

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.stream import open_stream
from streamsplat_edge.training.baselines import psnr
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import eval_clips
from streamsplat_edge.training.evaluate import evaluate, format_table


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return build_fake_bundle(folder / "fake.bundle", height=HEIGHT, width=WIDTH, key_frame_gap=3)


def test_scores_are_those_of_the_frames_the_runtime_renders(bundle: Bundle, cache: Cache) -> None:
    (shot,) = eval_clips(cache)
    frames, times = shot.frames, shot.times
    keys = [0, 3, 6, 8]
    rendered = {}
    with open_stream(bundle.path) as stream:
        stream.push(frames[0], times[0])
        for first, last in itertools.pairwise(keys):
            stream.push(frames[last], times[last])
            # The first key frame counts as it looks in its pair, the others as they end theirs.
            rows = range(first if first == 0 else first + 1, last + 1)
            rendered |= {row: psnr(stream.render(times[row]).rgb, frames[row]) for row in rows}
    result = evaluate(bundle.path, cache)
    clip = result["clips"]["held_out"]
    assert (result["gap"], result["split"], clip["frames"]) == (3, "eval", 9)
    assert clip["key"] == pytest.approx(np.mean([rendered[k] for k in keys]), abs=1e-3)
    between = [value for row, value in rendered.items() if row not in keys]
    assert len(between) == 5 and clip["between"] == pytest.approx(np.mean(between), abs=1e-3)
    assert result["average"] == {name: clip[name] for name in result["average"]}
    line = format_table(result).splitlines()[-1]
    assert line.startswith("average") and f"{clip['key']:.2f}" in line
    json.dumps(result, allow_nan=False)


def test_pairs_without_frames_in_between_have_no_such_scores(bundle: Bundle, cache: Cache) -> None:
    result = evaluate(bundle.path, cache, gap=1)
    assert set(result["average"]) == {"key"} and set(result["clips"]["held_out"]) == {"key", "frames"}
    assert format_table(result).splitlines()[-1].split()[-4:] == ["-"] * 4
    json.dumps(result, allow_nan=False)


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
