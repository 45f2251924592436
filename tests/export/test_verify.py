"""`verify`: what differs is found, named down to the node, stored and shown; bf16 is compared as well."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from small_model import MATCHING, small_model

from streamsplat_edge.cli import main
from streamsplat_edge.export import verify as verify_module
from streamsplat_edge.export.bisect import diverging_node
from streamsplat_edge.export.compare import Distance, compare, frame_psnr
from streamsplat_edge.export.emulate import write_emulation
from streamsplat_edge.export.graphs import write_graph
from streamsplat_edge.export.precision import lowered
from streamsplat_edge.export.record import OWN_FILES, default_thresholds, kept, limits, looser
from streamsplat_edge.export.stages import ConditionStage, StageGraph
from streamsplat_edge.export.verify import Report, verify_bundle
from streamsplat_edge.export.video import example_frames
from streamsplat_edge.runtime.bundle import Bundle, sha256_of

FRAMES = example_frames(MATCHING.height, MATCHING.width)


def rewrite(bundle: Bundle, file: str, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """Change a graph, and the manifest with it."""
    path, manifest = bundle.path / file, bundle.path / "bundle.json"
    before = (sha256_of(path), path.stat().st_size)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    text = manifest.read_text().replace(before[0], sha256_of(path))
    manifest.write_text(text.replace(f'"bytes": {before[1]}', f'"bytes": {path.stat().st_size}'))
    return Bundle.load(bundle.path)


def scale_weights(name: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Multiplies the weights of the node `name`, in fp16."""

    def change(model: onnx.ModelProto) -> None:
        (node,) = [n for n in model.graph.node if n.name == name]
        (weight,) = [w for w in model.graph.initializer if w.name in node.input]
        values = numpy_helper.to_array(weight) * np.float16(factor)
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name))

    return change


def first_node(bundle: Bundle, file: str, suffix: str) -> str:
    """The first node in the order of execution whose name ends so."""
    return next(n.name for n in onnx.load(bundle.path / file).graph.node if n.name.endswith(suffix))


def verify(bundle: Bundle) -> Report:
    return verify_bundle(bundle, None, FRAMES, thresholds=default_thresholds(), source="test")


