"""A training run as data: a TOML file. Unknown fields, wrong types and wrong ranges are refused by name."""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..runtime.errors import InputError
from .config import ModelConfig, preset
from .fields import check_names, check_types

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Fields that do not change what a step computes, or only say where to find what it needs: a run may be
# resumed with others.
FREE_FIELDS = frozenset(
    {
        "threads", "workers", "save_every", "tensorboard", "image_every",
        "data", "init", "init_depth", "init_motion", "lpips_weights", "dino",
    }
)  # fmt: skip

# Least values; what is not listed may be any of its type.
_LEAST = {
    "steps": 1, "batch": 1, "seed": 0, "weight_decay": 0, "warmup": 0, "final_lr": 0, "synthetic": 0,
    "warm_start": 0, "frames": 3, "renders": 0, "depth_weight": 0, "slopes_weight": 0,
    "motion_weight": 0, "mask_weight": 0, "heads_lr": 0,
    "ssi_depth_weight": 0, "ssi_depth_start": 0, "lpips_weight": 0, "lpips_start": 0, "save_every": 1,
    "image_every": 1, "workers": 1, "threads": 0,
}  # fmt: skip
_MOST = {"seed": 2**32 - 1, "final_lr": 1, "synthetic": 1, "ssi_depth_start": 1, "lpips_start": 1}
_POSITIVE = ("lr", "matrix_lr", "clip")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one stage; InputError for a value that cannot be used.

    Attributes:
        stage: "depth" (the depth network alone, frames with known depth), "static" (encoder, one frame),
            "motion" (the matching decoder alone, pairs with known flow) or "dynamic" (decoder, pairs; encoder
            frozen).
        preset, model: the preset's name and fields of it to replace.
        data: folder made by `python -m streamsplat_edge.training.data.cache`.
        init: checkpoint whose weights start the run (stage "dynamic": the one stage "static" wrote).
        init_depth: weights that stage "depth" wrote, for stage "static" of a model with depth input "conv",
            or for more of stage "depth"; they take the place of the depth network in `init`.
        init_motion: weights that stage "motion" wrote, for stage "dynamic" of a model that matches.
        steps, batch, seed: length, samples per step, seed of weights and data order.
        optimizer: "adamw" (published) or "muon" (hidden matrices by Muon, the rest by AdamW: converges in
            far fewer steps).
        lr: AdamW's learning rate; matrix_lr: Muon's.
        betas, weight_decay, clip: AdamW's momenta, decay, and the largest norm of the gradient.
        warmup: steps of linear warm-up; final_lr: fraction of the learning rate at the end of the cosine.
        synthetic: fraction of sequences, and in stage "depth" of frames, from the synthetic generator (the
            mix of stage "static" is fixed, see `data.loader.Mixer.batch_stills`).
        augmentation: "light" (flips, zooms and tints of real clips) or "published" (REFERENCE.md section 6).
        probabilistic: sample positions in stage 1 (paper: probabilistic position sampling).
        warm_start: steps of the linear warm start of weights that start from nothing, so not with `init`
            (see `initialise.warm_start`).
        frames: frames per pair, ends included (stage "dynamic").
        renders: supervised times per pair, one of them an end; 0 = every frame (stage "dynamic").
        bidirectional: move and render the Gaussians of both frames; False leaves only those of the earlier
            one, for the paper's ablation (stage "dynamic").
        heads_lr: learning rate of the static heads (colour, scale, opacity, position) in stage "dynamic", so
            that the Gaussians of both frames learn to be seen together; 0 (published) freezes them with the
            rest of the encoder.
        sampled_motion: sample motion in stage "dynamic" as positions are in stage "static"; not published as
            such, though its head (`xyz_dynamic_scale`) is.
        loss: "mse" (published) or "psnr": the mean over renders of ln(MSE + 1e-5) in its place, by which
            pictures count alike whether they are easy or hard.
        depth_weight, slopes_weight, motion_weight, mask_weight: loss weights (see `objectives.py`).
        ssi_depth_weight, lpips_weight: weights of the published depth and perceptual terms (`losses.py`,
            `perceptual.py`); they count from the fraction `ssi_depth_start`, `lpips_start` of the run on.
        lpips_weights: file of LPIPS weights.
        dino: file or folder of DINOv2 weights, for condition "dino" (stage "dynamic").
        precision: of the transformers' matrix products; heads, sampling, rendering and losses are fp32.
        nonfinite_gradients: "skip" the step, or "replace" NaN by 0 and infinity by 1e5 (published). With
            precision "fp16" such steps are skipped, for the gradient scaler lives from them.
        save_every: steps from one saved state to the next.
        tensorboard: also log to TensorBoard, with images every `image_every` steps.
        workers: processes that make batches ahead.
        threads: of torch and the rasterizer; 0 = as many as torch takes.
    """

    stage: Literal["depth", "static", "motion", "dynamic"]
    preset: str
    data: str
    steps: int
    batch: int
    seed: int = 0
    init: str = ""
    init_depth: str = ""
    init_motion: str = ""
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
    augmentation: Literal["light", "published"] = "light"
    probabilistic: bool = True
    warm_start: int = 0
    frames: int = 5
    renders: int = 3
    loss: Literal["mse", "psnr"] = "mse"
    depth_weight: float = 0.1
    slopes_weight: float = 1.0
    motion_weight: float = 0.0
    mask_weight: float = 0.0
    ssi_depth_weight: float = 0.0
    ssi_depth_start: float = 0.0
    lpips_weight: float = 0.0
    lpips_start: float = 0.0
    lpips_weights: str = ""
    dino: str = ""
    bidirectional: bool = True
    heads_lr: float = 0.0
    sampled_motion: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    nonfinite_gradients: Literal["skip", "replace"] = "skip"
    save_every: int = 250
    tensorboard: bool = False
    image_every: int = 250
    workers: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        try:
            check_types(self)
            preset(self.preset, **self.model)
            self._check_ranges()
        except ValueError as error:
            raise InputError(f"{error}.", "Correct the recipe.") from None

    def _check_ranges(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"field {name!r} must be {least} or more, not {getattr(self, name)}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"field {name!r} must be {most} or less, not {getattr(self, name)}")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"field {name!r} must be more than 0, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"field 'betas' must lie in [0, 1), not {self.betas}")
        if self.renders == 1:
            raise ValueError("field 'renders' must be 2 or more, or 0 for every frame, not 1")
        if self.stage == "dynamic" and not self.init:
            raise ValueError("field 'init' is missing: stage 'dynamic' starts from weights of stage 'static'")
        if self.lpips_weight and not self.lpips_weights:
            raise ValueError("field 'lpips_weights' is missing: the file that 'lpips_weight' needs")
        if self.warm_start and self.config.colour != "absolute":
            raise ValueError(
                "field 'warm_start' fits colour 'absolute'; colour 'residual' starts right without"
            )
        self._check_parts()

    def _check_parts(self) -> None:
        """Stages that train a network which only some models have."""
        config = self.config
        if self.init_motion and self.stage != "dynamic":
            raise ValueError("field 'init_motion' belongs to stage 'dynamic'")
        if self.heads_lr and self.stage != "dynamic":
            raise ValueError("field 'heads_lr' belongs to stage 'dynamic'; stage 'static' trains all at 'lr'")
        if self.init_depth and self.stage not in ("depth", "static"):
            raise ValueError("field 'init_depth' belongs to stage 'static' (or 'depth', to go on)")
        if self.stage == "motion" and config.decoder != "matching":
            raise ValueError(f"stage 'motion' trains decoder 'matching', which {self.preset!r} does not have")
        if self.stage == "depth" and config.depth_input != "conv":
            raise ValueError(f"stage 'depth' trains depth input 'conv', which {self.preset!r} does not have")
        if self.stage == "static" and config.depth_input == "conv" and not (self.init or self.init_depth):
            raise ValueError("field 'init_depth' is missing: the weights that stage 'depth' wrote")

    @property
    def config(self) -> ModelConfig:
        """The model this recipe trains."""
        return preset(self.preset, **self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `load_recipe` takes them."""
        return asdict(self)

    def key(self) -> str:
        """What a resumed run must have in common with the one that was stopped, as JSON."""
        return json.dumps({k: v for k, v in asdict(self).items() if k not in FREE_FIELDS}, sort_keys=True)

    def differences(self, key: str) -> list[str]:
        """The fields in which this recipe differs from the one whose `key` this is, in words.

        A field that did not exist when `key` was made had its default then.
        """
        defaults = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        then, now = json.loads(json.dumps(defaults)) | json.loads(key), json.loads(self.key())
        return [f"{k} = {then.get(k)!r}, here {now[k]!r}" for k in now if then.get(k) != now[k]]


def load_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a TOML recipe; `overrides` that are not None win.

    Raises:
        InputError: the file cannot be read, or a field is unknown, missing or of no use; the field is named.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"No recipe at {path}.", "Recipes that ship with the project are in training/configs/."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Give a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}.", "Correct that line.") from None
    try:
        check_names(values, [f.name for f in fields(Recipe)], "field")
    except ValueError as error:
        raise InputError(f"{path}: {error}.", "Correct the recipe.") from None
    values.update({k: v for k, v in overrides.items() if v is not None})
    needed = [f.name for f in fields(Recipe) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise InputError(f"{path}: missing: {', '.join(missing)}.", "Add what is missing to the recipe.")
    if isinstance(values.get("betas"), list):
        values["betas"] = tuple(values["betas"])
    try:
        return Recipe(**values)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", error.hint) from None
