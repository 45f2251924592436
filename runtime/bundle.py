"""The bundle: a folder `NAME.bundle/` with `bundle.json` and the stage files it names. Read and written here.

Reading trusts nothing: the manifest is validated field by field (`bundle_schema`), file names may not leave
the folder (neither by wording nor through a link), and sizes and SHA-256 of all files are compared. Writing
is atomic: a temporary folder beside the target is filled, read back through the same validation and then
renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .bundle_schema import (
    ENGINE_NAMES,
    FORMAT,
    Manifest,
    ModelConfig,
    PlanEntry,
    TensorSpec,
    VariantEntry,
    WeightsEntry,
    parse_manifest,
)
from .errors import BundleError, OutputError
from .manifest_fields import MANIFEST_NAME, VERSION, decode_json, fail, finite_json

__all__ = [
    "ENGINE_NAMES",
    "Bundle",
    "ModelConfig",
    "Plan",
    "PlanEntry",
    "StageVariant",
    "TensorSpec",
    "VariantSource",
    "check_replaceable",
    "sha256_of",
    "store",
    "store_quality",
    "write_bundle",
]

_REBUILD = "Build it again: streamsplat-edge build."
_CORRUPT = "The file was changed or damaged after export: copy or download the bundle again."
_MANIFEST_LIMIT = 16 << 20  # bytes; a manifest is some kilobytes, so anything larger is not one


@dataclass(frozen=True)
class Plan:
    """A serialised TensorRT engine on disk and its key."""

    path: Path
    entry: PlanEntry


@dataclass(frozen=True)
class StageVariant:
    """One file of a stage, located on disk and ready for an engine.

    `precision` is the precision recipe of the file itself; an engine may run an fp32 file at bf16.
    `weights` is the file beside it with its weights, if any. `plans` were built from this very file.
    """

    stage: str
    path: Path
    precision: str
    engines: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: str
    weights: Path | None = None
    plans: tuple[Plan, ...] = ()


@dataclass(frozen=True)
class VariantSource:
    """A stage file to be copied into a bundle by `write_bundle`.

    `file` is the name inside the bundle; empty means the name of `source`. `weights` keeps its name, since
    the ONNX file refers to it.
    """

    source: Path
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    precision: str = "fp32"
    engines: Sequence[str] = ENGINE_NAMES
    file: str = ""
    weights: Path | None = None


class Bundle:
    """A validated bundle on disk. Create with `Bundle.load`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify_hashes: bool = True) -> Bundle:
        """Read and check a bundle.

        Args:
            path: the bundle's folder.
            verify_hashes: also compare the SHA-256 of every stage file (sizes are always compared).

        Raises:
            BundleError: not a bundle, another version, a bad field, or a file missing, changed or outside.
        """
        root = Path(path)
        manifest = parse_manifest(decode_json(_read_manifest(root), MANIFEST_NAME))
        for stage, variants in manifest.stages.items():
            for i, entry in enumerate(variants):
                field = f"stages.{stage}.variants[{i}]"
                _check_file(root, entry, field, verify_hashes)
                if entry.weights is not None:
                    _check_file(root, entry.weights, f"{field}.weights", verify_hashes)
        # Engines compare the hash of the plan they load: there may be many, of gigabytes.
        for i, plan in enumerate(manifest.plans):
            _check_file(root, plan, f"plans[{i}]", False, _REBUILD)
        return cls(root, manifest)

    @property
    def name(self) -> str:
        return self._manifest.name

    @property
    def model(self) -> ModelConfig:
        return self._manifest.model

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as read from JSON. Treat as read-only."""
        return self._manifest.raw

    @property
    def provenance(self) -> dict[str, Any]:
        return self._manifest.provenance

    @property
    def quality(self) -> dict[str, Any]:
        return self._manifest.quality

    @property
    def verification(self) -> dict[str, Any]:
        """Thresholds and the last result of `streamsplat-edge verify` for exactly these files."""
        return self._manifest.verification

    @property
    def quantisation(self) -> dict[str, Any]:
        """What `streamsplat-edge calibrate` did and measured; empty for a bundle that is not quantised."""
        return self._manifest.quantisation

    @property
    def plans(self) -> tuple[PlanEntry, ...]:
        return self._manifest.plans

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(self._manifest.stages)

    def variants(self, stage: str) -> tuple[StageVariant, ...]:
        """All files of a stage in manifest order (the exporter puts the preferred one first)."""
        if stage not in self._manifest.stages:
            raise BundleError(
                f"Bundle {self.path} has no stage `{stage}`, only {', '.join(self.stage_names)}.",
                "Export the bundle with that stage.",
            )
        return tuple(
            StageVariant(
                stage,
                self.path / entry.file,
                entry.precision,
                entry.engines,
                entry.inputs,
                entry.outputs,
                entry.sha256,
                self.path / entry.weights.file if entry.weights else None,
                tuple(
                    Plan(self.path / plan.file, plan)
                    for plan in self.plans
                    if plan.stage == stage and plan.onnx_sha256 == entry.sha256
                ),
            )
            for entry in self._manifest.stages[stage]
        )

    def variant(self, stage: str, engine: str, precision: str | None = None) -> StageVariant:
        """The first file of a stage meant for `engine` and, when given, with exactly this file precision.

        Raises:
            BundleError: there is none; the message lists what there is.
        """
        for variant in self.variants(stage):
            if engine in variant.engines and precision in (None, variant.precision):
                return variant
        have = "; ".join(
            f"{v.path.name} ({v.precision}: {', '.join(v.engines)})" for v in self.variants(stage)
        )
        wanted = f"engine {engine}" + (f" at precision {precision}" if precision else "")
        raise BundleError(
            f"Bundle {self.path} has no file of stage `{stage}` for {wanted}. It has: {have}.",
            "Choose another engine or precision, or export this variant.",
        )

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"


def _read_manifest(root: Path) -> str:
    file = root / MANIFEST_NAME
    try:
        if not root.exists():
            raise BundleError(f"There is no bundle at {root}.", "Give the path of a folder NAME.bundle.")
        if not root.is_dir():
            raise BundleError(
                f"{root} is a file, but a bundle is a folder.", f"Give the folder that holds {MANIFEST_NAME}."
            )
        if not file.is_file():
            raise BundleError(
                f"{root} is not a bundle: it holds no {MANIFEST_NAME}.",
                f"Give the folder that holds {MANIFEST_NAME}.",
            )
        if not file.resolve().is_relative_to(root.resolve()):
            raise BundleError(
                f"{file} is a link to outside the bundle folder.", "Replace the link by the file itself."
            )
        if file.stat().st_size > _MANIFEST_LIMIT:
            raise BundleError(f"{file} is too large to be a bundle manifest.", "This is not a bundle.")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{file} is not text (UTF-8).", "Copy or download the bundle again.") from None
    except OSError as error:
        raise BundleError(
            f"{file} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error


def _locate(root: Path, name: str, field: str) -> Path:
    """The file on disk, refused when a link takes it outside the bundle's folder."""
    path = root / name
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        raise fail(
            field, f"names {name}, which is missing from {root}", "Copy or download the bundle again."
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links (Python < 3.13)
        raise fail(field, f"names {name}, which cannot be read ({error})", "Check the file.") from None
    if not real.is_relative_to(root.resolve()):
        raise fail(
            field,
            f"names {name}, a link to outside the bundle folder ({real})",
            "Replace the link by the file itself.",
        )
    if not real.is_file():
        raise fail(field, f"names {name}, which is not a regular file", "Copy or download the bundle again.")
    return real


def _check_file(
    root: Path,
    entry: VariantEntry | WeightsEntry | PlanEntry,
    field: str,
    verify_hash: bool,
    hint: str = _CORRUPT,
) -> None:
    path = _locate(root, entry.file, f"{field}.file")
    size = path.stat().st_size
    if size != entry.bytes:
        raise fail(f"{field}.bytes", f"is {entry.bytes}, but {entry.file} has {size} bytes", hint)
    if verify_hash:
        actual = sha256_of(path)
        if actual != entry.sha256:
            raise fail(
                f"{field}.sha256", f"is {entry.sha256[:12]}…, but {entry.file} has {actual[:12]}…", hint
            )


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    return digest.hexdigest()


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
    plans: Iterable[PlanEntry] = (),
    plan_files: Mapping[str, Path] | None = None,
    force: bool = False,
) -> Bundle:
    """Write a bundle and return it as read back from disk; either all of it appears at `path` or nothing.

    Args:
        path: folder to create. With `force`, a bundle (or an empty folder) already there is replaced.
        stages: stage name to its files, the preferred one first.
        provenance, quality, verification, quantisation: plain JSON values (no NaN).
        plans, plan_files: serialised engines, and for each plan's `file` the file to copy.

    Raises:
        BundleError: the result would not be a valid bundle, or `path` exists and may not be replaced.
        OutputError: the disk refuses.
    """
    target = Path(path)
    plans = tuple(plans)
    finite_json(dict(provenance), "provenance")
    finite_json(dict(quality), "quality")
    finite_json(dict(verification or {}), "verification")
    finite_json(dict(quantisation or {}), "quantisation")
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
            for plan in plans:
                _copy_in(scratch, plan.file, (plan_files or {}).get(plan.file))
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "name": name,
                "model": model.to_json(),
                "stages": entries,
                "plans": [asdict(plan) for plan in plans],
                "provenance": dict(provenance),
                "quality": dict(quality),
                "verification": dict(verification or {}),
                **({"quantisation": dict(quantisation)} if quantisation else {}),
            }
            _write_manifest(scratch / MANIFEST_NAME, manifest)
            Bundle.load(scratch)
            _swap_in(scratch, target)
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
        fields: any of `plans` (a list of `PlanEntry` as dicts; the files must be there), `quality` and
            `verification`.

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


def _copy_in(folder: Path, name: str, source: Path | None) -> Path:
    if source is None:
        raise BundleError(f"No file was given for {name}.", "Pass it in plan_files.")
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
    )


def _swap_in(scratch: Path, target: Path) -> None:
    """Rename the finished folder to its name; an older bundle is moved aside, and back on failure."""
    if not target.exists():
        scratch.rename(target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(aside)
    try:
        scratch.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