def test_a_broken_graph_is_located(
    own_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = first_node(own_bundle, "encode.fp16.onnx", "resblocks.0.mlp.c_fc/MatMul")
    rewrite(own_bundle, "encode.fp16.onnx", scale_weights(node, 3.0))
    clip = Path(__file__).parents[2] / "demo" / "clip.mp4"
    assert main(["verify", str(own_bundle.path), "--clip", str(clip)]) == 2
    error = capsys.readouterr().err
    assert "onnxruntime fp16: encode.tokens differs by" in error
    assert f"In stage encode, fp16 first differs from fp32 at node {node}." in " ".join(error.split())
    stored = Bundle.load(own_bundle.path).verification[OWN_FILES]
    assert stored["passed"] is False and any("encode.tokens" in text for text in stored["failures"])
    assert main(["info", str(own_bundle.path)]) == 0
    assert " FAILED, against ONNX Runtime" in capsys.readouterr().out


def test_a_sound_bundle_is_verified_and_says_so(
    own_bundle: Bundle, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(own_bundle.path), "--checkpoint", str(checkpoint), "--frames", "2"]
    assert main(command) == 0
    reference = f"PyTorch {torch.__version__} fp32 eager"
    shown = capsys.readouterr().out
    assert f"reference: {reference}" in shown and " on clip.mp4" in shown
    stored = Bundle.load(own_bundle.path).verification
    assert stored["passed"] is True and stored["psnr_db"]["onnxruntime fp16"] >= 45
    assert stored["psnr_db"]["onnxruntime fp32"] > 80
    assert main(["info", str(own_bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert (
        f"verified    passed, against {reference}" in shown and "onnxruntime fp16: rendered frames" in shown
    )
    before = own_bundle.path.joinpath("bundle.json").read_bytes()
    assert main([*command, "--no-store", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert own_bundle.path.joinpath("bundle.json").read_bytes() == before


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Bundle:
    """Change the manifest."""
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    change(manifest)
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.load(bundle.path)


def only_fp32(manifest: dict[str, Any]) -> None:
    for stage in manifest["stages"].values():
        stage["variants"] = [v for v in stage["variants"] if v["precision"] == "fp32"]
        for variant in stage["variants"]:
            variant["engines"] = ["onnxruntime"]


def test_nothing_compared_is_no_success(own_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    edit(own_bundle, only_fp32)
    before = own_bundle.path.joinpath("bundle.json").read_bytes()
    assert main(["verify", str(own_bundle.path), "--frames", "2"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "was compared: onnxruntime fp32 is the reference." in said and "--checkpoint" in said
    assert own_bundle.path.joinpath("bundle.json").read_bytes() == before


def test_the_fp32_files_are_a_weaker_reference(
    own_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """What compares with them is stored beside what compared with the model, not in its place."""
    of_model = own_bundle.verification
    assert of_model["reference"].startswith("PyTorch ")
    command = ["verify", str(own_bundle.path), "--frames", "2"]
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    stored = Bundle.load(own_bundle.path).verification
    own = stored[OWN_FILES]
    assert {k: v for k, v in stored.items() if k != OWN_FILES} == of_model
    assert own["reference"].startswith("ONNX Runtime ") and own["psnr_db"].keys() == {"onnxruntime fp16"}
    assert main(["info", str(own_bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert "verified    passed, against PyTorch" in shown and "passed, against ONNX Runtime" in shown
    # A later result against the model keeps it, a bundle without one has only this, and it is replaced.
    assert kept(stored, {**of_model, "source": "new"}) == {**stored, "source": "new"}
    weak = {**own, "thresholds": {}}
    assert kept({"thresholds": {}}, weak) == kept(weak, weak) == weak
    assert kept(stored, {**weak, "source": "new"})[OWN_FILES] == {**own, "source": "new"}
    assert kept(weak, of_model) == stored and kept({"thresholds": {}}, of_model) == of_model
    # The bar names what is compared.
    assert main([*command, "--no-store"]) == 0
    assert "onnxruntime fp16 deform" in capsys.readouterr().err


def test_limits_of_a_bundle_are_read_with_suspicion(
    own_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def stated(value: object) -> Bundle:
        return edit(own_bundle, lambda manifest: manifest.update(verification={"thresholds": value}))

    for value, field in (
        (5, "thresholds` must be an object"),
        ({"fp16": 5}, "thresholds.fp16` must be an object"),
        ({"fp16": {"psnr_dB": 1}}, "thresholds.fp16.psnr_dB` is unknown"),
        ({"fp16": {"psnr_db": "1"}}, "thresholds.fp16.psnr_db` must be a number"),
        ({"fp16": {"psnr_db": True}}, "thresholds.fp16.psnr_db` must be a number"),
        ({"fp16": {"relative_l2": -1}}, "thresholds.fp16.relative_l2` must be a number"),
    ):
        stated(value)
        assert main(["verify", str(own_bundle.path)]) == 2
        assert field in " ".join(capsys.readouterr().err.split())
    for value in ({}, {"fp32": {}}, {"fp16": {"psnr_db": 50}}, {"int8": {"psnr_db": 10}}):
        found = limits(stated(value))
        assert found["fp32"] == default_thresholds()["fp32"] and found["fp16"]["relative_l2"] == 2e-2
        assert looser(found, own_bundle.precisions) == []
    assert looser(found, ["int8"]) == ["int8 psnr_db 10 instead of 38"]

    def named(precision: str) -> Bundle:
        return edit(own_bundle, lambda m: m["stages"]["encode"]["variants"][1].update(precision=precision))

    assert limits(named("int8-x"))["int8-x"] == {"psnr_db": 38.0}
    named("fp16")
    lax = {"fp16": {"psnr_db": 3, "relative_l2": 1, "depth_relative_l2": 1e-3}}
    stated(lax)
    assert main(["verify", str(own_bundle.path), "--frames", "2", "--no-store"]) == 0
    shown = capsys.readouterr().out
    assert "let more pass than usual: fp16 relative_l2 1 instead of 0.02; fp16 psnr_db 3 instead" in shown
    assert main(["verify", str(own_bundle.path), "--frames", "2", "--no-store", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["looser_limits"]) == 2


def test_a_file_of_another_stage_is_no_candidate_to_leave_out(
    own_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        encode, deform = (manifest["stages"][stage]["variants"][1] for stage in ("encode", "deform"))
        for field in ("file", "sha256", "bytes"):
            encode[field], deform[field] = deform[field], encode[field]

    edit(own_bundle, swap)
    assert main(["verify", str(own_bundle.path), "--frames", "2"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "deform.fp16.onnx has the inputs condition_0" in said and "export the bundle again" in said


def test_a_result_that_cannot_be_stored_is_shown(
    own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = (own_bundle.path / "bundle.json").read_bytes()
    command = ["verify", str(own_bundle.path), "--frames", "2", "--quiet"]
    for arguments, shown in (([], "onnxruntime fp16 rendered frames"), (["--json"], '"psnr_db"')):
        assert main([*command, *arguments]) == 2
        captured = capsys.readouterr()
        assert shown in " ".join(captured.out.split())
        said = " ".join(captured.err.split())
        assert "The result was not stored" in said and "No space left" in said and "--no-store" in said
    assert (own_bundle.path / "bundle.json").read_bytes() == before
    rewrite(own_bundle, "deform.fp16.onnx", scale_weights("decoder.widen/MatMul", np.nan))
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "deform.fade holds NaN" in said and "The result was not stored" in said


def test_nan_is_a_failure(own_bundle: Bundle) -> None:
    node = first_node(own_bundle, "deform.fp16.onnx", "decoder.widen/MatMul")
    broken = rewrite(own_bundle, "deform.fp16.onnx", scale_weights(node, np.nan))
    report = verify(broken)
    assert any("deform.fade holds NaN or infinity" in text for text in report.failures)
    assert not any("encode" in text for text in report.failures), "what agrees is not listed"
    json.dumps(report.to_json(), allow_nan=False)


def test_refusals(own_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuses(message: str, *arguments: str) -> None:
        assert main(["verify", str(own_bundle.path), *arguments]) == 2
        assert message in capsys.readouterr().err

    refuses("One key frame makes no pair", "--frames", "1")
    refuses("has no 99 key frames", "--frames", "99")
    manifest = own_bundle.path / "bundle.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"fp32"', '"fp31"'))
    refuses("has no fp32 files to compare with")
    changed = json.loads(text)
    changed["stages"]["encode"]["variants"][0]["inputs"][0]["shape"][2] += 8
    manifest.write_text(json.dumps(changed))
    refuses("rgbd.shape")
    manifest.write_text(text)
    file = own_bundle.path / "encode.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refuses("encode.onnx")


def test_distances() -> None:
    truth = np.array([3.0, 4.0], np.float32)
    found = compare(truth * 1.1, truth)
    assert (found.relative_l2, found.max_abs, found.cosine) == pytest.approx((0.1, 0.4, 1.0), rel=1e-5)
    assert found.finite
    turned = compare(np.array([[4.0], [-3.0]]), truth[:, None])
    assert (turned.relative_l2, turned.cosine) == pytest.approx((np.sqrt(2), 0.0), abs=1e-12)
    # Small and large numbers, and those whose squares their own type cannot hold.
    for size, kind in ((1e-6, np.float32), (1e6, np.float32), (300, np.float16)):
        scaled = np.full(4, size, kind)
        found = compare(scaled * kind(1.5), scaled)
        assert found.relative_l2 == pytest.approx(0.5, rel=1e-3) and found.cosine == pytest.approx(1)
    assert compare(np.zeros(2), np.zeros(2)) == Distance(0.0, 0.0, 1.0, True)
    assert not compare(np.array([np.inf, 0]), truth).finite and not compare(truth, truth * np.nan).finite
    assert frame_psnr(truth, truth) == np.inf
    assert frame_psnr(np.full(4, 0.6), np.full(4, 0.5)) == pytest.approx(20.0)
    # Errors of either sign, and one that a mean of the frame does not show.
    assert frame_psnr(np.array([0.4, 0.6]), np.full(2, 0.5)) == pytest.approx(20.0)
    assert frame_psnr(np.array([0.5, 0.5, 0.5, 0.7]), np.full(4, 0.5)) == pytest.approx(20.0)
    assert frame_psnr(np.full(4, 0.5 + 1e-6), np.full(4, 0.5)) == pytest.approx(120.0)


def test_the_worst_call_counts() -> None:
    one = np.ones(4)

    def judged(*factors: float, limits: dict[str, float], stage: str = "encode") -> Report:
        report = Report("reference", "source", {"fp16": limits})
        results = [({"y": one * factor}, {"y": one}) for factor in factors]
        verify_module._judge(report, "engine", "fp16", stage, results)
        return report

    for factors in ((1.1, 1.3, 1.2), (1.3, 1.1), (1.1, 1.3)):
        found = judged(*factors, limits={"relative_l2": 0.25})
        assert found.comparisons[0].relative_l2 == pytest.approx(0.3) and len(found.comparisons) == 1
        assert found.failures and found.failed == [("encode", "fp16")]
        assert not judged(*factors, limits={"relative_l2": 0.35}).failures
    # Of what is not finite nothing is worse, whatever comes before and after it.
    for factors in ((np.nan, 1.3), (1.3, np.nan), (1.1, np.inf, 1.3), (np.nan, np.nan)):
        found = judged(*factors, limits={"relative_l2": 0.5})
        assert found.failures == ["engine fp16: encode.y holds NaN or infinity"]
    own = {"relative_l2": 0.01, "depth_relative_l2": 0.2}
    assert not judged(1.1, limits=own, stage="depth").failures
    assert judged(1.1, limits=own).failures and judged(1.3, limits=own, stage="depth").failures
    assert not judged(5.0, limits={"psnr_db": 50}).failures


def test_the_worst_frame_counts(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for frames, worst, passed in (((60, 44, 50), 44, False), ((45, 60), 45, True), ((44.9, 60), 44.9, False)):
        values = itertools.cycle(frames)
        monkeypatch.setattr(verify_module, "frame_psnr", lambda *_, values=values: next(values))
        found = verify(bundle)
        assert found.psnr_db == {"onnxruntime fp16": worst} and bool(found.failures) is not passed


def test_bisection_finds_the_first_of_many() -> None:
    """A chain of sums; from the broken one on, all values differ."""

    def chain(broken: int) -> onnx.ModelProto:
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        nodes = [helper.make_node("Add", [f"v{i}", f"c{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(9)]
        constants = [helper.make_tensor(f"c{i}", kind, [1], [2.0 if i == broken else 1.0]) for i in range(9)]
        io = [[helper.make_tensor_value_info(name, kind, [1])] for name in ("v0", "v9")]
        graph = helper.make_graph(nodes, "chain", *io, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    inputs = {"v0": np.zeros(1, np.float32)}
    for broken in (0, 4, 8):
        assert diverging_node(chain(-1), chain(broken), inputs, 1e-3) == f"n{broken}"
    assert diverging_node(chain(-1), chain(-1), inputs, 1e-3) == ""


def test_bf16_is_compared_by_rounding(own_bundle: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime has no bf16 on CPUs: the file's graph runs in fp32 with every value rounded."""
    stage = ConditionStage(small_model(MATCHING))
    picture = torch.rand(1, 3, MATCHING.height, MATCHING.width, generator=torch.Generator().manual_seed(1))
    low = lowered(stage, "bf16", 22)
    path = own_bundle.path / "condition.bf16.onnx"
    graph = write_graph(StageGraph("condition", low, {"rgb": picture}, ("condition",)), path, 22)
    types = {w.data_type for w in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in types, "convolutions have bf16 from operator set 22 on"
    write_emulation(path, tmp_path / "emulated.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "emulated.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {"rgb": picture.numpy()})[0]
    with torch.no_grad():
        exact, rounded = stage(picture).numpy(), low(picture).numpy()
    assert 1e-3 < compare(got, exact).relative_l2 < 2e-2 and compare(got, rounded).relative_l2 < 2e-2
    assert np.array_equal(got, torch.from_numpy(got).bfloat16().float().numpy()), "results are rounded"

    manifest = json.loads((own_bundle.path / "bundle.json").read_text())
    variants = manifest["stages"]["condition"]["variants"]
    entry = {**variants[0], "file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
    variants.append({**entry, "precision": "bf16", "engines": ["tensorrt"]})
    (own_bundle.path / "bundle.json").write_text(json.dumps(manifest))
    report = verify(Bundle.load(own_bundle.path))
    assert not report.failures and 30 < report.psnr_db["onnxruntime bf16"] < 120
    assert graph.inputs[0].dtype == "float32"


def test_bf16_convolutions_before_operator_set_22_stay_in_fp32() -> None:
    low = lowered(ConditionStage(small_model(MATCHING)), "bf16", 20)
    assert {p.dtype for p in low.parameters()} == {torch.float32}
