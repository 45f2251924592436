"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..runtime.bundle import Bundle, ModelConfig, VariantSource, check_replaceable, write_bundle
from ..runtime.errors import InputError
from ..training.checkpoint import load_weights, read_config
from ..training.config import ModelConfig as TrainingConfig
from ..training.model import StreamSplat
from .graphs import write_graph
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
        depth_input=config.depth_input,
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
    quality: Mapping[str, Any] | None = None,
    force: bool = False,
) -> tuple[Bundle, list[Comparison]]:
    """Export a checkpoint written by `training` as a bundle of fp32 stages and verify it in ONNX Runtime.

    Args:
        checkpoint: safetensors file with its configuration.
        out: bundle folder to write; nothing is left there when verification fails.
        name: the bundle's name (the preset's when empty).
        provenance, quality: added to the manifest.
        force: replace an existing bundle.

    Raises:
        InputError: the checkpoint cannot be used.
        ExportError: a stage cannot be exported or fails verification.
        BundleError: `out` exists.
    """
    check_replaceable(out, force)
    config = read_config(checkpoint)
    if config.condition != "tokens":
        # The `condition` stage (DINOv2) is not exported yet.
        raise InputError(
            f"Models with condition {config.condition!r} cannot be exported yet.", 'Use condition = "tokens".'
        )
    model = StreamSplat(config)
    load_weights(model, checkpoint)
    stages = stage_graphs(model)
    facts = {
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "opset": opset,
        "torch": torch.__version__,
        **(provenance or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for stage in stages:
            path = Path(folder) / f"{stage.name}.onnx"
            inputs, outputs = write_graph(stage, path, opset)
            sources[stage.name] = [VariantSource(path, inputs, outputs)]
        arguments = (name or config.name, runtime_config(config), sources)
        # Verified as a bundle, from disk, before anything appears at `out`.
        trial = write_bundle(Path(folder) / "trial.bundle", *arguments, provenance=facts, quality={})
        comparisons = verify_stages(trial, stages)
        bundle = write_bundle(out, *arguments, provenance=facts, quality=quality or {}, force=force)
    return bundle, comparisons
