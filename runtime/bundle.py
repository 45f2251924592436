"""The bundle: a folder `NAME.bundle/` with `bundle.json` and the stage files it names. Read here, written by
`bundle_writing`.

Reading trusts nothing: the manifest is validated field by field (`bundle_schema`), file names may not leave
the folder (neither by wording nor through a link), and sizes and SHA-256 of all stage files are compared.
A plan that is missing or was changed leaves the bundle valid: whoever loads a plan looks (`Plan.problem`).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle_schema import (
    ENGINE_NAMES,
    PLAN_RUNTIMES,
    Manifest,
    ModelConfig,
    PlanEntry,
    TensorSpec,
    VariantEntry,
    WeightsEntry,
    parse_manifest,
)
from .errors import BundleError
from .manifest_fields import MANIFEST_NAME, decode_json, fail
from .processor import is_kind

__all__ = [
    "ENGINE_NAMES",
    "Bundle",
    "ModelConfig",
    "Plan",
    "PlanEntry",
    "StageVariant",
    "TensorSpec",
    "sha256_of",
]

_CORRUPT = "The file was changed or damaged after export: copy or download the bundle again."
_INCOMPLETE = "Copy or download the bundle again."
_MANIFEST_LIMIT = 16 << 20  # bytes; a manifest is some kilobytes, so anything larger is not one


@dataclass(frozen=True)
class Plan:
    """A serialised TensorRT engine on disk and its key."""

    path: Path
    entry: PlanEntry

    def problem(self, *, verify_hash: bool = True) -> str:
        """Why this is not the file that was built; empty where it is. Without the hash only sizes count.

        No engine loads a plan that has one, and `streamsplat-edge build` makes it again.
        """
        try:
            size = self.path.stat().st_size
            if not self.path.is_file():
                return "is not a regular file"
            if size != self.entry.bytes or (verify_hash and sha256_of(self.path) != self.entry.sha256):
                return "is truncated or was changed"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except BundleError as error:
            return error.message.removeprefix(f"{self.path} ").rstrip(".")
        return ""


@dataclass(frozen=True)
class StageVariant:
    """One file of a stage, located on disk and ready for an engine.

    `precision` is the precision recipe of the file itself; an engine may run an fp32 file at bf16.
    `weights` is the file beside it with its weights, if any. `plans` were built from this very file.
    `faster_on` is the kind of CPU it was made for (`processor.CPU_KINDS`); None is anywhere.
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
    faster_on: str | None = None

    @property
    def quantised(self) -> bool:
        """Whether products compute in 8 bits."""
        return self.precision.startswith(("int8", "fp8"))

    def pays(self, engine: str, device: str) -> bool:
        """Whether the file is one for this engine to take unasked, on a device (`cpu` or `cuda`) here."""
        if self.faster_on is None or engine in PLAN_RUNTIMES:
            return engine in self.engines
        return engine in self.engines and device == "cpu" and is_kind(self.faster_on)

    def __str__(self) -> str:
        where = f", faster on {self.faster_on}" if self.faster_on else ""
        return f"{self.path.name} ({self.precision}: {', '.join(self.engines)}{where})"


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
            verify_hashes: also compare the SHA-256 of every stage file (sizes are always compared). Plans are
                not compared: see `unusable_plans`.

        Raises:
            BundleError: not a bundle, another version, a bad field, a stage file missing or changed, or any
                file outside.
        """
        root = Path(path)
        manifest = parse_manifest(decode_json(_read_manifest(root), MANIFEST_NAME))
        for stage, variants in manifest.stages.items():
            for i, entry in enumerate(variants):
                field = f"stages.{stage}.variants[{i}]"
                _check_file(root, entry, field, verify_hashes)
                if entry.weights is not None:
                    _check_file(root, entry.weights, f"{field}.weights", verify_hashes)
        # Engines compare the plan they load: there may be many, of gigabytes, and on a CPU none is needed.
        for i, plan in enumerate(manifest.plans):
            check_inside(root, plan.file, f"plans[{i}].file")
        return cls(root, manifest)

    @property
    def name(self) -> str:
        """As its exporter named it; not the folder's name."""
        return self._manifest.name

    @property
    def model(self) -> ModelConfig:
        """Sizes and conventions of the model."""
        return self._manifest.model

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as read from JSON. Treat as read-only."""
        return self._manifest.raw

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from: checkpoint, data, licence, as the exporter gave them."""
        return self._manifest.provenance

    @property
    def quality(self) -> dict[str, Any]:
        """What was measured for exactly these files; empty where nothing was."""
        return self._manifest.quality

    @property
    def verification(self) -> dict[str, Any]:
        """Thresholds and the last results of `streamsplat-edge verify` for exactly these files."""
        return self._manifest.verification

    @property
    def quantisation(self) -> dict[str, Any]:
        """What `streamsplat-edge calibrate` did and measured; empty for a bundle that is not quantised."""
        return self._manifest.quantisation

    @property
    def plans(self) -> tuple[PlanEntry, ...]:
        """Plans of all stages, whether or not their files are whole: see `unusable_plans`."""
        return self._manifest.plans

    def unusable_plans(self, *, verify_hashes: bool = True) -> dict[str, str]:
        """File and problem of every plan that is missing or was changed after it was built."""
        found = {
            plan.file: Plan(self.path / plan.file, plan).problem(verify_hash=verify_hashes)
            for plan in self.plans
        }
        return {file: problem for file, problem in found.items() if problem}

    @property
    def stage_names(self) -> tuple[str, ...]:
        """`encode` and `deform`, and `depth` and `condition` where it has them."""
        return tuple(self._manifest.stages)

    @property
    def precisions(self) -> list[str]:
        """Precision recipes of all stage files, sorted."""
        return sorted({entry.precision for files in self._manifest.stages.values() for entry in files})

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
                entry.faster_on,
            )
            for entry in self._manifest.stages[stage]
        )

    def variant(
        self, stage: str, engine: str, precision: str | None = None, device: str = "cpu"
    ) -> StageVariant:
        """The first file of a stage meant for `engine` with exactly this file precision; where none is asked
        for, the first that pays on `device`.

        Raises:
            BundleError: there is none; the message lists what there is.
        """
        for variant in self.variants(stage):
            if precision is None and variant.pays(engine, device):
                return variant
            if precision == variant.precision and engine in variant.engines:
                return variant
        have = "; ".join(str(variant) for variant in self.variants(stage))
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
        raise BundleError(f"{file} is not text (UTF-8).", _INCOMPLETE) from None
    except OSError as error:
        raise BundleError(
            f"{file} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error


def check_inside(root: Path, name: str, field: str) -> Path:
    """The real path of a file that need not exist, refused when a link takes it outside the bundle's folder.

    Raises:
        BundleError: it leads outside, or nowhere; the message names `field`.
    """
    try:
        real = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links (Python < 3.13)
        raise fail(field, f"names {name}, which cannot be read ({error})", "Check the file.") from None
    if not real.is_relative_to(root.resolve()):
        raise fail(
            field,
            f"names {name}, a link to outside the bundle folder ({real})",
            "Replace the link by the file itself.",
        )
    return real


def _check_file(root: Path, entry: VariantEntry | WeightsEntry, field: str, verify_hash: bool) -> None:
    name = entry.file
    path = check_inside(root, name, f"{field}.file")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise fail(f"{field}.file", f"names {name}, which is missing from {root}", _INCOMPLETE) from None
    except OSError as error:  # among them a loop of links
        problem = f"names {name}, which cannot be read ({error})"
        raise fail(f"{field}.file", problem, "Check the file.") from None
    if not path.is_file():
        raise fail(f"{field}.file", f"names {name}, which is not a regular file", _INCOMPLETE)
    if size != entry.bytes:
        raise fail(f"{field}.bytes", f"is {entry.bytes}, but {name} has {size} bytes", _CORRUPT)
    if verify_hash:
        actual = sha256_of(path)
        if actual != entry.sha256:
            raise fail(f"{field}.sha256", f"is {entry.sha256[:12]}…, but {name} has {actual[:12]}…", _CORRUPT)


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
