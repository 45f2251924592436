"""Bundles: what is refused, with which words, and that writing is all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle, fake_model

from streamsplat_edge.runtime.bundle import Bundle, TensorSpec
from streamsplat_edge.runtime.errors import BundleError


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def refusal(path: Path, **options: Any) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.load(path, **options)
    assert caught.value.hint, "every refusal says what to do"
    return caught.value


def set_at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets the field at a dotted path (numbers index lists)."""

    def change(manifest: dict[str, Any]) -> None:
        target: Any = manifest
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        for part in parents:
            target = target[part]
        target[last] = value

    return change


def test_load(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.name == "fake" and bundle.stage_names == ("encode", "deform")
    assert bundle.model == fake_model()
    assert bundle.model.tokens == 8 and bundle.model.gaussians == 128
    assert bundle.manifest["version"] == 1 and bundle.provenance["trained"] == "no"
    assert bundle.quality == {} and bundle.plans == ()
    variant = bundle.variant("encode", "onnxruntime")
    assert variant.path == folder / "encode.onnx" and variant.path.is_file()
    assert variant.inputs == (TensorSpec("rgbd", (1, 4, 16, 32)),)
    assert str(variant.inputs[0]) == "rgbd float32[1,4,16,32]"
    assert bundle.variant("encode", "openvino", "fp32") == variant
    assert "fake.bundle" in repr(bundle)


def test_variant_that_does_not_exist(folder: Path) -> None:
    bundle = Bundle.load(folder)
    with pytest.raises(BundleError, match=r"no stage `depth`, only encode, deform"):
        bundle.variant("depth", "onnxruntime")
    with pytest.raises(BundleError, match=r"engine tensorrt\. It has: encode\.onnx \(fp32: onnxruntime"):
        bundle.variant("encode", "tensorrt")
    with pytest.raises(BundleError, match="at precision int8"):
        bundle.variant("encode", "onnxruntime", "int8")


def test_not_a_bundle(tmp_path: Path, folder: Path) -> None:
    assert "There is no bundle" in refusal(tmp_path / "absent.bundle").message
    assert "is a file" in refusal(folder / "bundle.json").message
    assert "holds no bundle.json" in refusal(tmp_path).message
    (folder / "bundle.json").write_bytes(b"\xff\xfe\x00 not text")
    assert "not text" in refusal(folder).message
    (folder / "bundle.json").write_text(" " * (17 << 20))
    assert "too large" in refusal(folder).message


def test_manifest_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    assert "Permission denied" in refusal(folder).message


@pytest.mark.parametrize("keep", [0, 1, 40, 400, -3])
def test_truncated_json(folder: Path, keep: int) -> None:
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text[:keep])
    assert "is cut short" in refusal(folder).message


def test_malformed_json(folder: Path) -> None:
    (folder / "bundle.json").write_text('{"format" "streamsplat-bundle"}')
    assert "not valid JSON (line 1, column 11" in refusal(folder).message
    (folder / "bundle.json").write_text('{"version": 1, "version": 2}')
    assert "`version` appears twice" in refusal(folder).message
    (folder / "bundle.json").write_text('{"version": NaN}')
    assert "NaN is not a JSON number" in refusal(folder).message
    for number, message in (("9" * 5000, "out of range"), ("-" + "9" * 5000, "range"), ("1e999", "1e999 is")):
        (folder / "bundle.json").write_text(f'{{"version": {number}}}')
        assert message in refusal(folder).message
    (folder / "bundle.json").write_text("[" * 200_000)
    assert "nested" in refusal(folder).message or "cut short" in refusal(folder).message
    (folder / "bundle.json").write_text("[]")
    assert "must be an object" in refusal(folder).message


def test_versions(folder: Path) -> None:
    edit(folder, lambda m: m.update(version=2, new_field=1))
    error = refusal(folder)  # the version is named, not the field that comes with it
    assert "`version` is 2" in error.message and "pip install -U" in error.hint
    edit(folder, lambda m: m.update(version="1"))
    assert "`version` must be an integer" in refusal(folder).message
    edit(folder, lambda m: m.update(format="zip"))
    assert '`format` must be "streamsplat-bundle"' in refusal(folder).message


