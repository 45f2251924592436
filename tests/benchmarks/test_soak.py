"""The soak benchmark: its questions, on a stream of known behaviour, and that it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge.benchmarks import memory, soak, soak_watch, table
from streamsplat_edge.runtime.lifecycle import Lifecycle
from streamsplat_edge.runtime.stream import Stream


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("soak")
    build_fake_bundle(folder / "fake.bundle")
    clip = sample_clip(folder / "clip.mp4", 9)
    return [str(clip), "--bundle", str(folder / "fake.bundle"), "--every", "5", "--threads", "1"]


def run(inputs: list[str], tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = soak.main([*inputs, "--clip-frames", "9", *options, "--json", str(tmp_path / "out.json")])
    return code, json.loads((tmp_path / "out.json").read_text())


def test_a_run(inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(inputs, tmp_path, "--frames", "403")
    assert code == 0 and result["finished"] and result["protocol"]["frames_run"] == 403
    assert result["exact"]["violations"] == []
    assert result["repeats"]["largest_difference"] == 0 and result["repeats"]["frames_compared"] > 200
    (gaussians,) = result["exact"]["gaussians"]
    assert gaussians["key_frames"] == 102 and gaussians["spawned"] == 102 * 128
    assert gaussians["retired"] == 100 * 128 and gaussians["peak_alive"] == 256
    assert len(result["memory"]["samples_mib"]) == 80 and result["memory"]["slope"]["samples"] == 40
    assert abs(result["memory"]["slope"]["bytes_per_frame"]) < 50_000
    quality = result["psnr_db"]["in_between"]
    assert quality["first_minute"] == pytest.approx(quality["last_minute"])
    assert "violations" in capsys.readouterr().out
    lines = table.table(tmp_path / "out.json")
    assert "**403 frames**" in lines[0] and "| violations of ids, order or counters | 0 |" in lines
    assert any("in between, dB |" in line for line in lines) and any(
        "bytes per frame" in line for line in lines
    )


def test_it_goes_on_where_it_stopped(inputs: list[str], tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state.json"))
    code, result = run(inputs, tmp_path, "--frames", "60", *state)
    assert code == 0 and result["finished"]
    code, result = run(inputs, tmp_path, "--frames", "150", "--seconds", "0", *state)
    assert not result["finished"] and 60 <= result["protocol"]["frames_run"] < 150
    code, result = run(inputs, tmp_path, "--frames", "150", *state)
    assert code == 0 and result["protocol"]["frames_run"] == 150 and result["protocol"]["processes"] >= 2
    assert result["repeats"]["largest_difference"] == 0
    code, again = run(inputs, tmp_path, "--frames", "150", *state)
    assert again["protocol"] == result["protocol"], "nothing was left to do"


def test_a_state_of_another_run_is_refused(inputs: list[str], tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    assert run(inputs, tmp_path, "--frames", "20", "--state", str(state))[0] == 0
    assert soak.main([*inputs, "--clip-frames", "5", "--frames", "20", "--state", str(state)]) == 2
    state.write_text("{}")
    assert soak.main([*inputs, "--frames", "20", "--state", str(state)]) == 2


def test_wrong_ids_are_noticed(inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Lifecycle.ids.fget
    assert real is not None
    monkeypatch.setattr(Lifecycle, "ids", property(lambda self: np.minimum(real(self), 300)))
    code, result = run(inputs, tmp_path, "--frames", "30")
    assert code == 1 and "ids repeat" in result["exact"]["violations"][0]


def test_drifting_pictures_are_noticed(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Stream.render_many, [0]

    def fading(self: Stream, *args: Any, **kwargs: Any) -> Any:
        for frame in real(self, *args, **kwargs):
            calls[0] += 1
            frame.rgb[...] = np.maximum(frame.rgb, min(255, calls[0] // 4))
            yield frame

    monkeypatch.setattr(Stream, "render_many", fading)
    _, result = run(inputs, tmp_path, "--frames", "200")
    assert result["repeats"]["largest_difference"] > 5


@pytest.mark.parametrize("depth_stage", [False, True])
def test_pictures_may_differ_while_the_depth_range_settles(
    depth_stage: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_fake_bundle(tmp_path / "fake.bundle", depth_stage=depth_stage)
    inputs = [str(sample_clip(tmp_path / "clip.mp4", 9)), "--bundle", str(tmp_path / "fake.bundle")]
    real = soak_watch.Watch.check

    def early_ones_differ(self: soak_watch.Watch, rendered: Any) -> None:
        if rendered.source.index < 60:
            rendered.frame.rgb[...] ^= 7
        real(self, rendered)

    monkeypatch.setattr(soak_watch.Watch, "check", early_ones_differ)
    monkeypatch.setattr(soak_watch, "SETTLE_SECONDS", 2.0)  # 50 frames, so the fifth round of 16
    code, result = run([*inputs, "--threads", "1"], tmp_path, "--frames", "130")
    assert code == 0 and result["repeats"]["frames_compared"] > 30
    assert (result["repeats"]["largest_difference"] == 0) == depth_stage


def test_memory_is_sampled_less_often_rather_than_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(memory, "resident_mib", lambda: 2.0 * now[0])
    samples = memory.Samples(every=5, capacity=8)
    for now[0] in range(1, 401):
        samples.add(now[0])
    rows = samples.rows()
    assert len(rows) < 8 and samples.every == 80 and rows[-1][0] == 400
    assert [frame for frame, _ in rows] == list(range(80, 401, 80))
    assert all(mib == 2.0 * frame for frame, mib in rows)


def test_slope() -> None:
    rng = np.random.default_rng(0)
    frames = np.arange(0, 10_000, 50)
    noise = rng.normal(0, 0.1, len(frames))
    for bytes_per_frame in (0, 1000):
        rows = [[float(f), 200 + f * bytes_per_frame / 2**20 + e] for f, e in zip(frames, noise, strict=True)]
        measured = soak.slope(rows)
        assert measured is not None
        assert abs(measured["bytes_per_frame"] - bytes_per_frame) < measured["interval_95"] < 200
    assert soak.slope(rows[:14]) is None


@pytest.mark.parametrize(
    ("steps", "grows"), [([5500], False), ([7500], False), (range(0, 10_000, 300), True)]
)
def test_a_step_is_no_slope(steps: Iterable[int], grows: bool) -> None:
    """An allocator takes pages now and then; a leak takes them again and again."""
    rows = [[float(f), 200 + sum(f >= step for step in steps) / 16] for f in range(0, 10_000, 50)]
    measured = soak.slope(rows)
    assert measured is not None and measured["bytes_per_frame"] > 0
    assert (measured["bytes_per_frame"] > measured["interval_95"]) == grows
