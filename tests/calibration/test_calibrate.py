"""The command: from videos to a bundle that engines take, and every refusal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantised_graph import quantised_nodes
from small_bundle import ATTENTION, KEPT, QUANTISED, build_small_bundle

from streamsplat_edge.calibration import cpu
from streamsplat_edge.cli import main
from streamsplat_edge.runtime import processor
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.bundle_writing import VariantSource, write_bundle
from streamsplat_edge.runtime.engines import select_variant

ALL = {stage: list(QUANTISED[stage]) for stage in QUANTISED}


def command(bundle: Bundle, clips: Path, out: Path, *more: str) -> list[str]:
    return [
        *("calibrate", str(bundle.path), "--data", str(clips / "videos"), "-o", str(out)),
        *("--gate-data", str(clips / "other.mp4"), "--gate-samples", "2", "--samples", "6", "--quiet"),
        *("--min-psnr", "10", *more),
    ]


@pytest.fixture(scope="module")
def made(
    pristine: Bundle, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    """A folder with int8.bundle, and its report."""
    folder = tmp_path_factory.mktemp("made")
    report = ("--report", str(folder / "report"))
    assert main(command(pristine, clips, folder / "int8.bundle", "--method", "mse", *report)) == 0
    return folder, json.loads((folder / "report" / "report.json").read_text())


@pytest.fixture
def no_cpu_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own, and OpenVINO takes seconds to compile each."""
    monkeypatch.setattr(cpu, "ENGINES", ())


def test_the_bundle_holds_files_for_tensorrt_in_front(
    made: tuple[Path, dict[str, object]], pristine: Bundle
) -> None:
    bundle = Bundle.load(made[0] / "int8.bundle")
    for stage in bundle.stage_names:
        variant = select_variant(bundle, stage, "tensorrt")
        assert variant.precision == "int8" and {"tensorrt", "tensorrt_rtx"} <= set(variant.engines)
        assert quantised_nodes(onnx.load(variant.path)) == ALL[stage]
        exact = select_variant(bundle, stage, "onnxruntime", "fp32")
        assert exact.sha256 == pristine.variants(stage)[0].sha256, "what was there is still there"
        assert (variant.inputs, variant.outputs) == (exact.inputs, exact.outputs)
    assert bundle.provenance == pristine.provenance and bundle.quality == {}
    leftovers = [p.name for p in made[0].iterdir() if p.name not in ("int8.bundle", "report")]
    assert leftovers == [], "what was recorded is removed where nobody asked to keep it"


