"""Weights on disk: safetensors only, every key accounted for (published names: REFERENCE.md section 5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..runtime.errors import InputError
from ..runtime.video import write_bytes
from .config import ModelConfig
from .model import StreamSplat

_HEADS = "gs_predictor.predictor."
# Heads that only matter where positions or motion are sampled in training, tolerated by exactly these names:
# a published stage-2 file carries the first four beyond the model's keys, our sampled stage 1 the last two.
TRAINING_ONLY = frozenset(
    f"{_HEADS}mix_layer.{head}.{leaf}"
    for head in ("xyz_dynamic_mean", "xyz_dynamic_scale", "xyz_static_scale")
    for leaf in ("weight", "bias")
)
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_LISTED = 20
_FLOATS = (
    "F64",
    "F32",
    "F16",
    "BF16",
)  # as safetensors calls them; others would be taken for weights by their value
_PICKLES = (b"PK", b"\x80\x02")  # how `torch.save` begins a file, now and before 1.6
# What a file holds, by prefixes of names: everything, or what stage "depth" or "motion" trains, or what stage
# "static" leaves, with the depth its colours are made for.
Part = Literal["all", "depth", "static", "motion"]
PARTS: dict[Part, tuple[str, ...]] = {
    "all": ("",),
    "depth": ("depth_encoder.",),
    "static": ("gs_predictor.", "depth_encoder."),
    "motion": ("condition_encoder.", "decoder.down_", "decoder.level_"),
}
# Fields of the configuration that the tensors' shapes do not give away, or not fully: a model that differs in
# one would load and compute something else. `depth_span` is not among them: a run may go on with another one.
_STATIC_FIELDS = (
    "head_dim",
    "upsample_windows",
    "upsample_blocks",
    "depth_mapping",
    "depth_input",
    "colour",
    "depth_levels",
)
_MOTION_FIELDS = ("condition", "decoder")
_FIELDS: dict[Part, tuple[str, ...]] = {
    "all": (*_STATIC_FIELDS, *_MOTION_FIELDS),
    "depth": ("depth_input",),
    "static": _STATIC_FIELDS,
    "motion": _MOTION_FIELDS,
}


def save_weights(model: StreamSplat, path: Path, metadata: dict[str, str], part: Part = "all") -> None:
    """Write the model's parameters and buffers, with its configuration, under a temporary name and rename.

    Args:
        part: which weights; a stage leaves out those that it does not train and the next one does.

    Raises:
        OutputError: the file cannot be written; an earlier file of that name is untouched.
    """
    state = {
        f"model.{k}": v.detach().contiguous().clone()
        for k, v in model.state_dict().items()
        if k.startswith(PARTS[part])
    }
    # Not by `save_file`, whose files only their owner may read.
    write_bytes(path, save(state, {"model": json.dumps(model.config.to_dict()), **metadata}))


def states_config(path: Path) -> bool:
    """Whether a file says which model it belongs to, as ours do and published ones do not.

    Raises:
        InputError: the file is not safetensors.
    """
    with _open(path) as file:
        return "model" in (file.metadata() or {})


def read_config(path: Path) -> ModelConfig:
    """The configuration that `save_weights` stored.

    Raises:
        InputError: the file is not safetensors, or holds no configuration (published ones do not).
    """
    if not states_config(path):
        raise InputError(
            f"{path} does not say which model it belongs to.",
            "Give weights that `streamsplat-edge train` wrote; published files do not say.",
        )
    with _open(path) as file:
        text = file.metadata()["model"]
    try:
        return ModelConfig.from_dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} holds no usable model configuration: {error}.",
            "It was changed, or another version wrote it: take the file as `streamsplat-edge train` left it.",
        ) from None


def canonical_key(key: str) -> str:
    """The model's own name of a stored key.

    Wrappers (`torch.compile`, DDP, accelerate, the published class) prefix `module.`, `model.` and
    `_orig_mod.` in any nesting; wrapped submodules put `_orig_mod` and `module` inside. No name of the model
    contains either.
    """
    while key.startswith(_WRAPPERS):
        key = key.split(".", 1)[1]
    return ".".join(part for part in key.split(".") if part not in ("_orig_mod", "module"))


def load_weights(model: StreamSplat, path: Path) -> None:
    """Load `path` into `model`; every missing, unexpected, misshapen or mistyped key is an error that lists
    them, and a weight that is not finite one that names it.

    So is a stored configuration (ours; published files have none) of a model that computes something else.
    Only the heads in `TRAINING_ONLY` may be missing or left over. Nothing is loaded unless everything fits.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    with _open(path) as file:
        _load(model, path, file, _names(path, file), "all")


