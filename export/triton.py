"""A Triton model repository of a bundle, for those who serve many streams.

One model per stage (ONNX Runtime backend, the bundle's files unchanged) and an ensemble `NAME_keyframe` that
chains what runs once per key frame. `NAME_deform` is called by the client with the results of two key frames,
which it keeps: an ensemble has no memory between requests.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ..runtime.bundle import Bundle, StageVariant
from ..runtime.errors import InputError, OutputError
from ..runtime.video.output import output_error

_TYPES = {"float32": "TYPE_FP32"}


def check_repository(path: Path, name: str = "") -> None:
    """Raise OutputError where something is already, InputError for a bundle's name that is no model's."""
    if name and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"A model of Triton cannot be named {name!r}: its folder has that name.",
            "Export with --name of letters, digits, dots, - and _.",
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} exists already.", "Give an empty or new folder with --triton.")


def write_repository(bundle: Bundle, path: Path) -> None:
    """Write the repository; it appears whole or not at all.

    Raises:
        OutputError: something is there already, or the disk refuses.
        InputError: folders of models cannot have the bundle's name.
    """
    check_repository(path, bundle.name)
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        chosen = {stage: bundle.variant(stage, "onnxruntime") for stage in bundle.stage_names}
        for stage, variant in chosen.items():
            folder = scratch / f"{bundle.name}_{stage}"
            (folder / "1").mkdir(parents=True)
            shutil.copyfile(variant.path, folder / "1" / "model.onnx")
            if variant.weights is not None:
                shutil.copyfile(variant.weights, folder / "1" / variant.weights.name)
            (folder / "config.pbtxt").write_text(_stage_config(folder.name, variant))
        ensemble = scratch / f"{bundle.name}_keyframe"
        (ensemble / "1").mkdir(parents=True)
        (ensemble / "config.pbtxt").write_text(_ensemble_config(bundle.name, chosen))
        if path.is_dir():
            path.rmdir()
        scratch.rename(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tensors(kind: str, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    items = [
        f'  {{ name: "{name}" data_type: {_TYPES[dtype]} dims: [ {", ".join(map(str, shape))} ] }}'
        for name, (dtype, shape) in tensors.items()
    ]
    return f"{kind} [\n" + ",\n".join(items) + "\n]\n"


def _stage_config(name: str, variant: StageVariant) -> str:
    inputs, outputs = (
        {s.name: (s.dtype, s.shape) for s in specs} for specs in (variant.inputs, variant.outputs)
    )
    # Shapes hold their batch axis themselves, so Triton adds none.
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        + _tensors("input", inputs)
        + _tensors("output", outputs)
    )


def _ensemble_config(name: str, stages: dict[str, StageVariant]) -> str:
    """encode, and depth and condition where there are; the client resizes, and puts depth into rgbd."""
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    steps = []
    for stage in ("depth", "condition", "encode"):
        if stage not in stages:
            continue
        variant = stages[stage]
        names = {s.name: f"{stage}_{s.name}" if s.name == "rgb" else s.name for s in variant.inputs}
        inputs |= {names[s.name]: (s.dtype, s.shape) for s in variant.inputs}
        outputs |= {s.name: (s.dtype, s.shape) for s in variant.outputs}
        maps = [f'      input_map {{ key: "{key}" value: "{value}" }}' for key, value in names.items()]
        maps += [f'      output_map {{ key: "{s.name}" value: "{s.name}" }}' for s in variant.outputs]
        body = "\n".join([f'      model_name: "{name}_{stage}"', "      model_version: -1", *maps])
        steps.append(f"    {{\n{body}\n    }}")
    return (
        f'name: "{name}_keyframe"\nplatform: "ensemble"\nmax_batch_size: 0\n'
        + _tensors("input", inputs)
        + _tensors("output", outputs)
        + "ensemble_scheduling {\n  step [\n"
        + ",\n".join(steps)
        + "\n  ]\n}\n"
    )
