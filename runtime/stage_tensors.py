"""Which tensors each stage reads and writes for a model, and that a bundle's files do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .manifest_fields import fail

if TYPE_CHECKING:
    from .bundle_schema import ModelConfig, TensorSpec, VariantEntry

GAUSSIAN_COLUMNS = 9  # x, y, z, r, g, b, scale_x, scale_z, opacity

# A size of None in an expected shape is free (positive) and, for equal letters, the same everywhere.
_Expected = dict[str, tuple["int | str", ...]]


def expected_io(stage: str, model: ModelConfig, with_condition: bool) -> tuple[_Expected, _Expected]:
    """Inputs and outputs that a stage must have for this model. Sizes given as letters are free: `h`, `w` for
    stages that look at their own image size, `M`, `C` for the condition."""
    tokens = (1, model.tokens, model.token_dim)
    features = (1, model.gaussians, model.feature_dim)
    condition = (1, "M", "C")
    if stage == "encode":
        return (
            {"rgbd": (1, 4, model.height, model.width)},
            {"tokens": tokens, "features": features, "gaussians": (1, model.gaussians, GAUSSIAN_COLUMNS)},
        )
    if stage == "deform":
        inputs: _Expected = {}
        for i in (0, 1):
            inputs[f"tokens_{i}"] = tokens
            inputs[f"features_{i}"] = features
            if with_condition:
                inputs[f"condition_{i}"] = condition
        return inputs, {"motion": (2, model.gaussians, 3), "fade": (2, model.gaussians, 2)}
    if stage == "condition":
        return {"rgb": (1, 3, "h", "w")}, {"condition": condition}
    return {"rgb": (1, 3, "h", "w")}, {"depth": (1, 1, model.height, model.width)}


def _check_io(
    field: str, specs: tuple[TensorSpec, ...], expected: _Expected, letters: dict[str, int]
) -> None:
    found = {spec.name: spec for spec in specs}
    if found.keys() != expected.keys():
        raise fail(
            field, f"must be the tensors {', '.join(sorted(expected))}, not {', '.join(sorted(found))}"
        )
    for name, shape in expected.items():
        actual = found[name].shape
        wanted = []
        for i, size in enumerate(shape):
            if isinstance(size, str) and i < len(actual):
                # Each letter takes the value of its first use and must keep it.
                size = letters.setdefault(size, actual[i])
            wanted.append(size)
        if tuple(wanted) != actual:
            text = "x".join(str(size) for size in wanted)
            raise fail(
                f"{field}.{name}.shape",
                f"is {'x'.join(map(str, actual))}, but the model configuration needs {text}",
            )


def check_stages(model: ModelConfig, stages: dict[str, tuple[VariantEntry, ...]]) -> None:
    """Stage set and shapes against the model configuration, so that outputs fit the next stage's inputs."""
    for name in ("encode", "deform"):
        if name not in stages:
            raise fail(f"stages.{name}", "is missing")
    if ("depth" in stages) != (model.depth_input == "stage"):
        raise fail(
            "model.depth_input",
            f'is "{model.depth_input}", but there is {"a" if "depth" in stages else "no"} `depth` stage',
        )
    condition_shape: dict[str, int] = {}
    for stage in ("condition", "depth", "encode", "deform"):
        inputs, outputs = expected_io(stage, model, "condition" in stages)
        for i, variant in enumerate(stages.get(stage, ())):
            field = f"stages.{stage}.variants[{i}]"
            # M and C must agree between `condition` and `deform`; image sizes are each variant's own.
            letters = dict(condition_shape)
            _check_io(f"{field}.inputs", variant.inputs, inputs, letters)
            _check_io(f"{field}.outputs", variant.outputs, outputs, letters)
            condition_shape = {key: value for key, value in letters.items() if key in ("M", "C")}
    # Last, since tensors tell how many Gaussians there are but not how they lie: a turned grid fits them all.
    rows, cols = model.grid
    if rows * model.width != cols * model.height:
        raise fail(
            "model.grid",
            f"is {rows}x{cols}, not in the proportions of the model's {model.height}x{model.width} pixels",
        )
