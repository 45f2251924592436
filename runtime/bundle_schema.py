"""The manifest of a bundle: its fields as dataclasses, and a validator that names the field and the remedy.

Written by hand instead of with a schema library so that the lean runtime needs none; `manifest_fields` reads
the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .manifest_fields import (
    REEXPORT,
    VERSION,
    as_choice,
    as_file_name,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_sequence,
    as_sha256,
    as_text,
    fail,
    show,
)
from .processor import CPU_KINDS
from .stage_tensors import check_stages

FORMAT = "streamsplat-bundle"

ENGINE_NAMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
PLAN_RUNTIMES = ("tensorrt", "tensorrt_rtx")
STAGE_NAMES = ("depth", "encode", "condition", "deform")
DEPTH_INPUTS = ("zeros", "stage")
DEPTH_MAPPINGS = ("published", "paper")
DTYPES = ("float32",)

KEY_FRAME_GAP_MAX = 120
"""Frames per pair at most: all of them wait in memory for the key frame that ends the pair."""

_ELEMENTS_MAX = 1 << 31  # of one tensor, 8 GB: beyond that a manifest asks for memory that it cannot mean


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one stage input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and conventions of the exported model.

    height, width: model input in pixels. patch: pixels per token side. grid: Gaussian rows and columns.
    depth_input: what fills the fourth input channel. depth_mapping: normalised inverse depth to depth
    (`published` or `paper`, see cuda/splat_math.h). background: RGB in [0, 1]. key_frame_gap: frames per
    pair.
    """

    preset: str
    height: int
    width: int
    patch: int
    grid: tuple[int, int]
    token_dim: int
    feature_dim: int
    depth_input: str = "zeros"
    depth_mapping: str = "published"
    background: tuple[float, float, float] = (0.5, 0.5, 0.5)
    key_frame_gap: int = 4

    @property
    def tokens(self) -> int:
        """Tokens per frame, N."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def gaussians(self) -> int:
        """Gaussians per key frame, G."""
        return self.grid[0] * self.grid[1]

    def to_json(self) -> dict[str, Any]:
        return {
            "preset": self.preset,
            "height": self.height,
            "width": self.width,
            "patch": self.patch,
            "grid": list(self.grid),
            "token_dim": self.token_dim,
            "feature_dim": self.feature_dim,
            "depth_input": self.depth_input,
            "depth_mapping": self.depth_mapping,
            "background": list(self.background),
            "key_frame_gap": self.key_frame_gap,
        }


@dataclass(frozen=True)
class WeightsEntry:
    """The file beside an ONNX file that holds its weights (ONNX files end at 2 GiB)."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class VariantEntry:
    """One file of a stage as the manifest states it.

    `faster_on` is the kind of CPU (`processor.CPU_KINDS`) that the file was made for: engines that run it on
    another, or on a GPU, pass it over unless its precision is asked for. TensorRT, where listed, takes it.
    """

    file: str
    sha256: str
    bytes: int
    precision: str
    engines: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: WeightsEntry | None = None
    faster_on: str | None = None

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "file": self.file,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "precision": self.precision,
            "engines": list(self.engines),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }
        if self.weights is not None:
            entry["weights"] = vars(self.weights)
        if self.faster_on is not None:
            entry["faster_on"] = self.faster_on
        return entry


