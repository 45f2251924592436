"""`bench`: what its report holds, that numbers agree with the samples, and that what is missing is named."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge.benchmarks import table
from streamsplat_edge.benchmarks.bench import backends, cli, compare, measure, picture, report, summary
from streamsplat_edge.benchmarks.bench.published import PublishedStream
from streamsplat_edge.cli import main
from streamsplat_edge.runtime import engines
from streamsplat_edge.runtime.engines import Engine, ForwardingEngine
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.timing import summarise

FRAMES = 18


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> backends.Request:
    folder = tmp_path_factory.mktemp("bench")
    build_fake_bundle(folder / "fake.bundle")
    clip = sample_clip(folder / "clip.mp4", FRAMES)
    return backends.Request(folder / "fake.bundle", str(clip), threads=1, warm_up=4, paced=200.0)


@pytest.fixture(scope="module")
def result(request_: backends.Request) -> dict[str, Any]:
    """The report of the backends that need no GPU, measured in this process."""
    return report.bench(request_, cli._BACKENDS, "cpu", measure.measure_backend)


def entry(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(backend for backend in result["backends"] if backend["name"] == name)


def test_the_command_offers_all_backends() -> None:
    assert tuple(backend.name for backend in backends.BACKENDS) == cli._BACKENDS


def test_numbers_agree_with_the_samples(result: dict[str, Any]) -> None:
    backend = entry(result, "onnxruntime")
    assert backend["status"] == "measured" and backend["frames"] == {"total": FRAMES, "key": 6, "cuts": 0}
    for stage, samples in backend["samples_ms"].items():
        for name, value in summarise(np.array(samples)).items():
            near = 0.05 if name == "cv" else 1e-3  # of rounded samples: of microseconds it is coarse
            assert backend["latency_ms"][stage][name] == pytest.approx(value, abs=near, rel=1e-2), stage
    assert len(backend["samples_ms"]["capture_to_present"]) == FRAMES
    live = backend["paced"]
    assert live["frames"] + live["dropped"] == FRAMES
    memory = backend["memory"]
    assert memory["peak_mib"] >= max(memory["samples_mib"]) - 1 and len(memory["samples_mib"]) == FRAMES
    assert memory["slope"]["samples"] == FRAMES // 2
    assert backend["gaussians"]["tile_pairs_per_frame"] > 0
    assert sum(picture.shares(backend).values()) == pytest.approx(
        1e3 / backend["throughput"]["chain_fps"], rel=1e-3
    )


def test_missing_backends_say_why(result: dict[str, Any]) -> None:
    assert "no weights for PyTorch" in entry(result, "torch-eager")["reason"]
    assert entry(result, "torch-eager")["status"] == "not available"
    assert "int8" in entry(result, "onnxruntime-int8")["reason"]
    assert entry(result, "tensorrt") == {
        "name": "tensorrt",
        "title": "TensorRT",
        "status": "left out",
        "reason": "--device cpu",
    }


def test_random_weights_are_warned_of(result: dict[str, Any]) -> None:
    assert any("may be random" in text for text in entry(result, "onnxruntime")["warnings"])
    values = {
        "latency_ms": {"render": {"cv": 0.02}, "encode": {"cv": 0.03}},
        "throttling": ["hot"],
        "psnr_db": {"key_frames": {"mean": 9.0}},
    }
    found = measure.warnings(values, {"checkpoint_sha256": "0"})
    assert [text.split(",")[0] for text in found] == [
        "not steady",
        "the machine was held back: hot",
        "key frames have 9.0 dB",
    ]
    assert "encode" in found[0] and "render" not in found[0]
    calm = {"latency_ms": {}, "throttling": [], "psnr_db": {"key_frames": {"mean": 40.0}}}
    assert measure.warnings(calm, {"checkpoint_sha256": "0"}) == []


def test_files(result: dict[str, Any], tmp_path: Path) -> None:
    report.write(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report.FILES)
    assert json.loads((tmp_path / "bench.json").read_text())["format"] == "streamsplat-bench"
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [row["backend"] for row in rows] == list(cli._BACKENDS)
    assert {row["status"] for row in rows} == {"measured", "not available", "left out"}
    measured = [row for row in rows if row["status"] == "measured"]
    assert measured and all(row["J/frame"] == "not measured" or float(row["J/frame"]) > 0 for row in measured)
    samples = [row for row in csv.DictReader((tmp_path / "samples.csv").open())]
    own = [
        row
        for row in samples
        if (row["backend"], row["stage"], row["mode"]) == ("onnxruntime", "render", "free")
    ]
    assert [float(row["milliseconds"]) for row in own] == entry(result, "onnxruntime")["samples_ms"]["render"]
    assert "| tensorrt | left out |" in (tmp_path / "table.md").read_text()
    assert "| tensorrt | left out |" in "\n".join(table.table(tmp_path / "bench.json"))
    text = "\n".join(summary.text(result))
    assert "tensorrt: left out: --device cpu" in text and "capture_to_present" in text


def test_key_frames_by_graphs(result: dict[str, Any]) -> None:
    """What a GPU measures instead of the stages; here with made-up samples."""
    graphs = copy.deepcopy(result)
    backend = next(b for b in graphs["backends"] if b["status"] == "measured")
    assert summary.row(backend)[3] != "in graph"
    before = picture.draw(graphs).shape[0]
    backend["samples_ms"]["graph"] = [1.0, 2.0]
    backend["latency_ms"]["graph"] = summarise(np.array([1.0, 2.0]))
    assert summary.row(backend)[3:5] == ["in graph"] * 2
    measured = sum(b["status"] == "measured" for b in graphs["backends"])
    assert picture.draw(graphs).shape[0] == before + measured * 2 * picture._PITCH


def test_picture(result: dict[str, Any]) -> None:
    image = picture.draw(result)
    assert image.shape[1:] == (picture.WIDTH, 3)
    nothing = copy.deepcopy(result)
    nothing["backends"] = [measure.left_out(name, "no") for name in cli._BACKENDS]
    assert picture.draw(nothing).shape[0] < image.shape[0]
    bars = (image == picture.AMBER).all(2)[:, picture._LABEL + picture._PLOT :].any(0)
    assert not (picture.draw(nothing) == picture.AMBER).all(2).any() and bars.sum() > picture._PLOT // 4


def test_comparison_marks_what_is_worse(result: dict[str, Any]) -> None:
    same = compare.compare(result, result)
    assert same["regressions"] == 0 and same["differences"] == []
    assert {row["verdict"] for row in same["rows"]} == {"same"}
    worse = copy.deepcopy(result)
    backend = entry(worse, "onnxruntime")
    backend["throughput"]["fps"] *= 0.9
    backend["latency_ms"]["encode"]["p50"] *= 0.5
    backend["psnr_db"]["key_frames"]["mean"] -= 1
    worse["protocol"]["gap"] = 5
    found = compare.compare(worse, result)
    verdicts = {row["measure"]: row["verdict"] for row in found["rows"] if row["backend"] == "onnxruntime"}
    assert verdicts["frames per second"] == verdicts["PSNR key frames"] == "regressed"
    assert verdicts["encode p50 ms"] == "improved" and verdicts["render p50 ms"] == "same"
    assert found["regressions"] == 2 and found["differences"] == ["other gap than in the earlier run"]
    text = "\n".join(compare.lines(found))
    assert "REGRESSED onnxruntime, frames per second" in text and "(-10.0 %)" in text
    backend.update(status="failed", reason="broken")
    assert compare.compare(worse, result)["no_longer_measured"] == ["onnxruntime"]


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"format": "streamsplat-fps"}'])
def test_other_files_are_no_earlier_run(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"x\.json"):
        compare.read(path)


def test_a_backend_that_breaks_is_listed(
    request_: backends.Request, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(measure, "measure_stream", broken)
    found = measure.measure_backend("onnxruntime", request_)
    assert (found["status"], found["reason"]) == ("failed", "RuntimeError: first line")
    assert "second line" in capsys.readouterr().err


def test_weights_must_be_those_of_the_bundle(tmp_path: Path, request_: backends.Request) -> None:
    bundle = backends.Bundle.load(request_.bundle)
    with pytest.raises(InputError, match=r"there is no .*w\.safetensors"):
        backends.find_checkpoint(bundle, tmp_path / "w.safetensors")
    demo = backends.Bundle.load(Path(__file__).resolve().parents[2] / "demo" / "tiny.bundle")
    assert backends.find_checkpoint(demo, None).name == "model.safetensors"
    (tmp_path / "w.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="is not what"):
        backends.find_checkpoint(demo, tmp_path / "w.safetensors")


class Counted(ForwardingEngine):
    """Counts the runs of another engine."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.runs = 0

    def run(self, inputs: Any, outputs: Any) -> None:
        self.runs += 1
        self.inner.run(inputs, outputs)


