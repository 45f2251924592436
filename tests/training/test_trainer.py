"""The trainer: learning, resuming to the same curve, stage order, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from media_samples import HEIGHT, WIDTH

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training import trainer
from streamsplat_edge.training.checkpoint import (
    holds_dynamic_half,
    load_static_weights,
    load_weights,
    read_config,
)
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.recipe import Recipe, load_recipe
from streamsplat_edge.training.trainer import train

MODEL = {
    "height": HEIGHT,
    "width": WIDTH,
    "dim": 32,
    "head_dim": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "upsample_windows": [60, 60],
    "upsample_blocks": [1, 0],
}


@pytest.fixture()
def recipe(cache: Cache) -> Recipe:
    return Recipe(
        stage="static", preset="tiny", data=str(cache.root), steps=6, batch=2, seed=3, model=MODEL,
        optimizer="muon", lr=2e-3, warmup=2, save_every=3, warm_start=10, synthetic=0.5,
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_static_stage_learns(recipe: Recipe, tmp_path: Path) -> None:
    train(replace(recipe, steps=40, warm_start=60), tmp_path, progress=False)
    curve = losses(tmp_path)
    assert sum(curve[-8:]) < 0.7 * sum(curve[:8])


def test_killed_run_resumes_to_the_same_curve(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, whole, progress=False)
    objective = trainer.static_objective
    calls = 0

    def dies_in_step_5(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return objective(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "static_objective", dies_in_step_5)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, broken, progress=False)
    monkeypatch.undo()
    # The last state is that of step 3: step 4 is run (and logged) again.
    train(recipe, broken, progress=False)
    assert losses(broken)[-3:] == losses(whole)[-3:]
    assert losses(broken)[:3] == losses(whole)[:3]


def test_run_stopped_by_time_resumes(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "a", progress=False)
    for _ in range(recipe.steps):
        train(recipe, tmp_path / "b", max_seconds=0.0, progress=False)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


def test_dynamic_stage_leaves_the_encoder_alone(recipe: Recipe, tmp_path: Path) -> None:
    first = train(replace(recipe, steps=2), tmp_path / "1", progress=False)
    second = replace(
        recipe, stage="dynamic", steps=3, init=str(first), frames=4, renders=2, motion_weight=0.02,
        mask_weight=1.0,
    )  # fmt: skip
    weights = train(second, tmp_path / "2", progress=False)
    assert not holds_dynamic_half(first)
    before, after = StreamSplat(read_config(first)), StreamSplat(read_config(weights))
    load_static_weights(before, first)
    load_weights(after, weights)
    changed = {n for n, p in after.named_parameters() if not torch.equal(p, before.state_dict()[n])}
    assert not any(name.startswith("gs_predictor.") for name in changed)
    assert any(name.startswith("decoder.") for name in changed)
    assert any(name.startswith("gs_dynamic_predictor.gs_layer.opacity_dynamic") for name in changed)


def test_another_recipe_in_the_same_folder_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    train(replace(recipe, steps=1), tmp_path, progress=False)
    with pytest.raises(InputError, match="another recipe"):
        train(replace(recipe, lr=1e-3, steps=1), tmp_path, progress=False)


def test_steps_with_nan_are_skipped_and_a_run_of_them_stops(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = trainer.static_objective

    def poisoned(*arguments: object) -> object:
        loss, parts = objective(*arguments)  # type: ignore[arg-type]
        return loss * float("nan"), parts

    monkeypatch.setattr(trainer, "static_objective", poisoned)
    weights = train(replace(recipe, steps=3), tmp_path / "few", progress=False)
    model = StreamSplat(read_config(weights))
    load_static_weights(model, weights)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    monkeypatch.setattr(trainer, "_MAX_BAD_STEPS", 2)
    with pytest.raises(InputError, match="not finite"):
        train(replace(recipe, steps=5), tmp_path / "many", progress=False)


def test_recipes_that_ship_are_valid() -> None:
    folder = Path(trainer.__file__).parent / "configs"
    recipes = sorted(folder.glob("*.toml"))
    assert recipes
    for path in recipes:
        assert load_recipe(path).config.gaussians > 0


def test_recipe_errors_name_the_field(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    with pytest.raises(InputError, match="No recipe"):
        load_recipe(path)
    path.write_text(
        'stage = "static"\npreset = "tiny"\ndata = "x"\nsteps = 1\nbatch = 1\nlearning_rate = 1\n'
    )
    with pytest.raises(InputError, match="learning_rate"):
        load_recipe(path)
    path.write_text('stage = "static"\npreset = "tiny"\ndata = "x"\nsteps = 1\nbatch = 1\nwarm_up = 1\n')
    with pytest.raises(InputError, match="Did you mean 'warmup'"):
        load_recipe(path)
    path.write_text('stage = "static"\n')
    with pytest.raises(InputError, match="missing"):
        load_recipe(path)
    path.write_text("stage = ")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(path)
