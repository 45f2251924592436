"""The benchmarks of calibration: what a row is, that nothing finished is lost, and tables; no speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import QUANTISED
from video_samples import write_video

from streamsplat_edge.benchmarks import table
from streamsplat_edge.benchmarks.calibration import __main__ as command
from streamsplat_edge.benchmarks.calibration import chain, cpu_forms, result, study
from streamsplat_edge.calibration import cpu
from streamsplat_edge.calibration.calibrate import ENOUGH
from streamsplat_edge.calibration.options import Options
from streamsplat_edge.calibration.ranges import METHODS
from streamsplat_edge.cli import main as streamsplat_edge
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.bundle_writing import VariantSource, write_bundle
from streamsplat_edge.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ["--counts", "2,4,8", "--fp8-counts", "8", "--subsets", "2"]
# 8: one subset; 4 and 2: two each. FP8 with 8 only.
ROWS = (1 + 2 + 2) * len(METHODS) + len(METHODS)


def arguments(bundle: Bundle, clips: Path, work: Path, *more: str) -> list[str]:
    return [
        *(str(bundle.path), "--data", str(clips / "videos"), "--gate-data", str(clips / "other.mp4")),
        *("--gate-samples", "2", "--work", str(work), "--json", str(work / "out.json"), "--quiet", *more),
    ]


@pytest.fixture(scope="module")
def work(pristine: Bundle, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert command.main(arguments(pristine, clips, folder, *COUNTS)) == 0
    return folder


@pytest.fixture(scope="module")
def found(work: Path) -> dict[str, Any]:
    return json.loads((work / "out.json").read_text())


def row(found: dict[str, Any], precision: str, method: str, samples: int, subset: int = 0) -> dict[str, Any]:
    names = {"precision": precision, "method": method, "samples": samples, "subset": subset}
    (one,) = [row for row in found["rows"] if names.items() <= row.items()]
    return one


def test_subsets_are_nested_and_those_of_a_size_share_nothing() -> None:
    chosen = study.subsets(32, (4, 16, 8, 32), 3)
    sizes = {n: [set(s.pairs) for s in chosen if s.samples == n] for n in (32, 16, 8, 4)}
    assert {n: len(parts) for n, parts in sizes.items()} == {32: 1, 16: 2, 8: 3, 4: 3}
    for n, parts in sizes.items():
        assert all(len(part) == n for part in parts) and len(set().union(*parts)) == n * len(parts)
        assert max(max(part) for part in parts) < 32
        assert all(max(part) - min(part) >= 32 - 2 * (32 // n) for part in parts), "from all of the recording"
    assert sizes[4][0] < sizes[8][0] < sizes[16][0] < sizes[32][0]
    with pytest.raises(InputError, match="64 samples were asked for, 32 are recorded"):
        study.subsets(32, (64,), 1)


def test_what_sets_have_in_common_is_looked_at_once() -> None:
    parts = study.shared_parts([range(8), (0, 2, 4, 6), (0, 4)])
    assert parts == {(0, 1, 2): [0, 4], (0, 1): [2, 6], (0,): [1, 3, 5, 7]}


def test_every_row_is_there(found: dict[str, Any]) -> None:
    assert found["complete"] and len(found["rows"]) == ROWS
    assert {r["layers"] for r in found["rows"]} == {sum(map(len, QUANTISED.values()))}
    assert found["protocol"]["calibrated_on"] == {"a": 4, "b": 4}
    assert found["protocol"]["measured_on"] == {"other": 2}
    for method in METHODS:
        assert row(found, "int8", method, 8)["log2"]["mean"] == 0
    far = [row(found, "int8", "minmax", 2, subset)["log2"] for subset in (0, 1)]
    assert max(one["mean"] for one in far) > 0 and all(one["largest"] >= one["mean"] for one in far)
    assert {one["layer"].split(":")[0] for one in far} <= set(QUANTISED)


@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_a_row_is_what_the_command_measures(
    method: str,
    found: dict[str, Any],
    pristine: Bundle,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`calibrate` with as many samples comes to the same frames."""
    monkeypatch.setattr(cpu, "ENGINES", ())
    out, data = tmp_path / "out.bundle", ["--data", str(clips / "videos"), "--gate-samples", "2", "--quiet"]
    gate = ["--gate-data", str(clips / "other.mp4"), "--min-psnr", "1", "--no-sensitivity"]
    options = ["-o", str(out), "--samples", "8", "--method", method]
    assert streamsplat_edge(["calibrate", str(pristine.path), *data, *gate, *options]) == 0
    assert Bundle.load(out).quantisation["gate"]["psnr_db"] == row(found, "int8", method, 8)["psnr_db"]


