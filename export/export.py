"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..runtime.bundle import Bundle, ModelConfig, sha256_of
from ..runtime.bundle_writing import VariantSource, check_replaceable, write_bundle
from ..runtime.errors import InputError
from ..training.config import ModelConfig as TrainingConfig
from .graphs import ExportError, check_opset, write_graph
from .load import LoadedModel, Source, load
from .precision import PRECISIONS, check_precision, lowered
from .record import default_thresholds
from .stage_engines import module_engines
from .stages import StageGraph
from .verify import Report, verify_bundle
from .video import example_frames


@dataclass(frozen=True)
class GraphOptions:
    """How stages are written: precisions of the matrix products, operator set, free batch axis."""

    precisions: tuple[str, ...] = ("fp32",)
    opset: int = 20
    dynamic_batch: bool = False

    def check(self) -> None:
        """Raise InputError for what cannot be exported."""
        check_opset(self.opset)
        for precision in self.precisions:
            check_precision(precision)
        if len(set(self.precisions)) != len(self.precisions) or not self.precisions:
            raise InputError("Each precision is exported once.", "Give for example --precision fp32,fp16.")


def runtime_config(config: TrainingConfig) -> ModelConfig:
    """What the runtime needs to know of a model."""
    return ModelConfig(
        preset=config.name,
        height=config.height,
        width=config.width,
        patch=config.patch,
        grid=config.grid,
        token_dim=config.dim,
        feature_dim=config.feature_dim,
        depth_input="zeros" if config.depth_input == "zeros" else "stage",
        depth_mapping=config.depth_mapping,
        key_frame_gap=config.key_frame_gap,
    )


def engines_for(precision: str, precisions: Sequence[str]) -> tuple[str, ...]:
    """The engines a file is meant for, given all precisions of the bundle.

    fp16 is slower than fp32 on CPUs, and ONNX Runtime has no bf16 there; so CPU engines take the fp32 file
    where there is one (files are listed in the order of `PRECISIONS`), and TensorRT one below it.
    """
    tensorrt = ("tensorrt", "tensorrt_rtx")
    if precision == "fp32":
        return ("onnxruntime", "openvino") + (tensorrt if len(precisions) == 1 else ())
    return ("onnxruntime", *tensorrt) if precision == "fp16" else tensorrt


def export_bundle(
    source: Source,
    out: Path,
    *,
    options: GraphOptions | None = None,
    name: str = "",
    provenance: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: bool = False,
) -> tuple[Bundle, Report]:
    """Export a checkpoint as a bundle and verify it in ONNX Runtime against PyTorch in fp32.

    Args:
        source: checkpoint and companions.
        out: bundle folder to write; nothing is left there when verification fails.
        options: precisions, operator set, batch.
        name: the bundle's name (the preset's when empty).
        provenance: added to the manifest, beside the hashes of the weights, the operator set and torch's
            version.
        force: replace an existing bundle.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the checkpoint, its companions, an option or the provenance cannot be used.
        ExportError: a stage cannot be exported or fails verification.
        BundleError: `out` exists.
        OutputError: the disk refuses.
    """
    options = options or GraphOptions()
    options.check()
    check_replaceable(out, force)
    loaded = load(source)
    facts = _facts(source, options)
    taken = sorted(facts.keys() & (provenance or {}).keys())
    if taken:
        raise InputError(
            f"The provenance must not say {', '.join(taken)}: the export does.", "Remove that from it."
        )
    described = {**facts, **(provenance or {})}
    stages = loaded.graphs()
    precisions = [p for p in PRECISIONS if p in options.precisions]
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(
            total=len(stages) * len(precisions) + 1, disable=not progress, desc="export", unit="step"
        ) as bar,
    ):
        files: dict[str, list[VariantSource]] = {stage.name: [] for stage in stages}
        for precision in precisions:
            engines = engines_for(precision, precisions)
            for stage in stages:
                bar.set_postfix_str(f"write {stage.name} {precision}")
                files[stage.name].append(_written(stage, precision, engines, options, Path(folder)))
                bar.update(1)
        bar.set_postfix_str("verify")
        content = (name or loaded.config.name, runtime_config(loaded.config), files)
        # Verified as a bundle, from disk, before anything appears at `out`.
        trial = write_bundle(Path(folder) / "trial.bundle", *content, provenance=described, quality={})
        report = _verified(trial, loaded, progress)
        bundle = write_bundle(
            out, *content, provenance=described, quality={}, verification=report.to_json(), force=force
        )
        bar.update(1)
    return bundle, report


def _written(
    stage: StageGraph, precision: str, engines: tuple[str, ...], options: GraphOptions, folder: Path
) -> VariantSource:
    """A stage as a file of this precision."""
    suffix = "" if precision == "fp32" else f".{precision}"
    path = folder / f"{stage.name}{suffix}.onnx"
    lower = replace(stage, module=lowered(stage.module, precision, options.opset))
    graph = write_graph(lower, path, options.opset, options.dynamic_batch)
    return VariantSource(path, graph.inputs, graph.outputs, precision, engines, weights=graph.weights)


def _facts(source: Source, options: GraphOptions) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "checkpoint_sha256": sha256_of(source.checkpoint),
        "opset": options.opset,
        "torch": torch.__version__,
    }
    for key, path in (("dino", source.dino), ("depth", source.depth)):
        if path is not None:
            weights = path / "model.safetensors" if path.is_dir() else path
            facts[f"{key}_sha256"] = sha256_of(weights)
    if source.size is not None:
        facts["size"] = list(source.size)
    return facts


def _verified(trial: Bundle, loaded: LoadedModel, progress: bool) -> Report:
    """The report on example pictures; export has no video at hand (`verify` takes one)."""
    model = trial.model
    report = verify_bundle(
        trial,
        module_engines(trial, loaded),
        example_frames(model.height, model.width),
        thresholds=default_thresholds(),
        source="example pictures",
        progress=progress,
    )
    if report.failures:
        raise ExportError(
            "The exported graphs do not compute what the model does: " + "; ".join(report.failures) + ".",
            "If the weights are sound, report this with the versions `streamsplat-edge doctor` prints.",
        )
    return report
