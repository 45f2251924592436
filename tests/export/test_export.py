"""Export: the graphs compute what the modules do, nothing is left when they do not, and every refusal."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from small_model import MATCHING, small_model

from streamsplat_edge.cli import main
from streamsplat_edge.export import export as export_module
from streamsplat_edge.export.export import GraphOptions, engines_for, export_bundle
from streamsplat_edge.export.graphs import ExportError, GraphFile
from streamsplat_edge.export.load import Source
from streamsplat_edge.export.stages import StageGraph
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import BundleError, InputError
from streamsplat_edge.runtime.stream import open_stream
from streamsplat_edge.training.checkpoint import save_weights
from streamsplat_edge.training.model import StreamSplat


@pytest.fixture()
def written_before(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """`write_graph` copies the graphs of `bundle`: tests of what happens around it take no ten seconds."""

    def write_graph(stage: StageGraph, path: Path, _opset: int, _dynamic: bool) -> GraphFile:
        variant = bundle.variant(stage.name, "onnxruntime")
        shutil.copyfile(variant.path, path)
        return GraphFile(path, variant.inputs, variant.outputs)

    monkeypatch.setattr(export_module, "write_graph", write_graph)


EXPECTED = {
    ("encode", "tokens"), ("encode", "features"), ("encode", "gaussians"),
    ("deform", "motion"), ("deform", "fade"), ("condition", "condition"), ("depth", "depth"),
}  # fmt: skip


def test_command_line_reports_every_output(exported: tuple[Path, str, str]) -> None:
    _, stdout, stderr = exported
    report = json.loads(stdout)
    assert report["bundle"] == str(exported[0] / "small.bundle")
    found = report["verification"]
    assert {(c["precision"], c["stage"], c["output"]) for c in found["stages"]} == {
        (precision, *pair) for precision in ("fp32", "fp16") for pair in EXPECTED
    }
    assert all(c["relative_l2"] < 1e-5 for c in found["stages"] if c["precision"] == "fp32")
    assert found["psnr_db"]["onnxruntime fp16"] >= 45 and found["passed"]
    assert "verify" in stderr, "progress"


def test_bundle_says_where_it_comes_from(bundle: Bundle) -> None:
    assert bundle.name == "tiny"
    assert bundle.provenance["data"] == "random" and bundle.provenance["opset"] == 20
    assert len(bundle.provenance["checkpoint_sha256"]) == 64
    assert bundle.model.gaussians == MATCHING.gaussians


def test_graphs_use_elementary_operators_and_carry_no_paths(bundle: Bundle) -> None:
    for stage in bundle.stage_names:
        file = bundle.path / f"{stage}.onnx"
        proto = onnx.load(file)
        assert next(o.version for o in proto.opset_import if o.domain == "") == 20
        kinds = {node.op_type for node in proto.graph.node}
        assert not kinds & {"Attention", "RMSNormalization", "Cast", "Identity"}
        outputs = [name for node in proto.graph.node for name in node.output]
        used = {name for node in proto.graph.node for name in node.input} | {
            o.name for o in proto.graph.output
        }
        assert all(set(node.output) & used for node in proto.graph.node), "no dead nodes"
        computed = [
            (n.op_type, *n.input, *(a.SerializeToString() for a in n.attribute)) for n in proto.graph.node
        ]
        assert (
            len(set(computed)) == len(computed) == len(set(n.name for n in proto.graph.node)) <= len(outputs)
        )
        module = {
            "depth": "up_8.merge.0",
            "condition": "conv_1",
            "encode": "resblocks.0",
            "deform": "decoder.level_8.norm",
        }[stage]
        assert any(module in n.name for n in proto.graph.node) and proto.graph.input[0].doc_string
        assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()


def test_runtime_renders_what_pytorch_predicts(bundle: Bundle, checkpoint: Path) -> None:
    model = small_model(MATCHING)
    frames = (np.random.default_rng(0).random((2, 32, 64, 3)) * 255).astype(np.uint8)
    with open_stream(bundle.path) as stream:
        for i, frame in enumerate(frames):
            stream.push(frame, float(i))
        rgb = stream.render(0.5).rgb
    from streamsplat_edge.runtime.preprocess import DepthRange
    from streamsplat_edge.training.gaussians import render_pair
    from streamsplat_edge.training.objectives import to_rgbd

    with torch.no_grad():
        rgbd = to_rgbd(torch.from_numpy(frames).permute(0, 3, 1, 2))
        planes, scale = model.depth(rgbd[:, :3]).numpy(), DepthRange()
        for i, plane in enumerate(planes):
            scale = scale.normalise(plane, float(i))
        rgbd[:, 3:] = torch.from_numpy(planes)
        tokens, features, gaussians = model.encode(rgbd)
        motion, fade = model.deform(tokens[None], features[None], model.condition(rgbd[:, :3])[None])
        expected, _, _ = render_pair(
            gaussians[None],
            motion,
            fade,
            torch.tensor([[0.5]]),
            torch.full((1, 3), 0.5),
            (32, 64),
            "published",
        )
    difference = np.abs(rgb.astype(float) - expected[0, 0].clamp(0, 1).numpy() * 255)
    assert np.quantile(difference, 0.999) <= 0.51


@pytest.mark.parametrize(
    ("precision", "precisions", "engines"),
    [
        ("fp32", ("fp32",), ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")),
        ("fp32", ("fp32", "fp16"), ("onnxruntime", "openvino")),
        ("fp16", ("fp32", "fp16"), ("onnxruntime", "tensorrt", "tensorrt_rtx")),
        ("bf16", ("fp32", "bf16"), ("tensorrt", "tensorrt_rtx")),
    ],
)
def test_files_are_meant_for_engines_that_can_run_them(
    precision: str, precisions: tuple[str, ...], engines: tuple[str, ...]
) -> None:
    """CPUs take fp32 where it is there, TensorRT what is below it; nothing but TensorRT runs bf16."""
    assert engines_for(precision, precisions) == engines


def test_existing_bundle_is_only_replaced_by_force(
    bundle: Bundle, checkpoint: Path, tmp_path: Path, written_before: None
) -> None:
    out = tmp_path / "x.bundle"
    source = Source(checkpoint)
    first, _ = export_bundle(source, out, name="first")
    before = (out / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match="exists"):
        export_bundle(source, out)
    assert (out / "bundle.json").read_bytes() == before
    second, report = export_bundle(source, out, name="second", force=True)
    assert (first.name, second.name, Bundle.load(out).name) == ("first", "second", "second")
    assert len(report.comparisons) == 7 and Bundle.load(out).verification["passed"] is True


def test_failed_verification_leaves_nothing(tmp_path: Path, written_before: None) -> None:
    other = small_model(MATCHING)
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if n.endswith("rgb.bias")).add_(1.0)
    save_weights(other, tmp_path / "other.safetensors", {})
    with pytest.raises(ExportError, match=r"encode\.gaussians differs") as error:
        export_bundle(Source(tmp_path / "other.safetensors"), tmp_path / "x.bundle")
    assert "motion" not in str(error.value), "what agrees is not listed"
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]


def test_checkpoints_of_no_use_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def refuses(path: Path, message: str, source: dict[str, Any] | None = None, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            export_bundle(Source(path, **(source or {})), tmp_path / "x.bundle", **options)

    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not weights")
    refuses(damaged, "not a readable safetensors")
    nameless = tmp_path / "nameless.safetensors"
    save_file(StreamSplat(MATCHING).state_dict(), str(nameless))
    refuses(nameless, "does not say which model")
    first = tmp_path / "stage1.safetensors"
    save_weights(StreamSplat(MATCHING), first, {}, "static")
    refuses(first, "holds stage 1 only")
    refuses(nameless, "does not fit the model", {"preset": "tiny"})
    refuses(nameless, "no preset 'huge'", {"preset": "huge"})
    refuses(checkpoint, "is a tiny model, not base", {"preset": "base"})
    for change, message in (
        ({"depth_input": "stage"}, "needs Depth Anything V2"),
        (
            {"condition": "dino", "condition_dim": 8, "condition_len": 4, "decoder": "attention"},
            "needs DINOv2",
        ),
    ):
        other = tmp_path / "other.safetensors"
        save_weights(StreamSplat(replace(MATCHING, **change)), other, {})
        refuses(other, message)
    refuses(checkpoint, "does not use DINOv2", {"dino": checkpoint})
    refuses(checkpoint, "33x64 is not a multiple of the patch size 8", {"size": (33, 64)})
    for opset in (17, 26):
        refuses(checkpoint, f"operator set {opset} cannot", options=GraphOptions(opset=opset))
    refuses(checkpoint, "'int8' cannot be exported", options=GraphOptions(("int8",)))
    refuses(checkpoint, "must not say opset", provenance={"opset": 21})
    assert not (tmp_path / "x.bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "no"], "no checkpoint at no"),
        (["--provenance", "no.json"], "no.json cannot be read as JSON"),
        (["--provenance", "list.json"], "holds a JSON list, not an object"),
        (["--opset", "17"], "operator set 17"),
        (["--precision", "fp12"], "Precision 'fp12' cannot be exported"),
    ],
)
def test_command_line_refusals(
    checkpoint: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    command = ["export", "--checkpoint", str(checkpoint), "-o", "x.bundle", *arguments]
    assert main(command) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x.bundle").exists()


def test_command_line_prints_a_table(
    checkpoint: Path, tmp_path: Path, written_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--checkpoint", str(checkpoint), "-o", str(tmp_path / "x.bundle"), "--quiet"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "agrees with PyTorch" in captured.out and "encode.gaussians" in captured.out and not captured.err