def test_what_is_finished_is_not_lost(
    work: Path, found: dict[str, Any], pristine: Bundle, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after some rows, the JSON has those, and the same command does the others alone."""
    (work / "scores.json").unlink()
    real, rendered = study._rendered, []

    def stops(*given: Any) -> Any:
        if len(rendered) == 3:
            raise KeyboardInterrupt
        rendered.append(given)
        return real(*given)

    monkeypatch.setattr(study, "_rendered", stops)
    monkeypatch.setattr(study, "observe_parts", lambda *_, **__: pytest.fail("ranges are there"))
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments(pristine, clips, work, *COUNTS))
    part = json.loads((work / "out.json").read_text())
    assert not part["complete"] and part["rows"] == found["rows"][: len(part["rows"])]
    assert "NOT COMPLETE" in result.words(part)
    before = len({json.dumps(r["psnr_db"]) for r in part["rows"]})
    assert len(part["rows"]) >= before >= 1
    monkeypatch.setattr(study, "_rendered", lambda *given: rendered.append(given) or real(*given))
    assert command.main(arguments(pristine, clips, work, *COUNTS)) == 0
    whole = json.loads((work / "out.json").read_text())
    assert whole["complete"] and whole["rows"] == found["rows"]
    scores = json.loads((work / "scores.json").read_text())
    assert len(rendered) == len(scores) <= ROWS, "none twice; rows of equal ranges share one"


def test_distance() -> None:
    reference = {"encode": {"a": (1.0,), "b": (4.0, 8.0)}, "deform": {"c": (0.0,)}}
    ranges = {"encode": {"a": (2.0,), "b": (4.0, 1.0)}, "deform": {"c": (1.0,)}}
    assert study.distance(ranges, reference) == {"mean": 1.3333, "largest": 3.0, "layer": "encode:b"}
    assert study.distance({"deform": {"c": (0.0,)}}, reference)["mean"] == 0


def test_table(work: Path, found: dict[str, Any]) -> None:
    text = table.document([work / "out.json"])
    for method in METHODS:
        for samples, subsets in ((2, 2), (4, 2), (8, 1)):
            assert f"| INT8 {method}, {samples} | {subsets} |" in text
        worst = row(found, "fp8", method, 8)["psnr_db"]["worst"]
        assert f"| FP8 {method}, 8 | 1 | {worst:.1f} |" in text
    both = [row(found, "int8", "entropy", 2, subset)["psnr_db"]["mean"] for subset in (0, 1)]
    low, high = f"{min(both):.1f}", f"{max(both):.1f}"
    assert (f"| {low} to {high} |" if low != high else f"| {low} |") in text


def test_settled_is_the_smallest_number_from_which_on_all_agree() -> None:
    def rows(method: str, *worst: tuple[int, float]) -> list[dict[str, Any]]:
        return [
            {"precision": "int8", "method": method, "samples": n, "psnr_db": dict(worst=w, mean=60, novel=50)}
            for n, w in worst
        ]

    found = {"rows": [*rows("mse", (8, 50), (4, 49.5), (4, 47), (2, 51)), *rows("entropy", (8, 44), (4, 43))]}
    settled, worst, *_ = result.settled(found)
    assert settled.endswith("largest number: mse 8, entropy 4")
    assert worst.endswith("best first: mse 50.0, entropy 44.0")


def test_the_defaults_are_what_was_measured() -> None:
    """Where another network turns this round: change the default, and what docs/quantise.md says about it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "calibration-tiny.json").read_text())
    assert found["complete"]
    default = Options().method
    for name, margin in (("worst", result.SETTLED), ("mean", 1.0), ("novel", result.SETTLED)):
        order = result.ranking(found, name)
        assert next(value for value, method in order if method == default) >= order[0][0] - margin, name
    assert result.ranking(found, "worst")[-1][1] == result.ranking(found, "novel")[-1][1] == "entropy"
    assert result.enough(found)[default] <= ENOUGH <= Options().samples


