"""What a step of training is compared with: which renders, which labels, and new noise every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from media_samples import MODEL
from torch import Tensor

from streamsplat_edge.training import objectives
from streamsplat_edge.training.config import preset
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import Batch, Mixer, Stills
from streamsplat_edge.training.dynamic import DynamicHeads
from streamsplat_edge.training.gaussians import render_pair
from streamsplat_edge.training.initialise import initialise
from streamsplat_edge.training.losses import ssi_depth
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.objectives import Objective, motion_loss, predict_pair, render_loss
from streamsplat_edge.training.optim import build_optimizers
from streamsplat_edge.training.recipe import Recipe
from streamsplat_edge.training.setting import Setting
from streamsplat_edge.training.static import StaticHeads
from streamsplat_edge.training.trainer import train


@pytest.fixture(scope="module")
def pairs(cache: Cache) -> Batch:
    """Three pairs of four frames; inverse depth of two is known and differs between their ends."""
    batch = Mixer(cache, 0.5, seed=1).batch(0, 3, 4)
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(batch.inv_depth.shape, generator=generator).half()
    return replace(batch, inv_depth=depth, depth_valid=torch.tensor([True, False, True]))


@pytest.fixture(scope="module")
def stills(cache: Cache) -> Stills:
    return Mixer(cache, 0.5, seed=1).batch_stills(0, 2)


def recipe_of(stage: Literal["static", "dynamic"], **fields: Any) -> Recipe:
    model = {**MODEL, "colour": "absolute", "depth_levels": 0, "depth_input": "zeros"}
    return Recipe(
        stage=stage, preset="tiny", data="x", steps=10, batch=3, init="x", model=model, **fields
    )  # fmt: skip


def translucent(recipe: Recipe) -> StreamSplat:
    """A model through whose Gaussians much of the background is seen, in some places more than in others."""
    torch.manual_seed(0)
    model = StreamSplat(recipe.config, probabilistic=recipe.probabilistic and recipe.stage == "static")
    initialise(model)
    opacity = model.gs_predictor.predictor.gs_layer["opacity"]
    with torch.no_grad():
        opacity.weight.mul_(100.0)
        opacity.bias.fill_(-3.0)
    return model


@pytest.mark.parametrize("renders", [0, 3])
def test_depth_is_compared_at_the_ends_where_it_is_known_and_covered(pairs: Batch, renders: int) -> None:
    """As published: where alpha is above 0.1, and with large differences held back (0.3); each end with its
    own depth."""
    recipe = recipe_of("dynamic", ssi_depth_weight=1.0, renders=renders)
    model = translucent(recipe)
    _, parts = Objective(model, recipe, Setting())(pairs, 0)
    with torch.no_grad():
        pair = predict_pair(model, pairs.frames[:, [0, -1]], pairs.inv_depth, recipe, Setting())
        ends = torch.tensor([[0.0, 1.0]]).expand(3, -1)
        size = recipe.config.height, recipe.config.width
        _, depth, alpha = render_pair(*pair, ends, torch.zeros(3, 3), size, recipe.config.depth_mapping)
    assert (alpha < 0.1).any() and ((alpha > 0.1) & (alpha < 0.3)).any() and (alpha > 0.5).any()

    def loss(at: list[list[int]]) -> float:
        """Of the two samples whose depth is known, at these ends."""
        rows = torch.tensor([0, 2])[:, None], torch.tensor(at)
        return ssi_depth(depth[rows], pairs.inv_depth[rows].float(), alpha[rows] > 0.1, 0.3).item()

    found = parts["ssi_depth"].item()
    if renders == 0:
        assert found == pytest.approx(loss([[0, 1], [0, 1]]), rel=1e-5)
    else:  # one render of a sample is of an end, drawn for itself
        expected = [loss([[a], [b]]) for a in (0, 1) for b in (0, 1)]
        assert min(abs(found - value) for value in expected) < 1e-5 * found
        assert max(expected) > 1.001 * min(expected)


def test_loss_by_psnr_counts_pictures_alike() -> None:
    mse = torch.tensor([[1e-2, 1e-4], [0.0, 3e-5]])
    logs = np.log(mse.double().numpy() + 1e-5)
    assert render_loss(mse, recipe_of("static", loss="psnr")).item() == pytest.approx(logs.mean(), rel=1e-5)
    assert render_loss(mse, recipe_of("static")).item() == pytest.approx(mse.mean().item())


def test_a_mask_belongs_to_the_frame_it_was_drawn_in(pairs: Batch) -> None:
    recipe = recipe_of("dynamic", mask_weight=1.0, renders=0)
    model = translucent(recipe)
    mask = torch.zeros_like(pairs.mask)
    mask[:, 1, 10:20, 30:50] = True

    def loss(frame: int | None = None) -> float:
        """With other pictures in a frame that only supervises."""
        frames = pairs.frames.clone()
        if frame is not None:
            frames[:, frame] = 255 - frames[:, frame]
        return Objective(model, recipe, Setting())(replace(pairs, frames=frames, mask=mask), 0)[1][
            "mask_mse"
        ].item()

    assert loss() > 0 and loss(2) == loss() and loss(1) != loss()


def test_flow_beyond_half_of_the_reach_is_left_out() -> None:
    """The head reaches 0.5 of a half image, a quarter of it; flow counts up to an eighth."""
    config = preset("tiny", height=16, width=32, dim=32, head_dim=16, upsample_windows=(8, 8),
                    upsample_blocks=(1, 0))  # fmt: skip
    motion, valid = torch.zeros(1, 2, config.gaussians, 3), torch.ones(1, 2, 16, 32)
    for axis, limit in ((0, 32 / 8), (1, 16 / 8)):
        for factor, counts in ((0.95, True), (1.05, False)):
            flow = torch.zeros(1, 2, 2, 16, 32)
            flow[:, :, axis] = factor * limit
            assert (motion_loss(motion, flow, valid, config).item() > 0) == counts, (axis, factor)


def test_gradients_are_clipped_to_the_norm_of_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    """The first momentum of AdamW is a tenth of the gradient it was given."""
    one = replace(recipe, steps=1, optimizer="adamw", warm_start=0, clip=1e-3)
    train(one, tmp_path, progress=False)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    momenta = [entry["exp_avg"] for entry in state["optimizers"][0]["state"].values()]
    assert torch.cat([m.flatten() for m in momenta]).norm().item() == pytest.approx(1e-4, rel=1e-3)


def test_heads_that_are_tuned_do_not_decay() -> None:
    """They are near their goal: away from it nothing may pull them."""
    recipe = recipe_of("dynamic", heads_lr=1e-2, weight_decay=0.5)
    model = translucent(recipe)
    optimizers = build_optimizers(model, recipe)
    heads = model.parameters_of("heads")
    before = [p.detach().clone() for p in heads]
    others = [p for p in model.parameters() if p.requires_grad and not any(p is head for head in heads)]
    norm = sum(p.norm() for p in others)
    for p in (*heads, *others):
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(heads, before, strict=True))
    assert sum(p.norm() for p in others) < norm


def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Gaussians and backgrounds that stage 1 renders from now on."""
    found: list[tuple[Tensor, Tensor]] = []
    render = objectives.render_static

    def watched(gaussians: Tensor, background: Tensor, *rest: Any) -> Any:
        found.append((gaussians.detach().clone(), background.clone()))
        return render(gaussians, background, *rest)

    monkeypatch.setattr(objectives, "render_static", watched)
    return found


