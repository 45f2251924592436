"""Which pairs are recorded, what of them, and that a recording goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_bundle import QUANTISED
from video_samples import write_video

from streamsplat_edge.calibration import activations, recording, videos
from streamsplat_edge.calibration.layers import find_layers
from streamsplat_edge.calibration.observe import observe_parts
from streamsplat_edge.calibration.ranges import Histogram
from streamsplat_edge.export.stage_engines import Recorder, file_engines, files_of
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import InputError, OutputError, VideoError
from streamsplat_edge.runtime.stream import Stream

GAP = 4


@pytest.fixture(scope="module")
def shots(clips: Path) -> list[list[videos.Pair]]:
    return videos.survey(videos.find_videos([clips / "videos"]), GAP)


def test_shots_are_found_and_pairs_stay_inside(shots: list[list[videos.Pair]]) -> None:
    assert [len(shot) for shot in shots] == [5] * 6
    for i, shot in enumerate(shots):
        start = 22 * (i % 3)
        assert [(p.first - start, p.last - start) for p in shot] == [
            (0, 4),
            (4, 8),
            (8, 12),
            (12, 16),
            (16, 20),
        ]


def test_repeated_pictures_add_nothing(tmp_path: Path) -> None:
    still = [np.full((48, 64, 3), 90, np.uint8)] * 40
    moving = [
        np.roll(np.eye(48, 64, dtype=np.uint8)[..., None].repeat(3, 2) * 200, 3 * i, 1) for i in range(20)
    ]
    path = write_video(tmp_path / "v.mp4", still + moving)
    (first, *_), *_ = videos.survey([path], GAP)
    pairs = [p for shot in videos.survey([path], GAP) for p in shot]
    assert first.first == 0 and sum(p.last < 40 for p in pairs) == 1, "of the still part, one pair"
    assert sum(p.first >= 40 for p in pairs) >= 3


def test_the_choice_is_balanced_and_repeatable() -> None:
    def shot(number: int, length: int) -> list[videos.Pair]:
        return [videos.Pair("v", number, 4 * i, 4 * i + 4) for i in range(length)]

    shots = [shot(0, 100), shot(1, 3), shot(2, 50)]
    chosen = videos.choose(shots, 31)
    assert [sum(p.shot == i for p in chosen) for i in range(3)] == [14, 3, 14]
    assert chosen == videos.choose(shots, 31) and len(set(chosen)) == 31
    numbers = [p.first for p in chosen if p.shot == 0]
    assert numbers == sorted(numbers) and numbers[0] < 40 and numbers[-1] > 350, "spread over the shot"
    assert len(videos.choose(shots, 1000)) == 153
    few = videos.choose([shot(i, 5) for i in range(40)], 4)
    assert [p.shot for p in few] == [0, 13, 26, 39], "spread over shots where there are more than pairs"


def test_what_is_measured_is_not_calibrated_on(shots: list[list[videos.Pair]]) -> None:
    rest, held = videos.hold_out(shots)
    assert (
        len(held) == 2 and len(rest) == 4 and not {p for s in rest for p in s} & {p for s in held for p in s}
    )
    rest, held = videos.hold_out(shots[:2])
    assert [len(s) for s in rest] == [4, 4] and [len(s) for s in held] == [1, 1]
    assert all(a[-1].last <= b[0].first for a, b in zip(rest, held, strict=True)), "the end of each shot"
    with pytest.raises(InputError, match="too little video"):
        videos.hold_out([shots[0][:1]])


def test_videos_are_found(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [p.name for p in videos.find_videos([clips, clips / "other.mp4"])] == [
        "other.mp4",
        "a.mp4",
        "b.mp4",
    ]
    with pytest.raises(InputError, match="does not exist"):
        videos.find_videos([tmp_path / "missing"])
    with pytest.raises(InputError, match="no videos in"):
        videos.find_videos([tmp_path])
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        videos.survey([bad], GAP)
    assert len(videos.survey([bad, clips / "other.mp4"], GAP)) == 1
    assert "left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="No shot of the videos is longer than 30 frames"):
        videos.survey([clips / "other.mp4"], 30)


def test_a_recording_is_what_the_pipeline_computes(
    bundle: Bundle, shots: list[list[videos.Pair]], tmp_path: Path
) -> None:
    pairs = videos.choose(shots, 3)
    found = recording.record(bundle, pairs, tmp_path / "rec")
    opened = file_engines(files_of(bundle, "fp32", "onnxruntime", tmp_path), "onnxruntime")
    recorders = {stage: Recorder(engine) for stage, engine in opened.items()}
    with Stream(bundle, recorders) as stream:
        for _, (first, last), seconds in videos.read_pairs(pairs):
            stream.reset()
            stream.push(first, 0.0)
            stream.push(last, seconds)
    for stage, recorder in recorders.items():
        calls = list(found.calls(stage, recorder.inputs))
        assert len(calls) == (3 if stage == "deform" else 6)
        for got, (expected, _) in zip(calls, recorder.calls, strict=True):
            assert got.keys() == expected.keys()
            assert all(np.array_equal(got[name], expected[name]) for name in expected)


def test_an_interrupted_recording_goes_on(
    bundle: Bundle, shots: list[list[videos.Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, folder = videos.choose(shots, 4), tmp_path / "rec"
    whole = recording.record(bundle, pairs, tmp_path / "whole")
    real, seen = recording.read_pairs, []

    def stops(wanted: list[videos.Pair]):
        for i, item in enumerate(real(wanted)):
            if i == 2:
                raise KeyboardInterrupt
            seen.append(item[0])
            yield item

    monkeypatch.setattr(recording, "read_pairs", stops)
    with pytest.raises(KeyboardInterrupt):
        recording.record(bundle, pairs, folder)
    assert (folder / "done").read_text() == "2"
    resumed = recording.record(bundle, pairs, folder)
    assert seen == pairs, "each pair was run once"
    monkeypatch.setattr(recording, "read_pairs", lambda _: pytest.fail("all is there"))
    assert len(recording.record(bundle, pairs, folder)) == 4
    inputs = bundle.variants("deform")[0].inputs
    for a, b in zip(resumed.calls("deform", inputs), whole.calls("deform", inputs), strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_another_recording_starts_anew_and_strangers_are_left_alone(
    bundle: Bundle, shots: list[list[videos.Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rec"
    recording.record(bundle, videos.choose(shots, 3), folder)
    assert len(recording.record(bundle, videos.choose(shots, 2), folder)) == 2
    assert np.load(folder / "tokens.npy").shape[0] == 4
    (folder / "recording.json").write_text(json.dumps({"key": "other"}))
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files"):
        recording.record(bundle, videos.choose(shots, 2), folder)
    assert (folder / "thesis.txt").read_text() == "mine"
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(recording.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"2 samples take .* GB"):
        recording.record(bundle, videos.choose(shots, 2), tmp_path / "full")


def test_statistics_are_those_of_the_tensors(
    bundle: Bundle, shots: list[list[videos.Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against all values of the tensors at once; groups of one tensor give the same as one group."""
    found = recording.record(bundle, videos.choose(shots, 2), tmp_path / "rec")
    variant = bundle.variants("encode")[0]
    model = onnx.load(variant.path)
    layers = [layer for layer in find_layers(model) if layer.node in QUANTISED["encode"]]
    names = [layer.activations[0] for layer in layers]

    def collect() -> dict[str, activations.Activation]:
        return activations.collect(
            model, layers, lambda: found.calls("encode", variant.inputs), stage="encode"
        )

    seen = collect()
    session = activations.open_session(activations._with_outputs(model, names))
    rows = [session.run(names, call) for call in found.calls("encode", variant.inputs)]
    for i, name in enumerate(names):
        whole = np.stack([row[i] for row in rows])
        expected = Histogram()
        for row in rows:
            expected.add(row[i])
        assert seen[name].histogram.top == np.abs(whole).max()
        assert np.array_equal(seen[name].histogram.counts, expected.counts)
        assert np.array_equal(seen[name].channels, np.abs(whole).reshape(-1, whole.shape[-1]).max(0))
    monkeypatch.setattr(activations, "_BUDGET", 1)
    assert len(activations._groups(model, names)) == len(names) == 3
    again = collect()
    assert all(np.array_equal(again[n].histogram.counts, seen[n].histogram.counts) for n in names)
    first, second = observe_parts(variant, layers, found, [[1], [0]])
    assert not np.array_equal(first[names[0]].histogram.counts, second[names[0]].histogram.counts)
    for name in names:
        first[name].merge(second[name])
        assert np.array_equal(first[name].histogram.counts, seen[name].histogram.counts)
        assert np.array_equal(first[name].channels, seen[name].channels)


def test_nan_names_the_layer(bundle: Bundle) -> None:
    model = onnx.load(bundle.variants("encode")[0].path)
    layers = [layer for layer in find_layers(model) if layer.node == "refine/Conv"]
    broken = np.zeros((1, 4, 16, 32), np.float32)
    broken[0, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="Layer refine/Conv of stage encode reads NaN or infinity"):
        activations.collect(model, layers, lambda: [{"rgbd": broken}], stage="encode")