def test_the_published_schedule_encodes_both_frames_of_a_pair(request_: backends.Request) -> None:
    bundle = backends.Bundle.load(request_.bundle)

    def open_as(kind: type[Stream]) -> tuple[Stream, Counted]:
        stages: dict[str, Engine] = {
            name: engines.create("onnxruntime", bundle.variants(name)[0], threads=1)
            for name in bundle.stage_names
        }
        counted = stages["encode"] = Counted(stages["encode"])
        return kind(bundle, stages, threads=1), counted

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 16, 32, 3), np.uint8)
    (ours, once), (published, twice) = open_as(Stream), open_as(PublishedStream)
    with ours, published:
        for number, image in enumerate(images):
            cut = number == 3
            for stream in (ours, published):
                stream.push(image, float(number), cut=cut)
            np.testing.assert_array_equal(ours.render().rgb, published.render().rgb)
    # Pairs 0-1, 1-2 and, after the cut, 3-4: two each.
    assert (once.runs, twice.runs) == (5, 6)


def test_command_on_the_demo_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real thing, in a process of its own."""
    demo = str(Path(__file__).resolve().parents[2] / "demo" / "tiny.bundle")
    words = ["bench", demo, "--backends", "onnxruntime", "--frames", "12", "--warm-up", "5"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    backend = entry(written, "onnxruntime")
    assert backend["psnr_db"]["key_frames"]["mean"] > 35 and backend["frames"]["total"] == 12
    assert written["bundle"]["files"]["encode/encode.onnx"]["inputs"] == {"rgbd": [1, 4, 144, 256]}
    assert not any("random" in text for text in backend["warnings"])
    shown = capsys.readouterr().out
    assert "slope of memory not measured: fewer than 16 frames" in shown
    assert "late and dropped frames not measured" in shown and "power not measured: " in shown
    assert main([*words, "-o", str(tmp_path / "out")]) == 2  # is there already
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--backends", "cudnn"], ["--paced", "0"], ["--frames", "-1"], ["--warm-up", "0"]]
)
def test_bad_options_are_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["bench", "demo/tiny.bundle", *option])
    assert refused.value.code == 2


def test_bad_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path / "none.bundle")]) == 2
    assert main(["bench", "b", "--compare", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