@dataclass(frozen=True)
class PlanEntry:
    """A serialised TensorRT engine and the key it was built for.

    Attributes:
        runtime, version: module and full version that built it; what it runs with says `plan_choice`.
        device: name of the GPU it was built on; `any` for one built ahead of time.
        compute_capability: of that GPU ("8.7"), or those it was built for ("8.6, 8.9").
        onnx_sha256: of the stage file it was built from.
        settings: what else decides the plan.
    """

    stage: str
    file: str
    sha256: str
    bytes: int
    runtime: str
    version: str
    device: str
    compute_capability: str
    onnx_sha256: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A validated manifest. `raw` is the JSON object it came from."""

    name: str
    model: ModelConfig
    stages: dict[str, tuple[VariantEntry, ...]]
    plans: tuple[PlanEntry, ...]
    provenance: dict[str, Any]
    quality: dict[str, Any]
    verification: dict[str, Any]
    quantisation: dict[str, Any]
    raw: dict[str, Any]


def _tensor(value: object, field: str) -> TensorSpec:
    entry = as_object(value, field, ("name", "dtype", "shape"))
    sizes = as_list(entry["shape"], f"{field}.shape")
    shape = tuple(as_integer(size, f"{field}.shape[{i}]") for i, size in enumerate(sizes))
    if math.prod(shape) > _ELEMENTS_MAX:
        raise fail(f"{field}.shape", f"has more than {_ELEMENTS_MAX} elements")
    return TensorSpec(
        as_text(entry["name"], f"{field}.name"), shape, as_choice(entry["dtype"], f"{field}.dtype", DTYPES)
    )


def _tensors(value: object, field: str) -> tuple[TensorSpec, ...]:
    specs = tuple(_tensor(item, f"{field}[{i}]") for i, item in enumerate(as_list(value, field)))
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) != len(names):
        raise fail(field, "must list at least one tensor, each name once")
    return specs


def parse_model(value: object) -> ModelConfig:
    """Read and check the `model` object: ranges, divisibility, known words."""
    field = "model"
    names = tuple(ModelConfig.__dataclass_fields__)
    entry = as_object(value, field, names)
    height = as_integer(entry["height"], f"{field}.height")
    width = as_integer(entry["width"], f"{field}.width")
    patch = as_integer(entry["patch"], f"{field}.patch")
    for name, size in (("height", height), ("width", width)):
        if size % patch:
            raise fail(f"{field}.{name}", f"is {size}, not a multiple of the patch size {patch}")
    rows, cols = as_sequence(entry["grid"], f"{field}.grid", 2, as_integer)
    return ModelConfig(
        preset=as_text(entry["preset"], f"{field}.preset"),
        height=height,
        width=width,
        patch=patch,
        grid=(rows, cols),
        token_dim=as_integer(entry["token_dim"], f"{field}.token_dim"),
        feature_dim=as_integer(entry["feature_dim"], f"{field}.feature_dim"),
        depth_input=as_choice(entry["depth_input"], f"{field}.depth_input", DEPTH_INPUTS),
        depth_mapping=as_choice(entry["depth_mapping"], f"{field}.depth_mapping", DEPTH_MAPPINGS),
        background=as_sequence(
            entry["background"], f"{field}.background", 3, lambda item, name: as_number(item, name, 0.0, 1.0)
        ),
        key_frame_gap=as_integer(entry["key_frame_gap"], f"{field}.key_frame_gap", KEY_FRAME_GAP_MAX),
    )


def _variant(value: object, field: str) -> VariantEntry:
    given = as_object(value, field)
    keys = [k for k in VariantEntry.__dataclass_fields__ if k in given or k not in ("weights", "faster_on")]
    entry = as_object(given, field, keys)
    engines = as_list(entry["engines"], f"{field}.engines")
    if not engines:
        raise fail(f"{field}.engines", "must name at least one engine")
    return VariantEntry(
        file=as_file_name(entry["file"], f"{field}.file"),
        sha256=as_sha256(entry["sha256"], f"{field}.sha256"),
        bytes=as_integer(entry["bytes"], f"{field}.bytes"),
        precision=as_text(entry["precision"], f"{field}.precision", r"[a-z0-9][a-z0-9_.+-]*"),
        engines=tuple(
            as_choice(name, f"{field}.engines[{i}]", ENGINE_NAMES) for i, name in enumerate(engines)
        ),
        inputs=_tensors(entry["inputs"], f"{field}.inputs"),
        outputs=_tensors(entry["outputs"], f"{field}.outputs"),
        weights=_weights(entry["weights"], f"{field}.weights") if "weights" in entry else None,
        faster_on=(
            as_choice(entry["faster_on"], f"{field}.faster_on", tuple(CPU_KINDS))
            if "faster_on" in entry
            else None
        ),
    )


def _weights(value: object, field: str) -> WeightsEntry:
    entry = as_object(value, field, tuple(WeightsEntry.__dataclass_fields__))
    return WeightsEntry(
        as_file_name(entry["file"], f"{field}.file"),
        as_sha256(entry["sha256"], f"{field}.sha256"),
        as_integer(entry["bytes"], f"{field}.bytes"),
    )


def _stage(value: object, field: str) -> tuple[VariantEntry, ...]:
    variants = as_list(as_object(value, field, ("variants",))["variants"], f"{field}.variants")
    if not variants:
        raise fail(f"{field}.variants", "must list at least one file")
    entries = tuple(_variant(item, f"{field}.variants[{i}]") for i, item in enumerate(variants))
    if all(entry.faster_on is not None for entry in entries):
        raise fail(f"{field}.variants", "must list a file for every machine, without `faster_on`")
    return entries


def _plan(value: object, field: str) -> PlanEntry:
    entry = as_object(value, field, tuple(PlanEntry.__dataclass_fields__))
    return PlanEntry(
        stage=as_choice(entry["stage"], f"{field}.stage", STAGE_NAMES),
        file=as_file_name(entry["file"], f"{field}.file"),
        sha256=as_sha256(entry["sha256"], f"{field}.sha256"),
        bytes=as_integer(entry["bytes"], f"{field}.bytes"),
        runtime=as_choice(entry["runtime"], f"{field}.runtime", PLAN_RUNTIMES),
        version=as_text(entry["version"], f"{field}.version"),
        device=as_text(entry["device"], f"{field}.device"),
        compute_capability=as_text(entry["compute_capability"], f"{field}.compute_capability"),
        onnx_sha256=as_sha256(entry["onnx_sha256"], f"{field}.onnx_sha256"),
        settings=as_object(entry["settings"], f"{field}.settings"),
    )


def parse_manifest(value: object) -> Manifest:
    """Validate a decoded manifest. Raises `BundleError` naming the first field that is wrong.

    The version is looked at before anything else, so that a bundle of another version says so instead of
    complaining about a field this version does not know.
    """
    top = as_object(value, "(top level)")
    if top.get("format") != FORMAT:
        raise fail("format", f'must be "{FORMAT}", not {show(top.get("format"))}', "This is not a bundle.")
    version = as_integer(top.get("version"), "version")
    if version != VERSION:
        newer = version > VERSION
        raise fail(
            "version",
            f"is {version}, this program reads version {VERSION}",
            "Upgrade: `pip install -U streamsplat-edge`." if newer else REEXPORT,
        )
    # Bundles that were not verified or not quantised have no such field.
    top = as_object(
        {"verification": {}, "quantisation": {}, **top},
        "(top level)",
        (
            *("format", "version", "name", "model", "stages", "plans", "provenance", "quality"),
            *("verification", "quantisation"),
        ),
    )
    model = parse_model(top["model"])
    stages = as_object(top["stages"], "stages")
    for stage in stages:
        as_choice(stage, f"stages.{stage}", STAGE_NAMES)
    parsed = {stage: _stage(entry, f"stages.{stage}") for stage, entry in stages.items()}
    check_stages(model, parsed)
    plans = tuple(_plan(item, f"plans[{i}]") for i, item in enumerate(as_list(top["plans"], "plans")))
    return Manifest(
        name=as_text(top["name"], "name"),
        model=model,
        stages=parsed,
        plans=plans,
        provenance=as_object(top["provenance"], "provenance"),
        quality=as_object(top["quality"], "quality"),
        verification=as_object(top["verification"], "verification"),
        quantisation=as_object(top["quantisation"], "quantisation"),
        raw=top,
    )
