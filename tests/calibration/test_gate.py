"""Judging frames, giving layers back, choosing forms for CPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_bundle import QUANTISED

from streamsplat_edge.calibration import cpu, frames, recording, sensitivity, videos
from streamsplat_edge.calibration.forms import CPU_FORMS, write_form, write_static
from streamsplat_edge.calibration.frames import Judge, Score
from streamsplat_edge.calibration.gate import GateError, pass_gate
from streamsplat_edge.calibration.layers import find_layers
from streamsplat_edge.calibration.options import Options, Result
from streamsplat_edge.calibration.ranges import weight_scales
from streamsplat_edge.calibration.recipe import Recipe
from streamsplat_edge.calibration.timing import Timing, compare, fastest
from streamsplat_edge.export.compare import frame_psnr
from streamsplat_edge.export.stage_engines import file_engines, files_of
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import EngineError, InputError
from streamsplat_edge.runtime.stream import Stream

CLIPS = {"encode": {n: (3.0,) for n in QUANTISED["encode"]}, "deform": {"decoder.mix/MatMul": (1.0,)}}


@pytest.fixture(scope="module")
def pairs(clips: Path) -> list[videos.Pair]:
    return videos.choose(videos.survey([clips / "other.mp4"], 4), 2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judge")


@pytest.fixture
def judge(pristine: Bundle, pairs: list[videos.Pair], kept: Path) -> Iterator[Judge]:
    with Judge(pristine, pairs, kept) as opened:
        yield opened


def decisions_of(bundle: Bundle):
    layers = {s: find_layers(onnx.load(bundle.variants(s)[0].path)) for s in bundle.stage_names}
    return Recipe().decide(layers, "int8")


def sources_of(bundle: Bundle):
    return {s: bundle.variants(s)[0] for s in bundle.stage_names}


def result_of(bundle: Bundle, judge: Judge, min_psnr: float, **options: object) -> Result:
    chosen = Options(min_psnr=min_psnr, **options)  # type: ignore[arg-type]
    found = Result(chosen, decisions_of(bundle), Score(0, 0, 0), 1, 2, ranges=dict(CLIPS))
    found.sensitivities = sensitivity.measure(judge, sources_of(bundle), found.decisions, CLIPS, "int8")
    return found


def test_the_fp32_stages_agree_with_themselves(judge: Judge, pristine: Bundle, tmp_path: Path) -> None:
    assert judge.score({}) == Score(math.inf, math.inf, math.inf)
    assert judge.score(
        file_engines(files_of(pristine, "fp32", "onnxruntime", tmp_path), "onnxruntime")
    ) == Score(math.inf, math.inf, math.inf)
    assert judge.score({}).to_json() == {"worst": 999.0, "mean": 999.0, "novel": 999.0}


@pytest.mark.parametrize("stages", [("encode",), ("deform",), ("encode", "deform")])
def test_scores_are_those_of_whole_streams(
    judge: Judge, pristine: Bundle, pairs: list[videos.Pair], stages: tuple[str, ...]
) -> None:
    """Replaying what did not change gives the same as running everything."""
    decisions = [d for d in decisions_of(pristine) if d.stage in stages]
    quantised = sensitivity.literal_engines(sources_of(pristine), decisions, CLIPS, "int8")
    exact = file_engines(files_of(pristine, "fp32", "onnxruntime", Path()), "onnxruntime")
    rendered: list[list[np.ndarray]] = []
    for engines in (exact, {**exact, **quantised}):
        stream = Stream(pristine, engines)
        rendered.append([])
        for _, (first, last), seconds in videos.read_pairs(pairs):
            stream.reset()
            stream.push(first, 0.0)
            stream.push(last, seconds)
            for t, view in ((0.0, None), (0.5, None), (1.0, None), (0.5, frames._SWING)):
                stream.render(t * seconds, view=view, copy=False)
                rendered[-1].append(stream.buffers.rgb.copy())
    psnr = [frame_psnr(b, a) for a, b in zip(*rendered, strict=True)]
    score = judge.score(quantised)
    canonical = [p for i, p in enumerate(psnr) if i % 4 != 3]
    assert score.worst == pytest.approx(min(canonical), abs=1e-6)
    assert score.novel == pytest.approx(min(psnr[3::4]), abs=1e-6)
    assert score.mean == pytest.approx(
        -10 * np.log10(np.mean([10 ** (-p / 10) for p in canonical])), abs=1e-6
    )
    assert 15 < score.worst < 80


def test_what_was_rendered_is_found_again(
    judge: Judge, pristine: Bundle, pairs: list[videos.Pair], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "read_pairs", lambda wanted: iter(() if not wanted else pytest.fail("again")))
    with Judge(pristine, pairs, kept) as second:
        assert second.key == judge.key
    with pytest.raises(InputError, match="no frames to measure on"):
        Judge(pristine, [], kept)


def test_sensitivity_ranks_layers_and_goes_on(
    judge: Judge, pristine: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sensitivity.json"
    clips = {**CLIPS, "encode": {**CLIPS["encode"], "refine/Conv": (0.05,)}}  # cuts nearly everything off
    arguments = (judge, sources_of(pristine), decisions_of(pristine), clips, "int8")
    found = sensitivity.measure(*arguments, kept=file)
    assert {(s.stage, s.node) for s in found} == {(s, n) for s in QUANTISED for n in QUANTISED[s]}
    assert found[0].node == "refine/Conv" and found[0].score.mean < found[1].score.mean - 3
    means = [s.score.mean for s in found]
    assert means == sorted(means)
    monkeypatch.setattr(judge, "score", lambda _: pytest.fail("all were measured"))
    assert sensitivity.measure(*arguments, kept=file) == found


def test_smallest() -> None:
    for needed in range(12):
        asked: list[int] = []

        def passes(count: int, needed: int = needed, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= needed

        assert sensitivity.smallest(range(10), passes) == (needed if needed <= 10 else None)
        assert len(asked) == len(set(asked)) <= 9


def test_the_gate_gives_back_the_fewest(judge: Judge, pristine: Bundle) -> None:
    free = result_of(pristine, judge, 0.0)
    pass_gate(free, judge, sources_of(pristine))
    assert free.given_back == [] and free.passed and sum(d.quantise for d in free.decisions) == 4
    strict = result_of(pristine, judge, free.score.worst + 0.5)
    pass_gate(strict, judge, sources_of(pristine))
    first = strict.sensitivities[0]
    assert strict.given_back[0] == (first.stage, first.node) and strict.passed
    assert strict.score.worst >= free.score.worst + 0.5
    reasons = {d.layer.node: d.reason for d in strict.decisions}
    assert "given back by the gate" in reasons[first.node]
    assert len(strict.given_back) + sum(d.quantise for d in strict.decisions) == 4


def test_a_gate_that_cannot_be_passed(judge: Judge, pristine: Bundle) -> None:
    """Without sensitivities nothing can be given back."""
    hopeless = result_of(pristine, judge, 120.0)
    hopeless.sensitivities = []
    with pytest.raises(
        GateError, match=r"agree with fp32 to [\d.]+ dB only, 120 are needed: .* are missing"
    ) as error:
        pass_gate(hopeless, judge, sources_of(pristine))
    assert "--no-sensitivity" in error.value.message and "--force-quality" in error.value.hint
    forced = result_of(pristine, judge, 120.0, force_quality=True)
    forced.sensitivities = []
    pass_gate(forced, judge, sources_of(pristine))
    assert not forced.passed and not forced.given_back and forced.to_json()["gate"]["passed"] is False


def test_forms_are_what_they_say(pristine: Bundle, tmp_path: Path) -> None:
    source = pristine.variants("encode")[0]
    layers = [layer for layer in find_layers(onnx.load(source.path)) if layer.node in QUANTISED["encode"]]
    seen = {}
    for form in CPU_FORMS:
        assert write_form(form, source, layers, CLIPS["encode"], tmp_path / form.name)
        model = onnx.load(tmp_path / form.name)
        kinds = [node.op_type for node in model.graph.node]
        seen[form.name] = (kinds.count("QuantizeLinear"), kinds.count("MatMulInteger"))
    assert seen == {"int8": (3, 0), "int8-linear": (2, 0), "int8-dynamic": (0, 2)}
    convolutions = [layer for layer in layers if layer.operator == "Conv"]
    linear = next(form for form in CPU_FORMS if form.name == "int8-linear")
    assert not write_form(linear, source, convolutions, CLIPS["encode"], tmp_path / "none")
    dynamic = onnx.load(tmp_path / "int8-dynamic")
    products = [n for n in dynamic.graph.node if n.op_type == "MatMul"]
    assert len(products) == 3, "attention and the head are not quantised"
    assert sorted(p.name for p in pristine.path.iterdir()) == ["bundle.json", "deform.onnx", "encode.onnx"]


def test_static_files_hold_what_was_found(pristine: Bundle, tmp_path: Path) -> None:
    source = pristine.variants("deform")[0]
    model = write_static(source, QUANTISED["deform"], CLIPS["deform"], "int8", tmp_path / "deform.onnx")
    stored = {
        w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / "deform.onnx").graph.initializer
    }
    weight = next(w for w in onnx.load(source.path).graph.initializer if w.name == "mix")
    assert stored["changes.scale"] == pytest.approx(1 / 127)
    np.testing.assert_array_equal(
        stored["mix.scale"], weight_scales(onnx.numpy_helper.to_array(weight), 1, cpu_format())
    )
    assert [n.name for n in model.graph.node if n.op_type == "MatMul"] == [
        "decoder.mix/MatMul", "deform/MatMul", "deform/MatMul_2"]  # fmt: skip


def cpu_format():
    from streamsplat_edge.calibration.ranges import FORMATS

    return FORMATS["int8"]


def test_timing_compares_with_the_first(pristine: Bundle, tmp_path: Path) -> None:
    source = pristine.variants("deform")[0]
    inputs = {spec.name: np.zeros(spec.shape, np.float32) for spec in source.inputs}
    broken = replace(source, path=tmp_path / "no.onnx")
    broken.path.write_bytes(source.path.read_bytes().replace(b"MatMul", b"MatMad"))
    found, refused = compare(
        {"fp32": source, "same": source, "broken": broken}, inputs, "onnxruntime", turns=4
    )
    assert found["fp32"].ratio == 1 and found["same"].milliseconds > 0 and set(found) == {"fp32", "same"}
    assert "cannot load" in refused["broken"]
    with pytest.raises(EngineError):
        compare({"broken": broken, "fp32": source}, inputs, "onnxruntime")
    assert fastest({"fp32": Timing(10, 1), "a": Timing(9.9, 0.99)}) == "fp32", "too little to be sure"
    assert fastest({"fp32": Timing(10, 1), "a": Timing(9, 0.9), "b": Timing(8, 0.8)}) == "b"


@pytest.fixture
def recorded(pristine: Bundle, pairs: list[videos.Pair], tmp_path: Path) -> recording.Recording:
    return recording.record(pristine, pairs, tmp_path / "recording")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_faster_form_is_chosen_and_judged_in_its_engine(
    engine: str, judge: Judge, pristine: Bundle, recorded: recording.Recording, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Times are made up: what is faster here, a test cannot know."""
    pytest.importorskip(engine)

    def compared(variants, inputs, name, **_):
        ratios = {
            "fp32": 1.0,
            "int8": 0.5,
            "int8-linear": 0.8,
            "int8-dynamic": 0.4 if "tokens" in inputs else 0.9,
        }
        return {key: Timing(10 * ratios[key], ratios[key]) for key in variants}, {}

    monkeypatch.setattr(cpu, "compare", compared)
    arguments = (engine, sources_of(pristine), decisions_of(pristine), CLIPS, recorded, judge)
    choice = cpu.choose_forms(*arguments, tmp_path / "a", min_psnr=0)
    assert {stage: name for stage, (name, _) in choice.files.items()} == {"encode": "int8", "deform": "int8"}
    assert choice.score is not None and 10 < choice.score.worst < 100 and choice.reason == ""
    assert choice.baseline is not None and choice.baseline.worst > choice.score.worst
    if engine == "openvino":  # which takes seconds to compile each
        return
    # Nothing is saved that fails: all layers are given back, or there is no file at all.
    order = [(s, n) for s in QUANTISED for n in QUANTISED[s]]
    strict = cpu.choose_forms(*arguments, tmp_path / "b", min_psnr=choice.score.worst + 1, order=order)
    assert strict.given_back == order[: len(strict.given_back)] and strict.given_back
    failed = cpu.choose_forms(*arguments, tmp_path / "c", min_psnr=choice.score.worst + 1)
    assert failed.files == {} and "are needed" in failed.reason


