"""Export: the graphs compute what the modules do, and nothing is left when they do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from streamsplat_edge.export import export as export_module
from streamsplat_edge.export.export import export_bundle
from streamsplat_edge.export.graphs import ExportError
from streamsplat_edge.export.stages import stage_graphs
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import BundleError, InputError
from streamsplat_edge.runtime.stream import open_stream
from streamsplat_edge.training.checkpoint import save_weights
from streamsplat_edge.training.config import preset
from streamsplat_edge.training.model import StreamSplat

CONFIG = preset(
    "tiny", height=32, width=64, dim=32, head_dim=16, encoder_depth=1, decoder_depth=1,
    upsample_windows=(32, 64), upsample_blocks=(2, 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(StreamSplat(CONFIG), path, {})
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "small.bundle"
    exported, comparisons = export_bundle(checkpoint, out, provenance={"data": "random"})
    assert {(c.stage, c.output) for c in comparisons} == {
        ("encode", "tokens"), ("encode", "features"), ("encode", "gaussians"),
        ("deform", "motion"), ("deform", "fade"),
    }  # fmt: skip
    assert all(c.relative_l2 < 1e-5 for c in comparisons)
    return exported


def test_bundle_says_where_it_comes_from(bundle: Bundle) -> None:
    assert bundle.name == "tiny"
    assert bundle.provenance["data"] == "random"
    assert len(bundle.provenance["checkpoint_sha256"]) == 64
    assert bundle.model.gaussians == CONFIG.gaussians


def test_graphs_use_elementary_operators_and_carry_no_paths(bundle: Bundle) -> None:
    for stage in bundle.stage_names:
        file = bundle.path / f"{stage}.onnx"
        proto = onnx.load(file)
        assert next(o.version for o in proto.opset_import if o.domain == "") == 20
        kinds = {node.op_type for node in proto.graph.node}
        assert not kinds & {"Attention", "RMSNormalization", "Cast"}
        assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()


def test_runtime_renders_what_pytorch_predicts(bundle: Bundle, checkpoint: Path) -> None:
    torch.manual_seed(0)
    model = StreamSplat(CONFIG).eval()
    frames = (np.random.default_rng(0).random((2, 32, 64, 3)) * 255).astype(np.uint8)
    with open_stream(bundle.path) as stream:
        for i, frame in enumerate(frames):
            stream.push(frame, float(i))
        rgb = stream.render(0.5).rgb
    from streamsplat_edge.training.gaussians import render_pair
    from streamsplat_edge.training.objectives import to_rgbd

    with torch.no_grad():
        tokens, features, gaussians = model.encode(to_rgbd(torch.from_numpy(frames).permute(0, 3, 1, 2)))
        motion, fade = model.deform(tokens[None], features[None])
        expected, _, _ = render_pair(
            gaussians[None],
            motion,
            fade,
            torch.tensor([[0.5]]),
            torch.full((1, 3), 0.5),
            (32, 64),
            "published",
        )
    difference = np.abs(rgb.astype(float) - expected[0, 0].numpy() * 255)
    assert np.quantile(difference, 0.999) <= 0.51


def test_existing_bundle_is_not_overwritten(bundle: Bundle, checkpoint: Path) -> None:
    before = (bundle.path / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match="exists"):
        export_bundle(checkpoint, bundle.path)
    assert (bundle.path / "bundle.json").read_bytes() == before


def test_failed_verification_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_weights(model: StreamSplat) -> list[object]:
        stages = stage_graphs(model)
        write = export_module.write_graph

        def write_then_change(stage, path, opset):  # type: ignore[no-untyped-def]
            specs = write(stage, path, opset)
            with torch.no_grad():
                next(p for n, p in model.named_parameters() if n.endswith("rgb.bias")).add_(1.0)
            return specs

        monkeypatch.setattr(export_module, "write_graph", write_then_change)
        return list(stages)

    monkeypatch.setattr(export_module, "stage_graphs", other_weights)
    with pytest.raises(ExportError, match=r"encode\.gaussians differs"):
        export_bundle(checkpoint, tmp_path / "x.bundle")
    assert not list(tmp_path.iterdir())


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not weights")
    with pytest.raises(InputError, match="not a readable safetensors"):
        export_bundle(damaged, tmp_path / "x.bundle")


def test_command_line(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "cli.bundle"
    command = [
        sys.executable,
        "-m",
        "streamsplat_edge",
        "export",
        "--checkpoint",
        str(checkpoint),
        "-o",
        str(out),
    ]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "agrees with PyTorch" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "exists" in second.stderr
    missing = subprocess.run(
        [*command[:5], str(tmp_path / "no"), *command[6:]], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert "no checkpoint" in missing.stderr
