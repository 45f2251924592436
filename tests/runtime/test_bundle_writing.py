"""Bundles are written whole or not at all, and read back with what was put in."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle, fake_model
from test_bundle import edit, refusal, set_at

from streamsplat_edge.runtime import bundle_writing, processor
from streamsplat_edge.runtime.bundle import Bundle, PlanEntry
from streamsplat_edge.runtime.bundle_writing import VariantSource, store, store_quality, write_bundle
from streamsplat_edge.runtime.errors import BundleError, OutputError


def sources(folder: Path) -> dict[str, list[VariantSource]]:
    bundle = Bundle.load(folder)
    return {
        stage: [
            VariantSource(v.path, v.inputs, v.outputs, v.precision, v.engines) for v in bundle.variants(stage)
        ]
        for stage in bundle.stage_names
    }


def rewrite(folder: Path, target: Path, **changes: Any) -> Bundle:
    options: dict[str, Any] = dict(stages=sources(folder), provenance={}, quality={})
    options.update(changes)
    return write_bundle(target, "copy", fake_model(), options.pop("stages"), **options)


def leftovers(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.name.startswith(".")]


def test_plans_beside_the_stage_files(folder: Path, tmp_path: Path) -> None:
    """As `streamsplat-edge build` puts them there."""
    plan = PlanEntry(
        "encode",
        "plans/encode.engine",
        "a" * 64,
        4,
        "tensorrt",
        "10.3.0",
        "Orin",
        "8.7",
        "a" * 64,
        {"workspace": 1},
    )
    file = rewrite(folder, tmp_path / "p.bundle").path / plan.file
    file.parent.mkdir()
    file.write_bytes(b"plan")
    bundle = store(tmp_path / "p.bundle", {"plans": [asdict(plan)]})
    assert bundle.plans == (plan,) and (bundle.path / plan.file).read_bytes() == b"plan"
    assert bundle.unusable_plans(verify_hashes=False) == {}
    assert bundle.unusable_plans() == {plan.file: "is truncated or was changed"}
    file.write_bytes(b"planned")
    assert bundle.unusable_plans(verify_hashes=False) == {plan.file: "is truncated or was changed"}
    # Nobody is stopped by what may happen to a plan, but its name does not lead outside.
    file.unlink()
    assert Bundle.load(bundle.path).unusable_plans() == {plan.file: "is missing"}
    file.mkdir()
    assert Bundle.load(bundle.path).unusable_plans() == {plan.file: "is not a regular file"}
    file.rmdir()
    for target in (tmp_path / "engine", tmp_path / "nothing there", Path("../../engine")):
        file.symlink_to(target)
        assert "plans[0].file` names plans/encode.engine, a link to outside" in refusal(bundle.path).message
        file.unlink()


def test_several_variants(folder: Path, tmp_path: Path) -> None:
    stages = sources(folder)
    first = stages["encode"][0]
    fast = VariantSource(
        first.source, first.inputs, first.outputs, "int8", ["onnxruntime"], "encode.int8.onnx"
    )
    stages["encode"] = [fast, first]
    bundle = rewrite(folder, tmp_path / "v.bundle", stages=stages)
    assert bundle.variant("encode", "onnxruntime").path.name == "encode.int8.onnx"
    assert bundle.variant("encode", "openvino").path.name == "encode.onnx"
    assert bundle.variant("encode", "onnxruntime", "fp32").path.name == "encode.onnx"
    stages["encode"] = [first, first]
    with pytest.raises(BundleError, match=r"Two files of the bundle are named encode\.onnx"):
        rewrite(folder, tmp_path / "w.bundle", stages=stages)


def test_files_for_some_cpus(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken unasked where they pay, passed over elsewhere, and always to be had by their precision."""
    stages = sources(folder)
    first = stages["encode"][0]
    engines = ["onnxruntime", "tensorrt"]
    fast = VariantSource(
        first.source, first.inputs, first.outputs, "int8", engines, "encode.int8.onnx", faster_on="x86-vnni"
    )
    stages["encode"] = [fast, first]
    bundle = rewrite(folder, tmp_path / "v.bundle", stages=stages)

    def taken(engine: str, precision: str | None = None, device: str = "cpu") -> str:
        return bundle.variant("encode", engine, precision, device).precision

    for flags, expected in (({"avx2", "avx_vnni"}, "int8"), ({"avx2"}, "fp32"), (set(), "fp32")):
        monkeypatch.setattr(processor, "_flags", lambda flags=flags: frozenset(flags))
        assert taken("onnxruntime") == expected
        assert taken("onnxruntime", "int8") == "int8" and taken("onnxruntime", "fp32") == "fp32"
        assert taken("onnxruntime", device="cuda") == "fp32", "it was never measured on a GPU"
        assert taken("tensorrt", device="cuda") == "int8", "what a CPU is good at does not concern TensorRT"
        assert taken("openvino") == "fp32"
    with pytest.raises(
        BundleError, match=r"encode\.int8\.onnx \(int8: onnxruntime, tensorrt, faster on x86-vnni"
    ):
        bundle.variant("encode", "openvino", "int8")
    entry = bundle.manifest["stages"]["encode"]["variants"]
    assert entry[0]["faster_on"] == "x86-vnni" and "faster_on" not in entry[1]
    stages["encode"] = [fast]
    with pytest.raises(BundleError, match=r"`stages\.encode\.variants` must list a file for every"):
        rewrite(folder, tmp_path / "w.bundle", stages=stages)
    edit(bundle.path, set_at("stages.encode.variants.0.faster_on", "z80"))
    assert "faster_on` must be one of x86-vnni, arm-dotprod, any-cpu" in refusal(bundle.path).message