def test_refusals(pristine: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(pristine.path), "--work", str(tmp_path), "--quiet"]) == 2
    assert "Give --data and --gate-data, or --media" in capsys.readouterr().err
    assert command.main(arguments(pristine, clips, tmp_path, "--counts", "512")) == 2
    assert "have 30 pairs of key frames, 512 were asked for" in capsys.readouterr().err


def test_a_media_folder_is_split_as_it_says(pristine: Bundle, clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    entry = {"fps": 25.0, "crop": [0, 0, 64, 48], "shots": [[0, 22]], "frames": 22}
    files = {"videos/a.mp4": "train", "other.mp4": "eval"}
    entries = [entry | {"name": Path(f).stem, "file": str(clips / f), "split": s} for f, s in files.items()]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    options = ["--media", str(tmp_path), "--work", str(tmp_path), "--json", str(tmp_path / "o.json")]
    counts = ["--counts", "2", "--fp8-counts", "", "--gate-samples", "1", "--quiet"]
    assert command.main([str(pristine.path), *options, *counts]) == 0
    protocol = json.loads((tmp_path / "o.json").read_text())["protocol"]
    assert (protocol["calibrated_on"], protocol["measured_on"]) == ({"a": 2}, {"other": 1})


def test_forms_for_cpus_as_a_table(
    pristine: Bundle, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ONNX Runtime alone: OpenVINO takes seconds to compile each form."""
    monkeypatch.setattr(cpu_forms, "ENGINES", ("onnxruntime",))
    options = ["--samples", "2", "--seconds", "0.01"]
    assert cpu_forms.main(arguments(pristine, clips, tmp_path, *options)) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    (choice,) = found["engines"]
    assert set(choice["timings"]) == set(QUANTISED) and not choice["refused"]
    text = table.document([tmp_path / "out.json"])
    assert "|  | encode | deform |" in text
    timings = choice["timings"]["encode"]
    assert set(timings) == {"fp32", "int8", "int8-linear", "int8-dynamic"}
    line = next(line for line in text.splitlines() if "static, all layers" in line)
    assert f"x{timings['int8']['ratio']:.2f}" in line
    assert ("**" in text.split("bold")[1]) == bool(choice["chosen"])


def test_the_chain_with_and_without_int8(
    pristine: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {}
    for stage in pristine.stage_names:
        (variant,) = pristine.variants(stage)
        source = VariantSource(variant.path, variant.inputs, variant.outputs)
        stages[stage] = [source]
        if stage == "encode":  # what is in it does not matter here, only that it is taken
            engines = ("onnxruntime",)
            stages[stage].insert(
                0, replace(source, precision="int8-dynamic", engines=engines, file="fast.onnx")
            )
    path = tmp_path / "q.bundle"
    write_bundle(path, "q", pristine.model, stages, provenance={}, quality={})
    out = tmp_path / "chain.json"
    command_line = [str(path), "--clip", str(clips / "other.mp4"), "--seconds", "0.01"]
    assert chain.main([*command_line, "--engine", "onnxruntime", "--json", str(out)]) == 0
    (entry,) = json.loads(out.read_text())["engines"]
    assert entry["files"] == {"encode": "fast.onnx"}
    assert "int8-dynamic" in entry["stages"]["taken"]["encode"]
    assert "fp32" in entry["stages"]["fp32"]["encode"] and entry["interval"]["fp32"]["ratio"] == 1
    text = table.document([out])
    assert f"x{entry['interval']['taken']['ratio']:.3f}" in text and "fast.onnx" in capsys.readouterr().out
    short = tmp_path / "short.mp4"
    write_video(short, [np.zeros((48, 64, 3), np.uint8)] * 3)
    assert chain.main([str(path), "--clip", str(short)]) == 2
    assert "shorter than 5 frames" in capsys.readouterr().err
