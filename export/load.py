"""From a checkpoint, and what belongs to it, to the modules that the stages are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..runtime.errors import InputError
from ..training.checkpoint import holds_dynamic_half, load_weights, read_config, states_config
from ..training.config import PRESETS, ModelConfig
from ..training.model import StreamSplat
from .published import DepthStage, DinoStage
from .resize import dino_size, resized
from .small import ConvDepthStage
from .stages import ConditionStage, StageGraph, stage_graphs


@dataclass(frozen=True)
class Source:
    """Files and choices that a model is loaded from.

    Attributes:
        checkpoint: safetensors, ours (with its configuration) or published (then `preset` names it).
        preset: configuration of a checkpoint that states none.
        dino: weights of DINOv2, where the model's condition is "dino".
        depth: weights of Depth Anything V2, where the model's depth input is "stage"; also takes the place of
            a model's own depth network ("conv").
        size: rows and columns in pixels; None is the size it was trained at.
    """

    checkpoint: Path
    preset: str = ""
    dino: Path | None = None
    depth: Path | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for `graphs`, and the stages that feed it."""

    model: StreamSplat
    condition: nn.Module | None
    depth: DepthStage | ConvDepthStage | None

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def graphs(self) -> list[StageGraph]:
        """The stages with example inputs."""
        return stage_graphs(self.model, self.condition, self.depth)


def load(source: Source) -> LoadedModel:
    """Read the weights and build the model at the size asked for.

    Raises:
        InputError: a file is missing, damaged, of another architecture or of stage 1 only; a file that the
            model needs was not given, or one that it does not use was; the size does not fit the patch.
    """
    config = _config(source)
    _check_companions(source, config)
    if not holds_dynamic_half(source.checkpoint):
        raise InputError(
            f"{source.checkpoint} holds stage 1 only.",
            "Train stage 2 from it: streamsplat-edge train dynamic.",
        )
    model = StreamSplat(config)
    load_weights(model, source.checkpoint)
    if source.size is not None:
        model = resized(model, *source.size)
    model.eval().requires_grad_(False)
    condition = ConditionStage(model) if config.condition == "conv" else _dino(source, model.config)
    return LoadedModel(model, condition, _depth(source, model))


def _config(source: Source) -> ModelConfig:
    if not source.checkpoint.is_file():
        raise InputError(f"There is no checkpoint at {source.checkpoint}.", "Give a .safetensors file.")
    if source.preset and source.preset not in PRESETS:
        raise InputError(f"There is no preset {source.preset!r}.", f"Use one of {', '.join(PRESETS)}.")
    if not states_config(source.checkpoint):
        if source.preset:
            return PRESETS[source.preset]
        raise InputError(
            f"{source.checkpoint} does not say which model it belongs to.",
            "For the published checkpoint: --preset base. Otherwise give weights that "
            "`streamsplat-edge train` wrote.",
        )
    config = read_config(source.checkpoint)
    if source.preset not in ("", config.name):
        raise InputError(
            f"{source.checkpoint} is a {config.name} model, not {source.preset}.", "Leave --preset out."
        )
    return config


def _check_companions(source: Source, config: ModelConfig) -> None:
    for given, needed, option, what in (
        (source.dino, config.condition == "dino", "--dino", "DINOv2 ViT-B/14 with registers"),
        (source.depth, config.depth_input == "stage", "--depth", "Depth Anything V2"),
    ):
        if needed and given is None:
            raise InputError(
                f"{source.checkpoint} ({config.name}) needs {what}, whose weights are not in it.",
                f"Give its weight file or local hub folder with {option}.",
            )
        replaces = option == "--depth" and config.depth_input == "conv"
        if given is not None and not needed and not replaces:
            raise InputError(f"A {config.name} model does not use {what}.", f"Leave {option} out.")
        if given is not None and not given.exists():
            raise InputError(f"There is nothing at {given}.", f"Give the weights of {what} with {option}.")


def _dino(source: Source, config: ModelConfig) -> nn.Module | None:
    if source.dino is None:
        return None
    from ..training.condition import load_dino  # needs `transformers`

    dino = load_dino(source.dino, dino_size(config.height, config.width))
    width = dino.model.config.hidden_size
    if width != config.condition_dim:
        raise InputError(
            f"{source.dino} has tokens of width {width}; the model needs {config.condition_dim}.",
            "Use the size of DINOv2 that belongs to the checkpoint (base: ViT-B/14).",
        )
    return DinoStage(dino)


def _depth(source: Source, model: StreamSplat) -> DepthStage | ConvDepthStage | None:
    config = model.config
    if source.depth is None:
        own = config.depth_input == "conv"
        return ConvDepthStage(model.depth_encoder, config.height, config.width) if own else None
    from ..training.depth import load_depth_anything  # needs `transformers`

    return DepthStage(load_depth_anything(source.depth), config.height, config.width)