def test_the_recipe_and_the_measurements_are_stored(made: tuple[Path, dict[str, object]]) -> None:
    folder, report = made
    stored = Bundle.load(folder / "int8.bundle").quantisation
    assert stored == report
    assert stored["precision"] == "int8" and stored["method"] == "mse" and stored["samples"] == 6
    assert {s: entry["quantised"] for s, entry in stored["recipe"].items()} == ALL
    assert {s: set(entry["kept"]) for s, entry in stored["recipe"].items()} == {s: set(KEPT[s]) for s in KEPT}
    assert stored["gate"]["passed"] is True and stored["gate"]["psnr_db"]["worst"] >= 10
    assert [set(s) for s in stored["sensitivity"]] == [{"stage", "node", "worst", "mean", "novel"}] * 4
    assert {choice["engine"] for choice in stored["cpu"]} == {"onnxruntime", "openvino"}
    assert (folder / "report" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    for stage, nodes in stored["ranges"].items():
        for node, clips in nodes.items():
            assert all(clip > 0 for clip in clips), (stage, node)


def test_info_and_verify_know_it(
    made: tuple[Path, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(made[0] / "int8.bundle", tmp_path / "own.bundle")
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "int8 (mse, 6 samples); every frame needed 10 dB against fp32" in shown
    assert re.search(r"TensorRT: worst frame [\d.]+ dB", shown)
    assert main(["verify", str(path), "--frames", "2"]) == 0
    assert "onnxruntime int8  rendered frames" in capsys.readouterr().out
    assert Bundle.load(path).verification["thresholds"]["int8"] == {"psnr_db": 10.0}
    clip, stats = Path(__file__).parents[2] / "demo" / "clip.mp4", tmp_path / "s.json"
    command_line = f"run {clip} --bundle {path} --max-frames 5 --stats {stats} --quiet"
    assert main(command_line.split()) == 0


def test_fp8_is_for_tensorrt_alone(
    bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            command(
                bundle, clips, tmp_path / "fp8.bundle", "--precision", "fp8", "--no-sensitivity", "--json"
            )
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == "fp8" and report["cpu"] == [] and report["sensitivity"] == []
    made = Bundle.load(tmp_path / "fp8.bundle")
    variant = select_variant(made, "encode", "tensorrt")
    kinds = {w.data_type for w in onnx.load(variant.path).graph.initializer}
    assert variant.precision == "fp8" and onnx.TensorProto.FLOAT8E4M3FN in kinds
    assert select_variant(made, "encode", "onnxruntime").precision == "fp32"
    assert select_variant(made, "encode", "openvino").precision == "fp32"
    assert main(["verify", str(made.path), "--frames", "2"]) == 0, (
        "ONNX Runtime runs FP8 by computing literally"
    )
    assert "onnxruntime fp8  rendered frames" in capsys.readouterr().out


@pytest.mark.usefixtures("no_cpu_forms")
def test_half_precision_files_are_what_tensorrt_gets_quantised(
    bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graph of TensorRT's own precision: names of nodes are shared, those of tensors are not."""
    stages = {}
    for stage in bundle.stage_names:
        (variant,) = bundle.variants(stage)
        model = onnx.load(variant.path)
        for node in model.graph.node:  # what an export in another precision would do
            node.input[:] = [f"{n}.other" if n in ("normed", "silu", "changes") else n for n in node.input]
            node.output[:] = [f"{n}.other" if n in ("normed", "silu", "changes") else n for n in node.output]
        path = tmp_path / f"{stage}.fp16.onnx"
        onnx.save(model, path)
        io = (variant.inputs, variant.outputs)
        stages[stage] = [
            VariantSource(variant.path, *io, "fp32", ("onnxruntime", "openvino")),
            VariantSource(path, *io, "fp16", ("onnxruntime", "tensorrt")),
        ]
    both = write_bundle(tmp_path / "both.bundle", "both", bundle.model, stages, provenance={}, quality={})
    assert main(command(both, clips, tmp_path / "q.bundle", "--smooth", "0.5", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["smoothed"] == [f"encode:{ATTENTION}.proj/MatMul"]
    made = Bundle.load(tmp_path / "q.bundle")
    model = onnx.load(select_variant(made, "encode", "tensorrt").path)
    assert "normed.other.scale" in {w.name for w in model.graph.initializer}
    assert made.variant("encode", "tensorrt").engines == ("tensorrt",)
    assert made.variant("encode", "tensorrt", "fp16").path.name == "encode.fp16.onnx"


def test_layers_are_listed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(bundle.path), "--list-layers", "--keep", "refine/*"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == sum(len(v) for v in (*QUANTISED.values(), *KEPT.values()))
    assert "kept       encode:refine/Conv  (--keep refine/*)" in shown
    assert "quantised  deform:decoder.mix/MatMul  (linear layer or convolution)" in shown
    assert main(["calibrate", str(bundle.path), "--list-layers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encode"]["quantised"] == ALL["encode"]


@pytest.mark.usefixtures("no_cpu_forms")
def test_below_the_gate_nothing_is_saved_but_by_force(
    bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bad.bundle"
    arguments = command(
        bundle, clips, out, "--no-sensitivity", "--min-psnr", "150", "--work", str(tmp_path / "work")
    )
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "dB only, 150 are needed" in error and "--force-quality" in error and not out.exists()
    assert main([*arguments, "--force"]) == 2, "--force replaces files, and says nothing about quality"
    assert not out.exists()
    capsys.readouterr()
    assert main([*arguments, "--force-quality"]) == 0
    assert "BELOW THE GATE" in capsys.readouterr().out
    assert main(["info", str(out)]) == 0
    assert "BELOW THE GATE" in capsys.readouterr().out
    assert Bundle.load(out).quantisation["gate"]["passed"] is False


@pytest.mark.usefixtures("no_cpu_forms")
def test_a_layer_that_reads_only_zeros_is_not_quantised(
    bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = silenced(bundle)
    assert main(command(silent, clips, tmp_path / "q.bundle", "--no-sensitivity")) == 0
    assert "decoder.mix/MatMul of stage deform read only zeros" in capsys.readouterr().err
    made = Bundle.load(tmp_path / "q.bundle")
    assert made.quantisation["recipe"]["deform"]["quantised"] == []
    assert made.variant("deform", "tensorrt").precision == "fp32", "there is no other file of that stage"


def silenced(bundle: Bundle) -> Bundle:
    """The bundle with features of zero, so that deform has nothing to compare."""
    path = bundle.path / "encode.onnx"
    model = onnx.load(path)
    (weight,) = [w for w in model.graph.initializer if w.name == "refine_weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 16, 2, 2), np.float32), "refine_weight"))
    onnx.save(model, path)
    stages = {
        s: [VariantSource(v.path, v.inputs, v.outputs) for v in bundle.variants(s)]
        for s in bundle.stage_names
    }
    return write_bundle(
        bundle.path.with_name("silent.bundle"), "silent", bundle.model, stages, provenance={}, quality={}
    )


def test_refusals(bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.bundle"

    def refuses(message: str, *arguments: str) -> None:
        assert main(["calibrate", *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not out.exists()

    source, videos = str(bundle.path), ("--data", str(clips / "videos"), "-o", str(out))
    refuses("--data is missing", source, "-o", str(out))
    refuses("-o is missing", source, "--data", str(clips))
    refuses("There is no bundle at", str(tmp_path / "none.bundle"), *videos)
    refuses("does not exist", source, "--data", str(tmp_path / "nothing"), "-o", str(out))
    refuses("samples is 0", source, *videos, "--samples", "0")
    refuses("smoothing strength is 1.5", source, *videos, "--smooth", "1.5")
    # Before anything is recorded, which takes longest.
    for value in ("nan", "inf", "-inf"):
        refuses(f"least PSNR is {value}", source, *videos, f"--min-psnr={value}")
        refuses(f"percentile is {value}", source, *videos, f"--percentile={value}")
    refuses("percentile is 50.0", source, *videos, "--percentile", "50")
    assert not list(tmp_path.glob(".*calibration"))
    refuses("names the node nosuch", source, *videos, "--keep", "nosuch")
    refuses("cannot be read as JSON", source, *videos, "--recipe", str(tmp_path / "none.json"))
    refuses(
        "is both calibrated on and measured on",
        source,
        *videos,
        "--gate-data",
        str(clips / "videos" / "a.mp4"),
    )
    taken = build_small_bundle(tmp_path / "taken" / "taken.bundle")
    refuses("exists already", source, "--data", str(clips), "-o", str(taken.path))
    half = build_small_bundle(tmp_path / "half" / "half.bundle", precision="fp16")
    refuses("has no fp32 file of stage encode", str(half.path), *videos)


def test_few_samples_are_warned_about(
    bundle: Bundle,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from streamsplat_edge.calibration import calibrate as module
    from streamsplat_edge.runtime.errors import InputError

    def stop(*_: object, **__: object) -> None:
        raise InputError("stopped")

    monkeypatch.setattr(module, "record", stop)
    arguments = [
        "calibrate",
        str(bundle.path),
        "--data",
        str(clips),
        "-o",
        str(tmp_path / "o.bundle"),
        "--quiet",
    ]
    assert main([*arguments, "--samples", "9"]) == 2
    assert "warning: few samples, ranges settle at about 128" in capsys.readouterr().err
    assert main([*arguments, "--samples", "200"]) == 2
    assert re.search(r"warning: only \d+ samples, ranges settle at about 128", capsys.readouterr().err)


def test_a_bundle_for_cpus_leaves_the_others_alone(
    bundle: Bundle,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files for CPUs like this one alone; --slower, since products this small gain nothing anywhere."""
    monkeypatch.setattr(cpu, "ENGINES", ("onnxruntime",))
    out = tmp_path / "cpu.bundle"
    arguments = ("--target", "cpu", "--no-sensitivity")
    assert main(command(bundle, clips, out, *arguments, "--slower", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    (choice,) = report["cpu"]
    assert report["target"] == "cpu" and report["gate"]["psnr_db"] is None and report["gate"]["passed"]
    assert choice["psnr_db"]["worst"] >= 10 and set(choice["chosen"]) == {"encode", "deform"}
    made = Bundle.load(out)
    kind = processor.kind_of_this_cpu()
    assert choice["processor"]["kind"] == kind
    for stage, form in choice["chosen"].items():
        variant = select_variant(made, stage, "onnxruntime")
        assert (variant.precision, variant.faster_on) == (form, kind)
        assert select_variant(made, stage, "onnxruntime", device="cuda").precision == "fp32"
        assert select_variant(made, stage, "tensorrt").precision == "fp32", "nothing was measured for it"
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"for onnxruntime; only on CPUs of kind {kind} (as here)" in shown
    assert re.search(r"onnxruntime: encode int8[a-z-]*, deform int8[a-z-]*, worst frame [\d.]+ dB", shown)
    assert "TensorRT:" not in shown
    assert main(["verify", str(out), "--frames", "2"]) == 0


@pytest.mark.usefixtures("no_cpu_forms")
def test_targets_that_cannot_be_meant(
    bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.bundle"
    refused = {
        ("cpu", "--no-sensitivity"): "Nothing is gained: no engine was asked for",
        ("cpu", "--precision", "fp8"): "FP8 is for TensorRT alone",
        ("cpu", "--force-quality"): "Saving below the gate is for TensorRT's files alone",
    }
    for options, message in refused.items():
        assert main(command(bundle, clips, out, "--target", *options)) == 2
        assert message in capsys.readouterr().err and not out.exists()
    plain = build_small_bundle(tmp_path / "plain" / "plain.bundle", engines=("onnxruntime", "openvino"))
    assert main(command(plain, clips, out, "--target", "tensorrt")) == 2
    assert "has no files for TensorRT" in capsys.readouterr().err and not out.exists()


@pytest.mark.usefixtures("no_cpu_forms")
def test_a_quantised_bundle_is_calibrated_again_from_its_fp32_files(
    made: tuple[Path, dict[str, object]],
    pristine: Bundle,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = made[0] / "int8.bundle", tmp_path / "again.bundle"
    again = ("--no-sensitivity", "--precision", "fp8")
    assert main(command(Bundle.load(path), clips, out, *again)) == 0
    for stage in pristine.stage_names:
        precisions = [v.precision for v in Bundle.load(out).variants(stage)]
        assert precisions == ["fp8", "fp32"], "what was quantised before is left out"
    # Without fp32 files there is nothing to start from or to compare with.
    own = shutil.copytree(path, tmp_path / "own.bundle")
    manifest = json.loads((path / "bundle.json").read_text())
    for stage in manifest["stages"].values():
        stage["variants"] = [v for v in stage["variants"] if v["precision"] != "fp32"]
        for variant in stage["variants"]:
            variant.pop("faster_on", None)
    (own / "bundle.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(command(Bundle.load(own), clips, tmp_path / "third.bundle")) == 2
    assert "is quantised already: stage encode has encode.int8.onnx and no fp32" in capsys.readouterr().err
    # One that only says that it has.
    for stage in manifest["stages"].values():
        stage["variants"] = [{**stage["variants"][0], "precision": "fp32"}]
    (own / "bundle.json").write_text(json.dumps(manifest))
    assert main(command(Bundle.load(own), clips, tmp_path / "third.bundle")) == 2
    assert "encode.int8.onnx is quantised already" in capsys.readouterr().err