FIELDS: list[tuple[str, Any, str]] = [
    ("extra", 1, "`extra` is unknown"),
    ("model.extra", 1, "`model.extra` is unknown"),
    ("stages.encode.variants.0.note", "x", "`stages.encode.variants[0].note` is unknown"),
    ("stages.encode.variants.0.inputs.0.layout", "x", "inputs[0].layout` is unknown"),
    ("stages.encode.note", "x", "`stages.encode.note` is unknown"),
    ("stages.sharpen", {"variants": []}, "`stages.sharpen` must be one of depth, encode"),
    ("stages", [], "`stages` must be an object"),
    ("stages.encode.variants", [], "must list at least one file"),
    ("stages.encode.variants", {}, "must be a list"),
    ("name", "", "`name` must be a non-empty printable string"),
    ("name", "x\x1b[2Jy", "`name` must be a non-empty printable string"),
    ("name", "\ud800", "`name` must be a non-empty printable string"),
    ("model.height", 17, "`model.height` is 17, not a multiple of the patch size 8"),
    ("model.height", 16.0, "`model.height` must be an integer of at least 1"),
    ("model.width", True, "`model.width` must be an integer"),
    ("model.patch", 0, "`model.patch` must be an integer of at least 1"),
    ("model.grid", [8], "`model.grid` must have 2 entries"),
    ("model.grid", "8x16", "`model.grid` must be a list"),
    ("model.grid.0", -8, "`model.grid[0]` must be an integer"),
    ("model.depth_input", "ones", "must be one of zeros, stage"),
    ("model.depth_input", "stage", 'is "stage", but there is no `depth` stage'),
    ("model.depth_mapping", "other", "must be one of published, paper"),
    ("model.background", [0, 0, 2], "`model.background[2]` must be a number from 0 to 1"),
    ("model.background", [0, 0, "0"], "`model.background[2]` must be a number"),
    ("model.key_frame_gap", 0, "`model.key_frame_gap` must be"),
    ("model.key_frame_gap", 121, "`model.key_frame_gap` must be at most 120"),
    ("stages.encode.variants.0.inputs.0.shape", [1, 4, 2**20, 2**20], "has more than 2147483648 elements"),
    ("stages.encode.variants.0.engines", [], "must name at least one engine"),
    ("stages.encode.variants.0.engines", ["caffe"], "engines[0]` must be one of onnxruntime"),
    ("stages.encode.variants.0.precision", "FP32 !", "precision` must be"),
    ("stages.encode.variants.0.sha256", "abc", "sha256` must be"),
    ("stages.encode.variants.0.bytes", 5, "bytes` is 5, but encode.onnx has"),
    ("stages.encode.variants.0.sha256", "0" * 64, "sha256` is 000000000000…, but encode.onnx has"),
    ("stages.encode.variants.0.inputs", [], "must list at least one tensor"),
    ("stages.encode.variants.0.inputs.0.dtype", "int8", "dtype` must be one of float32"),
    ("stages.encode.variants.0.inputs.0.shape", [1, 4, 16, 0], "shape[3]` must be an integer"),
    ("stages.encode.variants.0.inputs.0.name", "rgb", "inputs` must be the tensors rgbd, not rgb"),
    # Stages against the model configuration, and so against each other.
    ("model.width", 64, "is 1x4x16x32, but the model configuration needs 1x4x16x64"),
    ("model.grid", [4, 8], "features.shape` is 1x128x3, but the model configuration needs 1x32x3"),
    ("model.grid", [16, 8], "`model.grid` is 16x8, not in the proportions of the model's 16x32 pixels"),
    ("model.token_dim", 5, "tokens.shape` is 1x8x4, but the model configuration needs 1x8x5"),
    ("model.feature_dim", 4, "features.shape` is 1x128x3"),
    ("stages.deform.variants.0.outputs.0.shape", [1, 128, 3], "motion.shape` is 1x128x3"),
    ("stages.deform.variants.0.inputs.0.shape", [1, 8], "tokens_0.shape` is 1x8"),
    ("plans", {}, "`plans` must be a list"),
    ("plans", [{}], "`plans[0].bytes` is missing"),
    ("provenance", [], "`provenance` must be an object"),
]


@pytest.mark.parametrize(("path", "value", "message"), FIELDS, ids=[f"{f[0]}={f[1]!r}"[:60] for f in FIELDS])
def test_bad_field(folder: Path, path: str, value: Any, message: str) -> None:
    edit(folder, set_at(path, value))
    assert message in refusal(folder).message


@pytest.mark.parametrize("name", ["name", "model", "stages", "plans", "provenance", "quality"])
def test_missing_field(folder: Path, name: str) -> None:
    edit(folder, lambda m: m.pop(name))
    assert f"`{name}` is missing" in refusal(folder).message