def load_part(model: StreamSplat, path: Path, part: Literal["depth", "motion"]) -> None:
    """Load one part into `model`, from what stage "depth" or "motion" wrote or from a whole model; the rest
    stays as it is.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    with _open(path) as file:
        names, prefixes = _names(path, file), PARTS[part]
        if any(name.startswith(prefixes) for name in names):  # else: all that it holds is unexpected
            others = {name for name in model.state_dict() if not name.startswith(prefixes)}
            names = {name: key for name, key in names.items() if name not in others}
        _load(model, path, file, names, part)


def load_static_weights(model: StreamSplat, path: Path) -> None:
    """Load the static predictor of `model` from a stage-1 file, ours or published; the rest stays as it is.

    Our files use the names of the whole model. The published stage 1 names the static half from its own root
    (`encoder.`, `gaussian_upsampler.`, `predictor.`) and calls the position head `mix_layer.xyz_static_mean`;
    stage 2 turns that into `gs_layer.xyz_static`.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    with _open(path) as file:
        names = _names(path, file)
        static = PARTS["static"][0]
        if not any(name.startswith(static) for name in names):
            names = {
                f"{static}{name}".replace("mix_layer.xyz_static_mean.", "gs_layer.xyz_static."): stored
                for name, stored in names.items()
            }
        _load(model, path, file, names, "static")


def holds_dynamic_half(path: Path) -> bool:
    """Whether a checkpoint has the weights of stage 2 (or only those of stage 1).

    Raises:
        InputError: the file cannot be read.
    """
    with _open(path) as file:
        return any(name.startswith("decoder.") for name in _names(path, file))


def _other_fields(model: StreamSplat, path: Path, file: safe_open, part: Part) -> list[str]:
    """The fields in which the configuration stored with the weights, if any, differs from the model's."""
    if "model" not in (file.metadata() or {}):
        return []
    theirs, ours = read_config(path), model.config
    return [
        f"{name}: {getattr(theirs, name)}, here {getattr(ours, name)}"
        for name in _FIELDS[part]
        if getattr(theirs, name) != getattr(ours, name)
    ]


def _open(path: Path) -> safe_open:
    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file: {error}.", _unreadable_hint(path)
        ) from None


def _unreadable_hint(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return "Check its permissions."
    if path.suffix != ".safetensors" or start in _PICKLES:
        return "Convert it to safetensors first; other formats can run code when they are read."
    return "It is damaged or cut short: copy or download it again."


def _names(path: Path, file: safe_open) -> dict[str, str]:
    """Canonical name -> stored key."""
    names: dict[str, str] = {}
    for key in file.keys():  # noqa: SIM118 - not a dict
        name = canonical_key(key)
        if name in names:
            raise InputError(f"{path} holds the same tensor twice, as {names[name]} and {key}.")
        names[name] = key
    return names


def _holds(weight: Tensor, value: Tensor) -> bool:
    """Whether a value is finite, also in the type that the model keeps it in."""
    return bool(value.to(weight.dtype).isfinite().all())


def _load(model: StreamSplat, path: Path, file: safe_open, names: Mapping[str, str], part: Part) -> None:
    own = {k: v for k, v in model.state_dict().items() if k.startswith(PARTS[part])}
    wanted = {name: key for name, key in names.items() if name in own or name not in TRAINING_ONLY}
    # Shapes come from the header, so that a large file of another model is refused before it is read.
    shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in wanted.items()}
    problems = {
        "missing": [k for k in own if k not in wanted and k not in TRAINING_ONLY],
        "unexpected": [names[k] for k in wanted if k not in own],
        "misshapen": [
            f"{k}: {shapes[k]}, expected {tuple(v.shape)}"
            for k, v in own.items()
            if k in shapes and shapes[k] != tuple(v.shape)
        ],
        "mistyped": [
            f"{k}: {kind}, expected one of {', '.join(_FLOATS)}"
            for k, v in own.items()
            if k in wanted and v.is_floating_point()
            if (kind := file.get_slice(wanted[k]).get_dtype()) not in _FLOATS
        ],
        "differing": _other_fields(model, path, file, part),
    }
    lines = [f"{kind} {k}" for kind, keys in problems.items() for k in keys[:_LISTED]]
    lines += [
        f"and {len(keys) - _LISTED} more {kind}" for kind, keys in problems.items() if len(keys) > _LISTED
    ]
    if lines:
        listed = "\n  ".join(lines)
        hint = "Is it the checkpoint of another preset?"
        raise InputError(f"{path} does not fit the model:\n  {listed}\n", hint)
    state: dict[str, Tensor] = {name: file.get_tensor(key) for name, key in wanted.items()}
    broken = [name for name, v in state.items() if name in own and not _holds(own[name], v)]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise InputError(
            f"{path} holds NaN or infinity in {broken[0]}{more}.",
            "Its training went wrong before it was saved, or it is damaged: take an earlier file.",
        )
    model.load_state_dict(state, strict=False)
