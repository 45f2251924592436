"""Weights on disk: safetensors only, every key accounted for."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..runtime.errors import InputError
from .config import ModelConfig
from .model import StreamSplat

# Heads that exist only where positions are sampled in training; inference uses the mean.
_TRAINING_ONLY = ("predictor.mix_layer.",)


def save_weights(model: StreamSplat, path: Path, metadata: dict[str, str]) -> None:
    """Write the model's parameters and buffers, with its configuration, under a temporary name and rename."""
    state = {f"model.{k}": v.contiguous().clone() for k, v in model.state_dict().items()}
    temporary = path.with_name(path.name + ".tmp")
    save_file(state, str(temporary), {"model": json.dumps(model.config.to_dict()), **metadata})
    temporary.replace(path)


def read_config(path: Path) -> ModelConfig:
    """The configuration that `save_weights` stored.

    Raises:
        InputError: the file is not safetensors, or holds no configuration (a published checkpoint: name the
        preset).
    """
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}.") from None
    if "model" not in metadata:
        raise InputError(
            f"{path} does not say which model it belongs to.", "Pass --preset (published weights: base)."
        )
    return ModelConfig.from_dict(json.loads(metadata["model"]))


def canonical_key(key: str) -> str:
    """Strip the wrappers `module.`, `model.` and `_orig_mod.` in any nesting from the front of a key."""
    wrappers = ("module.", "model.", "_orig_mod.")
    while key.startswith(wrappers):
        key = key.split(".", 1)[1]
    return key


def load_weights(model: StreamSplat, path: Path) -> None:
    """Load `path` into `model`; every missing, unexpected or misshapen key is an error that lists them.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    try:
        stored: dict[str, Tensor] = {canonical_key(k): v for k, v in load_file(str(path)).items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}.") from None
    own = model.state_dict()
    stored = {k: v for k, v in stored.items() if k in own or not any(t in k for t in _TRAINING_ONLY)}
    optional = {k for k in own if any(t in k for t in _TRAINING_ONLY)}
    problems = [f"missing {k}" for k in own if k not in stored and k not in optional]
    problems += [f"unexpected {k}" for k in stored if k not in own]
    problems += [
        f"{k}: shape {tuple(stored[k].shape)}, expected {tuple(v.shape)}"
        for k, v in own.items()
        if k in stored and stored[k].shape != v.shape
    ]
    if problems:
        listed = "\n  ".join(problems[:20]) + (
            f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        )
        raise InputError(
            f"{path} does not fit the model:\n  {listed}\n", "Is it the checkpoint of another preset?"
        )
    model.load_state_dict(stored, strict=False)
