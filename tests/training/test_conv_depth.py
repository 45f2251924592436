"""The depth network of the small presets, its stage, and what the heads make of its output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from media_samples import HEIGHT, MODEL, WIDTH

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.preprocess import normalise_depth
from streamsplat_edge.training.checkpoint import load_part, load_static_weights, save_weights
from streamsplat_edge.training.config import preset
from streamsplat_edge.training.conv_depth import ConvDepth, normalised, slopes_loss
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import Mixer
from streamsplat_edge.training.initialise import initialise
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.objectives import encode
from streamsplat_edge.training.part_objectives import depth_objective
from streamsplat_edge.training.recipe import Recipe

CONFIG = preset("tiny", **MODEL)
RECIPE = Recipe(stage="depth", preset="tiny", data="-", steps=1, batch=2, model=MODEL)


def initialised(seed: int = 0, **changes: float) -> StreamSplat:
    torch.manual_seed(seed)
    model = StreamSplat(replace(CONFIG, **changes))
    initialise(model)
    return model


@pytest.mark.parametrize("size", [(48, 80), (16, 16), (64, 32)])
def test_any_size_that_16_divides(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        depth = ConvDepth()(torch.rand(2, 3, *size))
    assert depth.shape == (2, 1, *size)
    assert depth.min() > 0 and depth.max() < 1


def test_place_in_the_image_is_seen() -> None:
    """Two rows of an even picture differ only by where they are."""
    torch.manual_seed(0)
    with torch.no_grad():
        depth = ConvDepth()(torch.full((1, 3, 160, 160), 0.5))[0, 0]
    inner = depth[64:96, 64:96]  # padding does not reach so far
    assert inner.std(0).min() > 1e-5 and inner.std(1).min() > 1e-5


def test_normalised_is_what_the_runtime_does() -> None:
    depth = torch.rand(3, 1, 8, 12) * torch.tensor([1.0, 0.1, 0.0])[:, None, None, None] + 0.3
    ours = normalised(depth).numpy()
    for row, expected in zip(ours, depth.numpy().copy(), strict=True):
        normalise_depth(expected)
        assert np.allclose(row, expected, atol=2e-6)
    assert ours[0].min() == 0 and ours[0].max() == 1 and not ours[2].any()


def test_frames_of_a_pair_share_a_range() -> None:
    pairs = torch.rand(4, 1, 8, 12) * torch.tensor([1.0, 0.1, 0.2, 0.5])[:, None, None, None]
    ours = normalised(pairs, frames=2)
    for pair, expected in zip(ours.split(2), pairs.split(2), strict=True):
        stretched = (expected - expected.min()) / (expected.max() - expected.min())
        assert torch.allclose(pair, stretched, atol=1e-6)


def test_slopes_loss_is_the_mean_difference_of_slopes() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 1, 9, 11), dtype=np.float32) for _ in range(2))
    expected = 0.0
    for step in (1, 2, 4, 8):
        for axis in (2, 3):
            size = a.shape[axis] - step
            near, far = (np.arange(start, start + size) for start in (0, step))
            change = [x.take(far, axis) - x.take(near, axis) for x in (a, b)]
            expected += float(np.abs(change[0] - change[1]).mean())
    ours = slopes_loss(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert ours == pytest.approx(expected / 4, rel=1e-5)
    shifted = torch.from_numpy(a) + 0.3
    assert slopes_loss(shifted, torch.from_numpy(a)).item() == pytest.approx(0.0, abs=1e-6)


def test_depth_objective_equals_its_equation(cache: Cache) -> None:
    """Things that stand out of their row by more than 0.04 count ten times."""
    model, batch = initialised().eval(), Mixer(cache, 1.0, seed=2).batch_depths(0, 2)
    recipe = replace(RECIPE, slopes_weight=0.0)
    with torch.no_grad():
        loss, parts = depth_objective(model, batch, recipe, torch.Generator())
        found = model.depth(batch.images.float() / 255)

    def quarter(x: torch.Tensor) -> np.ndarray:
        rows = x.double().numpy().reshape(2, HEIGHT // 4, 4, WIDTH // 4, 4)
        return np.asarray(rows.mean((2, 4)))

    depth, truth = quarter(found[:, 0]), quarter(batch.inv_depth)
    middle = np.sort(truth, axis=2)[:, :, (WIDTH // 4 - 1) // 2]
    weight = np.where(np.abs(truth - middle[..., None]) > 0.04, 10.0, 1.0)
    assert 0.02 < (weight > 1).mean() < 0.9
    expected = (weight * np.abs(depth - truth)).sum() / weight.sum()
    assert loss.item() == parts["depth"].item() == pytest.approx(expected, rel=1e-4)
    rows = truth.mean((0, 2))[None, :, None]
    plain = (weight * np.abs(rows - truth)).sum() / weight.sum()
    assert parts["ramp"].item() == pytest.approx(plain, rel=1e-4)


def test_depth_is_learned_from_synthetic_scenes(cache: Cache) -> None:
    """A few steps on one batch: clearly closer than the mean of every row; nothing else is trained."""
    model, batch = initialised(), Mixer(cache, 1.0, seed=2).batch_depths(0, 2)
    optimizer = torch.optim.Adam(model.parameters_of("depth"), 3e-3)
    for _ in range(60):
        loss, parts = depth_objective(model, batch, RECIPE, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert parts["depth"] < 0.6 * parts["ramp"]
    others = [p for name, p in model.named_parameters() if not name.startswith("depth_encoder.")]
    assert all(p.grad is None for p in others)


def test_batches_of_known_depth(cache: Cache) -> None:
    mixer = Mixer(cache, 0.3, seed=5)
    whole = mixer.batch_depths(3, 4)
    part = mixer.batch_depths(3, 2, first=2)
    assert torch.equal(whole.images[2:], part.images) and torch.equal(whole.inv_depth[2:], part.inv_depth)
    assert whole.depth_valid.all() and (whole.inv_depth.float().amax((1, 2)) > 0).all()
    nothing = Mixer(cache, 0.3, seed=5)
    nothing.synthetic = None
    with pytest.raises(InputError, match="No clip of the cache has depth"):
        nothing.batch_depths(0, 1)


@pytest.mark.parametrize("span", [0.8, 0.4])
def test_heads_take_y_from_the_depth_channel(span: float) -> None:
    """y = 1/2 + span (d - 1/2), d the mean of the cell, rounded; colours and places are untouched by it."""
    model = initialised(depth_span=span).eval()
    generator = torch.Generator().manual_seed(0)
    rgbd = torch.rand(1, 4, HEIGHT, WIDTH, generator=generator)
    flat = torch.cat([rgbd[:, :3], torch.zeros(1, 1, HEIGHT, WIDTH)], 1)
    with torch.no_grad():
        features = model.encode(flat)[1]
        heads = model.gs_predictor.predictor
        deep, even = heads(features, rgbd)[0].numpy(), heads(features, flat)[0].numpy()
    rows, cols = CONFIG.grid
    cells = rgbd[0, 3].numpy().reshape(rows, HEIGHT // rows, cols, WIDTH // cols).mean((1, 3)).reshape(-1)
    levels = CONFIG.depth_levels
    assert np.allclose(deep[:, 1], 0.5 + span * (np.round(cells * levels) / levels - 0.5), atol=1e-5)
    assert np.allclose(even[:, 1], 0.5 - span / 2, atol=1e-6)
    others = [0, 2, 3, 4, 5, 6, 7, 8]
    assert np.array_equal(deep[:, others], even[:, others])
    reach = CONFIG.dynamic_scalar[1]
    assert deep[:, 1].min() - reach >= 0 and deep[:, 1].max() + reach <= 1, "motion stays before the camera"


def test_training_sees_the_depth_that_the_runtime_makes() -> None:
    model = initialised().eval()
    images = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    rgb = images.float() / 255
    with torch.no_grad():
        ignored = torch.full((2, HEIGHT, WIDTH), 7.0)
        _, _, gaussians = encode(model, images, ignored, RECIPE)
        _, _, expected = model.encode(torch.cat([rgb, normalised(model.depth(rgb))], 1))
    assert torch.equal(gaussians, expected)
    assert gaussians[..., 1].std() > 0.01


def test_depth_weights_go_from_stage_to_stage(tmp_path: Path) -> None:
    source, target, third = initialised(1), initialised(2), initialised(3)
    save_weights(source, tmp_path / "depth.safetensors", {}, "depth")
    before = {k: v.clone() for k, v in target.state_dict().items()}
    load_part(target, tmp_path / "depth.safetensors", "depth")
    for name, parameter in target.named_parameters():
        from_source = name.startswith("depth_encoder.")
        assert torch.equal(parameter, source.get_parameter(name) if from_source else before[name]), name
    save_weights(target, tmp_path / "static.safetensors", {}, "static")
    load_static_weights(third, tmp_path / "static.safetensors")
    assert torch.equal(third.depth_encoder.head.weight, source.depth_encoder.head.weight)
    published = StreamSplat(replace(CONFIG, depth_input="zeros", depth_levels=0))
    with pytest.raises(InputError, match="does not fit the model"):
        load_part(published, tmp_path / "depth.safetensors", "depth")


def test_frozen_after_its_own_stage() -> None:
    model = initialised()
    own = {id(p) for p in model.depth_encoder.parameters()}
    assert {id(p) for p in model.parameters_of("depth")} == own
    for stage in ("static", "motion", "dynamic"):
        assert not own & {id(p) for p in model.parameters_of(stage)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_input": "zeros"}, "depth_levels needs a depth_input"),
        ({"depth_span": 0.0}, "'depth_span' must be above 0 and at most 0.8"),
        ({"depth_span": 0.9}, "'depth_span' must be above 0 and at most 0.8"),
        (
            {"height": 40, "condition": "tokens", "condition_dim": 0, "decoder": "attention",
             "upsample_windows": (4, 4)},
            "depth_input 'conv' needs sides that are multiples of 16",
        ),
    ],
)  # fmt: skip
def test_configs_of_no_use_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_recipes_of_no_use_are_refused() -> None:
    plain = {**MODEL, "depth_input": "zeros", "depth_levels": 0}
    with pytest.raises(InputError, match="trains depth input 'conv', which 'tiny' does not have"):
        replace(RECIPE, model=plain)
    with pytest.raises(InputError, match="'init_depth' is missing"):
        replace(RECIPE, stage="static")
    assert replace(RECIPE, stage="static", model=plain).stage == "static"
    with pytest.raises(InputError, match="'init_depth' belongs to stage 'static'"):
        replace(RECIPE, stage="motion", init_depth="x")
