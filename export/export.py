"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..runtime.bundle import (
    Bundle,
    ModelConfig,
    VariantSource,
    check_replaceable,
    sha256_of,
    write_bundle,
)
from ..runtime.errors import InputError
from ..training.checkpoint import holds_dynamic_half, load_weights, read_config
from ..training.config import ModelConfig as TrainingConfig
from ..training.model import StreamSplat
from .graphs import check_opset, write_graph
from .stages import stage_graphs
from .verify import Comparison, verify_stages


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


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    name: str = "",
    opset: int = 20,
    provenance: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: bool = False,
) -> tuple[Bundle, list[Comparison]]:
    """Export a checkpoint written by `training` as a bundle of fp32 stages and verify it in ONNX Runtime.

    Args:
        checkpoint: safetensors file with its configuration.
        out: bundle folder to write; nothing is left there when verification fails.
        name: the bundle's name (the preset's when empty).
        opset: ONNX operator set, see `graphs.OPSETS`.
        provenance: added to the manifest, beside the checkpoint's hash, the operator set and torch's version.
        force: replace an existing bundle.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the checkpoint, operator set or provenance cannot be used.
        ExportError: a stage cannot be exported or fails verification.
        BundleError: `out` exists.
        OutputError: the disk refuses.
    """
    check_opset(opset)
    check_replaceable(out, force)
    model = _load(checkpoint)
    facts = {"checkpoint_sha256": sha256_of(checkpoint), "opset": opset, "torch": torch.__version__}
    taken = sorted(facts.keys() & (provenance or {}).keys())
    if taken:
        raise InputError(
            f"The provenance must not say {', '.join(taken)}: the export does.", "Remove that from it."
        )
    stages = stage_graphs(model)
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(stages) + 1, disable=not progress, desc="export", unit="step") as bar,
    ):
        sources = {}
        for stage in stages:
            bar.set_postfix_str(f"write {stage.name}")
            path = Path(folder) / f"{stage.name}.onnx"
            inputs, outputs = write_graph(stage, path, opset)
            sources[stage.name] = [VariantSource(path, inputs, outputs)]
            bar.update(1)
        bar.set_postfix_str("verify")
        content = (name or model.config.name, runtime_config(model.config), sources)
        described = {**facts, **(provenance or {})}
        # Verified as a bundle, from disk, before anything appears at `out`.
        trial = write_bundle(Path(folder) / "trial.bundle", *content, provenance=described, quality={})
        comparisons = verify_stages(trial, stages)
        bundle = write_bundle(out, *content, provenance=described, quality={}, force=force)
        bar.update(1)
    return bundle, comparisons


def _load(checkpoint: Path) -> StreamSplat:
    """The model of a checkpoint, refused where a stage that it needs is not exported yet."""
    config = read_config(checkpoint)
    if config.condition == "dino" or config.depth_input == "stage":
        raise InputError(
            f"{checkpoint} needs the stages of condition {config.condition!r} and depth input "
            f"{config.depth_input!r}, which are not exported yet.",
            'Train with condition = "tokens" or "conv", and depth_input = "zeros" or "conv".',
        )
    if not holds_dynamic_half(checkpoint):
        raise InputError(
            f"{checkpoint} holds stage 1 only.", "Train stage 2 from it: streamsplat-edge train dynamic."
        )
    model = StreamSplat(config)
    load_weights(model, checkpoint)
    return model
