"""TensorBoard: what is written, what a resumed run hides, and that nothing of the run changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media_samples import HEIGHT, WIDTH
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from streamsplat_edge import extras
from streamsplat_edge.runtime.errors import EngineError, OutputError
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import Mixer
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.monitor import Monitor, preview
from streamsplat_edge.training.recipe import Recipe
from streamsplat_edge.training.setting import Setting
from streamsplat_edge.training.trainer import train


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"images": 0, "scalars": 0}).Reload()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_watched_run_follows_the_same_curve(recipe: Recipe, tmp_path: Path) -> None:
    plain = replace(recipe, steps=4, warm_start=0)
    watched = replace(plain, tensorboard=True, image_every=2)
    train(plain, tmp_path / "plain", progress=False)
    train(watched, tmp_path / "watched", max_seconds=0.0, progress=False)
    train(watched, tmp_path / "watched", progress=False)
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")
    assert not (tmp_path / "plain/tensorboard").exists()
    seen = events(tmp_path / "watched/tensorboard")
    assert {"loss", "psnr", "grad"} <= set(seen.Tags()["scalars"])
    assert [e.step for e in seen.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in seen.Scalars("loss")] == pytest.approx(losses(tmp_path / "plain"))
    (tag,) = seen.Tags()["images"]
    images = seen.Images(tag)
    assert [e.step for e in images] == [2, 4]
    assert (images[0].width, images[0].height) == (3 * WIDTH, 2 * HEIGHT)


def test_steps_that_are_run_again_are_hidden(tmp_path: Path) -> None:
    for first, value in ((0, 1.0), (1, 2.0)):
        monitor = Monitor(tmp_path, first)
        for step in (first + 1, first + 2):
            monitor.scalars(step, {"loss": value})
        monitor.close()
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 2.0)]


@pytest.mark.parametrize("stage", ["static", "dynamic"])
def test_preview_shows_frame_render_and_error(recipe: Recipe, cache: Cache, stage: Any) -> None:
    recipe = replace(recipe, stage=stage, init="x")
    mixer = Mixer(cache, 0.5, seed=1)
    batch = mixer.batch_stills(0, 6) if stage == "static" else mixer.batch(0, 2, 4)
    model = StreamSplat(recipe.config, probabilistic=True).train()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    grid = preview(model, batch, recipe, Setting())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    rows = 4 if stage == "static" else 2  # the first four frames, or the two in between
    assert grid.shape == (3, rows * HEIGHT, 3 * WIDTH) and grid.min() >= 0 and grid.max() <= 1
    frame, render, error = grid.unflatten(2, (3, WIDTH)).unbind(2)
    frames = batch.images[:4] if stage == "static" else batch.frames[0, 1:3]
    assert torch.equal(frame, (frames / 255.0).permute(1, 0, 2, 3).flatten(1, 2))
    assert torch.allclose(error, (4 * (render - frame).abs()).clamp(max=1), atol=1e-6)


def test_what_cannot_be_written_or_imported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Monitor(tmp_path / "file" / "events", 0)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="needs tensorboard"):
        Monitor(tmp_path / "events", 0)
