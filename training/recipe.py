"""A training run as data: a TOML file whose unknown fields are refused."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ..runtime.errors import InputError
from .config import ModelConfig, preset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one stage.

    Attributes:
        stage: "static" (encoder, one frame) or "dynamic" (decoder, pairs; encoder frozen).
        preset, model: the preset's name and fields of it to replace.
        data: folder made by `python -m streamsplat_edge.training.data.cache`.
        init: checkpoint whose weights start the run (stage 2: the one stage 1 wrote).
        steps, batch, seed: length, samples per step, seed of weights and data order.
        optimizer: "adamw" (published) or "muon" (hidden matrices by Muon, the rest by AdamW: converges in
        far fewer steps).
        lr: AdamW's learning rate; matrix_lr: Muon's.
        warmup: steps of linear warm-up; final_lr: fraction of the learning rate at the end of the cosine.
        synthetic: fraction of samples from the synthetic generator.
        probabilistic: sample positions in stage 1 (paper: probabilistic position sampling).
        warm_start: steps of the linear warm start before stage 1 (see `initialise.warm_start`).
        frames: frames per pair, ends included (stage "dynamic").
        renders: supervised times per pair (stage "dynamic").
        depth_weight, motion_weight, mask_weight: loss weights (see `objectives.py`).
    """

    stage: Literal["static", "dynamic"]
    preset: str
    data: str
    steps: int
    batch: int
    seed: int = 0
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 5e-4
    matrix_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: int = 200
    final_lr: float = 0.1
    clip: float = 1.0
    synthetic: float = 0.3
    probabilistic: bool = True
    warm_start: int = 0
    frames: int = 5
    renders: int = 3
    depth_weight: float = 0.1
    motion_weight: float = 0.0
    mask_weight: float = 0.0
    save_every: int = 250
    threads: int = 0

    @property
    def config(self) -> ModelConfig:
        return preset(
            self.preset, **{k: tuple(v) if isinstance(v, list) else v for k, v in self.model.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a TOML recipe; `overrides` that are not None win."""
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"No recipe at {path}.", "Recipes that ship with the project are in training/configs/."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from None
    known = {f.name for f in fields(Recipe)}
    for key in values:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            raise InputError(
                f"{path}: unknown field {key!r}.",
                f"Did you mean {close[0]!r}?" if close else f"Known: {sorted(known)}.",
            )
    values.update({k: v for k, v in overrides.items() if v is not None})
    if "betas" in values:
        values["betas"] = tuple(values["betas"])
    try:
        return Recipe(**values)
    except TypeError as error:
        raise InputError(f"{path}: {error}.", "Add the missing field to the recipe.") from None
