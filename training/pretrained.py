"""Published networks that `transformers` defines: their weights from a local hub folder or an original file.

Nothing is ever fetched, no code in a file is run, and every key is accounted for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime.errors import InputError

_LISTED = 10


def transformers_for(what: str) -> Any:
    """The module `transformers`. InputError, saying that `what` needs it, where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"{what} needs `transformers`, which is not installed.",
            "pip install 'streamsplat-edge[condition]'.",
        ) from None
    return transformers


def read_original(path: Path, hint: str) -> dict[str, Tensor]:
    """The tensors of a weight file (safetensors by its suffix, else what `torch.save` wrote of a state dict).

    Raises:
        InputError: not there, not readable without running code, or not tensors by name.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on damaged files
        raise InputError(f"{path} cannot be read as weights: {error}.", hint) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold tensors by name.", hint)
    return state


def load_hub_folder(kind: Any, path: Path, what: str, hint: str) -> Any:
    """`kind.from_pretrained` of a local folder with config.json and model.safetensors.

    Raises:
        InputError: the folder holds no such model, or keys are missing, unexpected or misshapen.
    """
    try:
        model, report = kind.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} holds no usable {what}: {error}.", hint) from None
    _refuse(report["missing_keys"], report["unexpected_keys"], path, what, hint)
    return model


def load_renamed(
    model: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    what: str,
    hint: str,
    optional: Collection[str] = (),
) -> None:
    """Load tensors named as the model names them; only those in `optional` may be missing.

    Raises:
        InputError: anything else is missing, unexpected or misshapen; `path` and the keys are named.
    """
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path} is not {what}: {error}.", hint) from None
    _refuse([k for k in report.missing_keys if k not in optional], report.unexpected_keys, path, what, hint)


def _refuse(missing: Collection[str], unexpected: Collection[str], path: Path, what: str, hint: str) -> None:
    lines = []
    for kind, keys in (("missing", sorted(missing)), ("unexpected", sorted(unexpected))):
        lines += [f"{kind} {key}" for key in keys[:_LISTED]]
        if len(keys) > _LISTED:
            lines.append(f"and {len(keys) - _LISTED} more {kind}")
    if lines:
        listed = "\n  ".join(lines)
        raise InputError(f"{path} is not {what}:\n  {listed}\n", hint)