def test_a_small_stage_stays_in_fp32(
    judge: Judge,
    pristine: Bundle,
    recorded: recording.Recording,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the time of a stage of one millisecond is nothing beside one of a hundred."""

    def compared(variants, inputs, name, **_):
        size = 1.0 if "tokens_0" in inputs else 100.0
        return {key: Timing(size, 1.0 if key == "fp32" else 0.5) for key in variants}, {}

    monkeypatch.setattr(cpu, "compare", compared)
    arguments = ("onnxruntime", sources_of(pristine), decisions_of(pristine), CLIPS, recorded, judge)
    assert set(cpu.choose_forms(*arguments, tmp_path / "a", min_psnr=0).files) == {"encode"}
    assert set(cpu.choose_forms(*arguments, tmp_path / "b", min_psnr=0, slower=True).files) == {
        "encode",
        "deform",
    }


def test_what_is_slower_is_not_used_unless_told(
    judge: Judge,
    pristine: Bundle,
    recorded: recording.Recording,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compared(variants, inputs, name, **_):
        return {key: Timing(5, 1.0 if key == "fp32" else 1.2) for key in variants}, {}

    monkeypatch.setattr(cpu, "compare", compared)
    arguments = ("onnxruntime", sources_of(pristine), decisions_of(pristine), CLIPS, recorded, judge)
    choice = cpu.choose_forms(*arguments, tmp_path / "a", min_psnr=0)
    assert choice.files == {} and choice.reason == "no INT8 form is faster than the fp32 file"
    assert set(choice.timings["encode"]) == {"fp32", "int8", "int8-linear", "int8-dynamic"}
    told = cpu.choose_forms(*arguments, tmp_path / "b", min_psnr=0, slower=True)
    assert set(told.files) == {"encode", "deform"}
    missing = cpu.choose_forms("no_such_engine", *arguments[1:], tmp_path / "c", min_psnr=0)
    assert missing.reason == "no_such_engine is not installed"