def test_kinds_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {("avx512_vnni",): "x86-vnni", ("asimddp",): "arm-dotprod", ("avx2",): "any-cpu", (): "any-cpu"}
    for flags, kind in kinds.items():
        monkeypatch.setattr(processor, "_flags", lambda flags=flags: frozenset(flags))
        assert processor.kind_of_this_cpu() == kind and processor.is_kind(kind)


def test_existing_target(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.bundle"
    rewrite(folder, target, quality={"psnr": 1.0})
    with pytest.raises(BundleError, match="exists already"):
        rewrite(folder, target)
    assert rewrite(folder, target, quality={"psnr": 2.0}, force=True).quality == {"psnr": 2.0}
    (tmp_path / "empty").mkdir()
    assert rewrite(folder, tmp_path / "empty", force=True).name == "copy"
    assert not leftovers(tmp_path)


def test_what_a_killed_process_left_is_replaced(folder: Path, tmp_path: Path) -> None:
    left = tmp_path / f".t.bundle.{os.getpid()}.tmp"
    left.mkdir()
    (left / "encode.onnx").write_bytes(b"half")
    assert rewrite(folder, tmp_path / "t.bundle").name == "copy"
    assert not leftovers(tmp_path)


def test_force_replaces_only_bundles(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(folder)
    for name in ("photos", "file", "link"):
        with pytest.raises(BundleError, match="not replaced"):
            rewrite(folder, tmp_path / name, force=True)
    assert (tmp_path / "photos" / "a.jpg").exists() and (tmp_path / "file").exists()


def test_invalid_result_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    stages = sources(folder)
    stages.pop("deform")
    with pytest.raises(BundleError, match=r"stages\.deform"):
        rewrite(folder, tmp_path / "bad.bundle", stages=stages)
    with pytest.raises(BundleError, match="not inside"):
        first = sources(folder)["encode"][0]
        outside = VariantSource(first.source, first.inputs, first.outputs, file="../x.onnx")
        rewrite(folder, tmp_path / "bad.bundle", stages={"encode": [outside]})
    assert not (tmp_path / "bad.bundle").exists() and not (tmp_path / "x.onnx").exists()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, [b"x"]])
def test_values_json_cannot_hold(folder: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(BundleError, match=r"quality\.x"):
        rewrite(folder, tmp_path / "n.bundle", quality={"x": value})
    assert not (tmp_path / "n.bundle").exists()


def test_failed_swap_restores_the_old_bundle(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = rewrite(folder, tmp_path / "s.bundle", quality={"psnr": 1.0}).path
    original = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return original(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="No space left on device"):
        rewrite(folder, target, quality={"psnr": 2.0}, force=True)
    monkeypatch.undo()
    assert Bundle.load(target).quality == {"psnr": 1.0} and not leftovers(tmp_path)


def test_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_writing.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left on device"):
        rewrite(folder, tmp_path / "f.bundle")
    assert not (tmp_path / "f.bundle").exists() and not leftovers(tmp_path)


def test_target_folder_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        rewrite(folder, tmp_path / "file" / "x.bundle")
    assert (tmp_path / "file").read_text() == "x"


def test_store_quality_changes_the_manifest_only(tmp_path: Path) -> None:
    bundle = build_fake_bundle(tmp_path / "a.bundle").path
    before = {p.name: p.read_bytes() for p in bundle.iterdir() if p.suffix == ".onnx"}
    stored = store_quality(bundle, {"average": {"key": 30.5}})
    assert stored.quality == {"average": {"key": 30.5}}
    assert Bundle.load(bundle).quality == {"average": {"key": 30.5}}
    assert {p.name: p.read_bytes() for p in bundle.iterdir() if p.suffix == ".onnx"} == before
    with pytest.raises(BundleError, match="quality"):
        store_quality(bundle, {"key": float("nan")})
    assert Bundle.load(bundle).quality == {"average": {"key": 30.5}}
    assert not list(bundle.glob(".*"))