def test_every_step_has_noise_of_its_own(stills: Stills, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a step is run again, and other noise in another step and with another seed."""
    recipe = recipe_of("static", probabilistic=True)
    model, found = translucent(recipe), seen(monkeypatch)
    for seed, step in ((0, 4), (0, 5), (0, 4), (1, 4)):
        Objective(model, replace(recipe, seed=seed, batch=2), Setting())(stills, step)
    first, *others = found
    for what in (0, 1):
        assert torch.equal(first[what], others[1][what])
        assert not torch.equal(first[what], others[0][what]), "another step"
        assert not torch.equal(first[what], others[2][what]), "another seed"
    assert not torch.equal(first[1][0], first[1][1]), "backgrounds of two samples differ"
    where = first[0][..., :3] - others[0][0][..., :3]
    assert where.abs().amax((0, 1)).min() > 0 and torch.equal(first[0][..., 3:], others[0][0][..., 3:])


@pytest.mark.parametrize(("log_scale", "share"), [(-5.0, None), (20.0, -0.999)])
def test_offsets_and_motion_are_sampled_about_their_means_within_their_reach(
    log_scale: float, share: float | None
) -> None:
    """Published: mean and support end at 0.999. Too narrow a spread gives the mean, too wide a one the lower
    bound."""
    config = recipe_of("static").config
    torch.manual_seed(0)
    static, dynamic = StaticHeads(config, probabilistic=True), DynamicHeads(config, sampled=True)
    features = torch.randn(1, config.gaussians, 2 * config.feature_dim)
    still = features[..., : config.feature_dim]
    rgbd = torch.rand(1, 4, config.height, config.width)
    reach = torch.tensor(static.cell)
    with torch.no_grad():
        static.mix_layer["xyz_static_scale"].weight.zero_()
        static.mix_layer["xyz_static_scale"].bias.fill_(log_scale)
        # Its head has no bias: the first feature is 1.
        features[..., 0] = 1.0
        dynamic.gs_layer["xyz_dynamic_scale"].weight.zero_()
        dynamic.gs_layer["xyz_dynamic_scale"].weight[:, 0] = log_scale
        middle = torch.stack([static.x_map, torch.full_like(static.x_map, 0.5), static.z_map], -1)
        offset = (static(still, rgbd)[..., :3] - middle) / reach
        motion = dynamic(features)[0] / torch.tensor(config.dynamic_scalar)
        means = (
            (static.eval()(still, rgbd)[..., :3] - middle) / reach * 0.999,
            dynamic.eval()(features)[0] / torch.tensor(config.dynamic_scalar),
        )
    for found, mean in zip((offset, motion), means, strict=True):
        expected = mean if share is None else torch.full_like(mean, share)
        assert torch.allclose(found, expected, atol=2e-5) and mean.abs().max() > 0.05
