"""Bundles are written here, and fields of existing ones replaced (`bundle` reads them).

Writing is atomic: a temporary folder beside the target is filled, read back through the same validation as
any bundle, and then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle import Bundle, sha256_of
from .bundle_schema import (
    ENGINE_NAMES,
    FORMAT,
    ModelConfig,
    TensorSpec,
    VariantEntry,
    WeightsEntry,
    parse_manifest,
)
from .errors import BundleError, OutputError
from .folders import swap_in
from .manifest_fields import MANIFEST_NAME, VERSION, finite_json


@dataclass(frozen=True)
class VariantSource:
    """A stage file to be copied into a bundle by `write_bundle`.

    `file` is the name inside the bundle; empty means the name of `source`. `weights` keeps its name, since
    the ONNX file refers to it. `faster_on`: see `VariantEntry`.
    """

    source: Path
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    precision: str = "fp32"
    engines: Sequence[str] = ENGINE_NAMES
    file: str = ""
    weights: Path | None = None
    faster_on: str | None = None


def write_bundle(
    path: str | os.PathLike[str],
    name: str,
    model: ModelConfig,
    stages: Mapping[str, Sequence[VariantSource]],
    *,
    provenance: Mapping[str, Any],
    quality: Mapping[str, Any],
    verification: Mapping[str, Any] | None = None,
    quantisation: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Bundle:
    """Write a bundle and return it as read back from disk; either all of it appears at `path` or nothing.

    It has no plans: `streamsplat-edge build` adds them, see `store`.

    Args:
        path: folder to create. With `force`, a bundle (or an empty folder) already there is replaced.
        stages: stage name to its files, the preferred one first.
        provenance, quality, verification, quantisation: plain JSON values (no NaN).

    Raises:
        BundleError: the result would not be a valid bundle, or `path` exists and may not be replaced.
        OutputError: the disk refuses.
    """
    target = Path(path)
    stated = {
        "provenance": dict(provenance),
        "quality": dict(quality),
        "verification": dict(verification or {}),
        **({"quantisation": dict(quantisation)} if quantisation else {}),
    }
    for field, value in stated.items():
        finite_json(value, field)
    check_replaceable(target, force)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A killed process of the same number left it: in a container every run has the same number.
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            entries = {
                stage: {"variants": [_copy_variant(scratch, source).to_json() for source in sources]}
                for stage, sources in stages.items()
            }
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "name": name,
                "model": model.to_json(),
                "stages": entries,
                "plans": [],
                **stated,
            }
            _write_manifest(scratch / MANIFEST_NAME, manifest)
            Bundle.load(scratch)
            swap_in(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"Bundle {target} cannot be written: {error.strerror or error}.",
            "Check the path, its permissions and the disk.",
        ) from error
    return Bundle.load(target, verify_hashes=False)


def store_quality(path: str | os.PathLike[str], quality: Mapping[str, Any]) -> Bundle:
    """Write measured quality into the manifest of an existing bundle; its files stay as they are.

    Raises:
        BundleError: `path` is not a valid bundle, or `quality` is not plain JSON.
        OutputError: the disk refuses; the old manifest is kept.
    """
    return store(path, {"quality": dict(quality)})


def store(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> Bundle:
    """Replace top-level fields of an existing bundle's manifest; its stage files stay as they are.

    Args:
        path: the bundle's folder.
        fields: any of `plans` (a list of `PlanEntry` as dicts; their files are in place already), `quality`
            and `verification`.

    Raises:
        BundleError: `path` is not a valid bundle, or would not be one with these fields.
        OutputError: the disk refuses; the old manifest is kept.
    """
    bundle = Bundle.load(path)
    finite_json(dict(fields), "(top level)")
    manifest = bundle.manifest | dict(fields)
    parse_manifest(manifest)
    target = bundle.path / MANIFEST_NAME
    scratch = target.with_name(f".{MANIFEST_NAME}.{os.getpid()}.tmp")
    try:
        _write_manifest(scratch, manifest)
        scratch.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}.", "Check its permissions and the disk."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    return Bundle.load(path, verify_hashes=False)


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def check_replaceable(target: Path, force: bool) -> None:
    """Refuse a target that `write_bundle` would refuse; for callers with long work ahead of writing.

    Raises:
        BundleError: `target` exists and may not be replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise BundleError(
            f"{target} exists already.", "Choose another name, or pass force (--force) to replace it."
        )
    # Replacing deletes a folder, so it must be one that is clearly ours.
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{target} is not a folder and is not replaced.", "Choose another name.")
    if any(target.iterdir()) and not (target / MANIFEST_NAME).is_file():
        raise BundleError(f"{target} is not a bundle and is not replaced.", "Choose another name.")


def _copy_in(folder: Path, name: str, source: Path) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{name} is not inside the bundle folder.", "Use a plain file name.")
    if path.exists():
        raise BundleError(
            f"Two files of the bundle are named {name}.", "Give each variant its own file name."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
    return path


def _copy_variant(folder: Path, source: VariantSource) -> VariantEntry:
    name = source.file or source.source.name
    path = _copy_in(folder, name, source.source)
    weights = None
    if source.weights is not None:
        beside = str(Path(name).parent / source.weights.name)
        copy = _copy_in(folder, beside, source.weights)
        weights = WeightsEntry(beside, sha256_of(copy), copy.stat().st_size)
    return VariantEntry(
        file=name,
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        precision=source.precision,
        engines=tuple(source.engines),
        inputs=tuple(source.inputs),
        outputs=tuple(source.outputs),
        weights=weights,
        faster_on=source.faster_on,
    )