@pytest.mark.parametrize("stage", ["encode", "deform"])
def test_missing_stage(folder: Path, stage: str) -> None:
    edit(folder, lambda m: m["stages"].pop(stage))
    assert f"`stages.{stage}` is missing" in refusal(folder).message


@pytest.mark.parametrize(
    "name",
    [
        "../outside.onnx",
        "/etc/passwd",
        "a/../../b.onnx",
        "a\\b.onnx",
        "C:x.onnx",
        ".",
        "..",
        "",
        "bundle.json",
        "a//b",
    ],
)
def test_file_names_may_not_leave_the_folder(folder: Path, name: str) -> None:
    shutil.copy(folder / "encode.onnx", folder.parent / "outside.onnx")
    edit(folder, set_at("stages.encode.variants.0.file", name))
    message = refusal(folder).message
    assert "variants[0].file` must" in message


def test_links_may_not_leave_the_folder(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    shutil.move(folder / "encode.onnx", outside)
    (folder / "encode.onnx").symlink_to(outside)
    assert "a link to outside the bundle folder" in refusal(folder).message
    # A link that stays inside is harmless.
    (folder / "encode.onnx").unlink()
    shutil.move(outside, folder / "real.onnx")
    (folder / "encode.onnx").symlink_to("real.onnx")
    assert Bundle.load(folder).name == "fake"


def test_the_manifest_may_not_be_a_link_to_outside(folder: Path) -> None:
    outside = shutil.move(folder / "bundle.json", folder.parent / "other.json")
    (folder / "bundle.json").symlink_to(outside)
    assert "bundle.json is a link to outside the bundle folder" in refusal(folder).message


def test_linked_folder_may_not_leave_either(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.move(folder / "encode.onnx", elsewhere / "encode.onnx")
    (folder / "stages").symlink_to(elsewhere)
    edit(folder, set_at("stages.encode.variants.0.file", "stages/encode.onnx"))
    assert "a link to outside" in refusal(folder).message


def test_link_loop(folder: Path) -> None:
    (folder / "encode.onnx").unlink()
    (folder / "encode.onnx").symlink_to("encode.onnx")
    assert "encode.onnx" in refusal(folder).message


def test_a_bundle_reached_through_a_link_loads(folder: Path) -> None:
    (folder.parent / "link.bundle").symlink_to(folder)
    assert Bundle.load(folder.parent / "link.bundle").name == "fake"


def test_missing_and_odd_files(folder: Path) -> None:
    (folder / "encode.onnx").unlink()
    assert "names encode.onnx, which is missing" in refusal(folder).message
    (folder / "encode.onnx").mkdir()
    assert "not a regular file" in refusal(folder).message


def test_changed_content(folder: Path) -> None:
    data = bytearray((folder / "deform.onnx").read_bytes())
    data[100] ^= 1
    (folder / "deform.onnx").write_bytes(data)
    error = refusal(folder)
    assert "stages.deform.variants[0].sha256" in error.message and "copy or download" in error.hint
    Bundle.load(folder, verify_hashes=False)  # the same size, so only the hash tells
    (folder / "deform.onnx").write_bytes(data[:-1])
    assert "bytes`" in refusal(folder, verify_hashes=False).message


def test_unreadable_stage_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.suffix == ".onnx":
            raise PermissionError(13, "Permission denied")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refusal(folder).message


def test_condition_shapes_agree(tmp_path: Path) -> None:
    folder = build_fake_bundle(tmp_path / "c.bundle", condition_stage=True, depth_stage=True).path
    assert set(Bundle.load(folder).stage_names) == {"encode", "condition", "depth", "deform"}
    edit(folder, set_at("stages.condition.variants.0.outputs.0.shape", [1, 9, 3]))
    assert "condition_0.shape` is 1x8x3, but the model configuration needs 1x9x3" in refusal(folder).message
    edit(folder, lambda m: m["stages"].pop("condition"))
    assert (
        "must be the tensors features_0, features_1, tokens_0, tokens_1, not condition_0"
        in refusal(folder).message
    )


def test_depth_stage_without_depth_input(tmp_path: Path) -> None:
    folder = build_fake_bundle(tmp_path / "d.bundle", depth_stage=True).path
    edit(folder, set_at("model.depth_input", "zeros"))
    assert 'is "zeros", but there is a `depth` stage' in refusal(folder).message
