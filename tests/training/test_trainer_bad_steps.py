"""The trainer on damaged clips, and data and gradients that are not finite: skipped, counted, told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media_samples import MODEL
from safetensors.torch import load_file
from test_trainer import rows, same_weights

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training import objectives
from streamsplat_edge.training import run as run_module
from streamsplat_edge.training.data.loader import Mixer
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.recipe import Recipe
from streamsplat_edge.training.trainer import train


def test_a_damaged_clip_ends_the_run_in_plain_words(recipe: Recipe, tmp_path: Path) -> None:
    """It is found by the process that makes batches, whose traceback is nothing for people."""
    shutil.copytree(recipe.data, tmp_path / "cache")
    for clip in ("two_shots", "face_x"):
        (tmp_path / "cache" / f"{clip}.npy").write_bytes(b"")
    damaged = replace(recipe, data=str(tmp_path / "cache"), synthetic=0.0, warm_start=0)
    with pytest.raises(InputError) as error:
        train(damaged, tmp_path / "run", progress=False)
    assert error.value.message.startswith(str(tmp_path / "cache")) and "cannot be read" in error.value.message
    assert error.value.hint == "Prepare the cache again."


def test_data_with_nan_are_skipped_and_a_row_of_them_stops(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Mixer.batch_stills
    bad = {0, 2}

    def poisoned(self: Mixer, step: int, *arguments: Any) -> Any:
        stills = make(self, step, *arguments)
        if step in bad:
            stills.inv_depth[1, 5, 7] = float("inf")
        return stills

    monkeypatch.setattr(Mixer, "batch_stills", poisoned)
    monkeypatch.setattr(run_module, "_MAX_BAD_STEPS", 2)
    outcome = train(recipe, tmp_path / "few", progress=False)
    assert outcome.skipped == 2
    assert [row.get("bad_data") for row in rows(tmp_path / "few")] == [1, None, 1, None, None, None]
    bad = {1, 2, 3}
    with pytest.raises(InputError, match="not finite in 3 steps in a row, up to step 4") as error:
        train(recipe, tmp_path / "many", progress=False)
    assert error.value.hint.startswith("Look for NaN in the data")


def test_a_skipped_step_leaves_the_statistics_of_the_depth_network(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its running means are changed by the forward pass, not by the optimiser."""
    objective = objectives.OBJECTIVES["depth"]
    calls = 0

    def poisoned(model: StreamSplat, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != 2:
            return objective(model, *arguments)
        hook = model.depth_encoder.down_4.register_forward_pre_hook(lambda _m, x: (x[0] * float("inf"),))
        with hook:
            return objective(model, *arguments)

    monkeypatch.setitem(objectives.OBJECTIVES, "depth", poisoned)
    depth = replace(recipe, stage="depth", model=MODEL, optimizer="adamw", warm_start=0, steps=2)
    outcome = train(depth, tmp_path / "two", progress=False)
    assert outcome.skipped == 1 and calls == 2
    train(replace(depth, steps=1), tmp_path / "one", progress=False)
    assert same_weights(tmp_path / "two", tmp_path / "one")


def test_gradients_that_are_not_finite_are_replaced_where_the_recipe_says_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objectives.OBJECTIVES["static"]

    def poisoned(model: StreamSplat, *arguments: Any) -> Any:
        loss, parts = objective(model, *arguments)
        bias = model.gs_predictor.predictor.gs_layer["rgb"].bias
        # A finite value with the gradients NaN, -inf and 1.
        return loss + _Gradients.apply(bias), parts

    monkeypatch.setitem(objectives.OBJECTIVES, "static", poisoned)
    one = replace(recipe, steps=1, warm_start=0, warmup=0, clip=1.0, optimizer="adamw", weight_decay=0.0)
    assert train(one, tmp_path / "skip", progress=False).skipped == 1
    outcome = train(replace(one, nonfinite_gradients="replace"), tmp_path / "replace", progress=False)
    assert outcome.skipped == 0 and rows(tmp_path / "replace")[0]["grad"] == pytest.approx(1e5, rel=1e-3)
    before, after = (
        load_file(str(tmp_path / run / "model.safetensors"))["model.gs_predictor.predictor.gs_layer.rgb.bias"]
        for run in ("skip", "replace")
    )
    assert after[1] > before[1] and torch.isfinite(after).all()


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: torch.Tensor) -> torch.Tensor:
        return bias.new_zeros(())

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        return upstream.new_tensor([float("nan"), float("-inf"), 1.0])


def test_steps_with_nan_are_skipped_and_a_row_of_them_stops(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objectives.OBJECTIVES["static"]
    bad = {1, 2, 4}
    calls = 0

    def poisoned(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, parts = objective(*arguments)
        return loss * float("nan" if calls in bad else 1.0), parts

    monkeypatch.setitem(objectives.OBJECTIVES, "static", poisoned)
    monkeypatch.setattr(run_module, "_MAX_BAD_STEPS", 2)
    outcome = train(recipe, tmp_path / "few", progress=False)
    assert outcome.skipped == 3
    assert [row["step"] for row in rows(tmp_path / "few") if row.get("skipped")] == sorted(bad)
    assert [row["loss"] is None for row in rows(tmp_path / "few")] == [True, True, False, True, False, False]
    assert all(torch.isfinite(t).all() for t in load_file(str(outcome.weights)).values())
    calls, bad = 0, {2, 3, 4}
    with pytest.raises(InputError, match="not finite in 3 steps in a row, up to step 4"):
        train(recipe, tmp_path / "many", progress=False)


def test_bad_steps_are_counted_across_resumed_calls(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped after every step must not go on for ever without learning."""
    objective = objectives.OBJECTIVES["static"]

    def poisoned(*arguments: Any) -> Any:
        loss, parts = objective(*arguments)
        return loss * float("nan"), parts

    monkeypatch.setitem(objectives.OBJECTIVES, "static", poisoned)
    monkeypatch.setattr(run_module, "_MAX_BAD_STEPS", 2)
    plain = replace(recipe, warm_start=0)
    for step in (1, 2):
        assert train(plain, tmp_path, max_seconds=0.0, progress=False).skipped == step
    with pytest.raises(InputError, match="not finite in 3 steps in a row, up to step 3"):
        train(plain, tmp_path, max_seconds=0.0, progress=False)
