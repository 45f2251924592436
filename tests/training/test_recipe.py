"""Recipes: the shipped ones are valid, and every mistake is refused with the name of the field."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training import recipe as recipe_module
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.optim import build_optimizers, lr_factor
from streamsplat_edge.training.recipe import Recipe, load_recipe

GOOD = 'stage = "static"\npreset = "tiny"\ndata = "cache"\nsteps = 1\nbatch = 1\ninit_depth = "d"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


CONFIGS = sorted((Path(recipe_module.__file__).parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_that_ship_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    whose, stage = path.stem.rsplit("_", 1)
    whose = re.sub("_(second|third|fourth|fifth)$", "", whose)  # runs of one stage
    assert stage == recipe.stage and whose in (recipe.preset, "ablation")
    assert recipe.config.gaussians > 0
    with torch.device("meta"):  # shapes only: the base model has 182 million parameters
        model = StreamSplat(recipe.config, recipe.probabilistic and recipe.stage == "static")
    optimizers = build_optimizers(model, recipe)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert trained and sorted(held) == sorted(trained)


def test_base_recipes_are_the_published_ones() -> None:
    assert {"base_static", "base_dynamic", "tiny_static", "tiny_dynamic"} <= {path.stem for path in CONFIGS}
    folder = CONFIGS[0].parent
    static, dynamic = (load_recipe(folder / f"base_{stage}.toml") for stage in ("static", "dynamic"))
    for recipe in (static, dynamic):
        assert (recipe.optimizer, recipe.lr, recipe.betas) == ("adamw", 5e-4, (0.9, 0.95))
        assert (recipe.weight_decay, recipe.clip, recipe.precision) == (0.05, 1.0, "bf16")
        assert recipe.nonfinite_gradients == "replace" and recipe.lpips_weight == 0.05
        assert (recipe.depth_weight, recipe.motion_weight) == (0.0, 0.0), "direct supervision is ours"
    assert static.probabilistic and (static.batch, static.ssi_depth_weight) == (8 * 32, 0.05)
    assert (dynamic.batch, dynamic.ssi_depth_weight, dynamic.mask_weight) == (8 * 16, 0.01, 3.0)
    assert (dynamic.frames, dynamic.renders) == (6, 0)
    # 50,000 and 20,000 steps of a scheduler that eight processes advance; floors of 0.1 and 0.5.
    assert (8 * static.warmup, 8 * dynamic.warmup) == (50_000, 20_000)
    assert lr_factor(0, static) == pytest.approx(1 / 6250) and lr_factor(6249, static) == 1
    assert lr_factor(static.steps, static) == pytest.approx(0.1)
    assert lr_factor(dynamic.steps, dynamic) == pytest.approx(0.5)
    assert lr_factor((static.steps + 6250) // 2, static) == pytest.approx(0.55, abs=1e-4)


def test_differences_to_a_stored_recipe_are_named(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert recipe.differences(replace(recipe, threads=3, data="moved", tensorboard=True).key()) == []
    other = replace(recipe, lr=1e-3, betas=(0.9, 0.9))
    assert recipe.differences(other.key()) == [
        "betas = [0.9, 0.9], here [0.9, 0.95]",
        "lr = 0.001, here 0.0005",
    ]
    old = json.loads(recipe.key())
    del old["precision"], old["betas"]
    assert recipe.differences(json.dumps(old)) == []
    assert replace(recipe, precision="bf16").differences(json.dumps(old)) == [
        "precision = 'fp32', here 'bf16'"
    ]


def test_fields_overrides_and_model_table(tmp_path: Path) -> None:
    path = written(tmp_path, f"{GOOD}betas = [0.8, 0.9]\nlr = 1\n[model]\nkey_frame_gap = 5\n")
    recipe = load_recipe(path, data="elsewhere", init=None)
    assert (recipe.data, recipe.init, recipe.betas, recipe.lr) == ("elsewhere", "", (0.8, 0.9), 1)
    assert recipe.config.key_frame_gap == 5 and recipe.config.dim == 128
    assert Recipe(**recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate = 1", "unknown field 'learning_rate'"),
        ("warm_up = 1", r"unknown field 'warm_up' \(did you mean 'warmup'\?\)"),
        ('lr = "fast"', "field 'lr' must be a finite number, not 'fast'"),
        ("lr = inf", "field 'lr' must be a finite number"),
        ("lr = 0", "field 'lr' must be more than 0"),
        ("seed = 1.5", "field 'seed' must be a whole number, not 1.5"),
        ("seed = -1", "field 'seed' must be 0 or more"),
        ("seed = 4294967296", "field 'seed' must be 4294967295 or less"),
        ("threads = true", "field 'threads' must be a whole number, not True"),
        ("probabilistic = 1", "field 'probabilistic' must be true or false, not 1"),
        ("init = 3", "field 'init' must be a text"),
        ("synthetic = 1.01", "field 'synthetic' must be 1 or less"),
        ("frames = 2", "field 'frames' must be 3 or more"),
        ("renders = 1", "field 'renders' must be 2 or more, or 0 for every frame"),
        ("lpips_weight = 0.05", "field 'lpips_weights' is missing"),
        ("lpips_start = 1.5", "field 'lpips_start' must be 1 or less"),
        ("ssi_depth_start = 1.5", "field 'ssi_depth_start' must be 1 or less"),
        ("lpip_start = 0.5", r"unknown field 'lpip_start' \(did you mean 'lpips_start'\?\)"),
        ('precision = "fp8"', "field 'precision' must be 'fp32' or 'bf16' or 'fp16', not 'fp8'"),
        ('nonfinite_gradients = "keep"', "field 'nonfinite_gradients' must be 'skip' or 'replace'"),
        ("save_every = 0", "field 'save_every' must be 1 or more"),
        ("betas = [0.9]", "field 'betas' must be a list of 2, each a finite number"),
        ("betas = 0.9", "field 'betas' must be a list of 2"),
        ("betas = [0.9, 1.0]", r"field 'betas' must lie in \[0, 1\)"),
        ('optimizer = "sgd"', "field 'optimizer' must be 'adamw' or 'muon', not 'sgd'"),
        ("model = 3", "field 'model' must be a table"),
        ("[model]\ndims = 64", r"unknown model field 'dims' \(did you mean 'dim'\?\)"),
        ("[model]\ndim = 64.0", "field 'dim' must be a whole number"),
        ("[model]\nupsample_windows = 64", "'upsample_windows' must be a list, each entry a whole number"),
        ("[model]\nwidth = 250", "144x250 is not a multiple of the patch size 8"),
        ("[model]\nhead_dim = 48", "width 128 does not split into heads of 48"),
        ('[model]\ndepth_mapping = "log"', "field 'depth_mapping' must be 'published' or 'paper', not 'log'"),
        ('[model]\ncondition = "dino"', "needs condition_dim and condition_len"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, f"{GOOD}{line}\n")
    with pytest.raises(InputError, match=f"recipe.toml: .*{message}"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stage = "static"\n', "missing: preset, data, steps, batch"),
        (GOOD.replace('"tiny"', '"tinny"'), r"unknown preset 'tinny' \(did you mean 'tiny'\?\)"),
        (
            GOOD.replace('"static"', '"first"'),
            "field 'stage' must be 'depth' or 'static' or 'motion' or 'dynamic'",
        ),
        (GOOD.replace('"static"', '"dynamic"'), "field 'init' is missing"),
        ("stage = ", "not valid TOML"),
    ],
)
def test_recipes_of_no_use_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(written(tmp_path, text))


def test_recipes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No recipe at"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(tmp_path / "binary.toml")


def test_a_recipe_made_in_code_is_checked_too() -> None:
    good: dict[str, Any] = {"stage": "motion", "preset": "tiny", "data": "x", "steps": 1, "batch": 1}
    with pytest.raises(InputError, match="field 'steps' must be 1 or more, not 0"):
        replace(Recipe(**good), steps=0)
