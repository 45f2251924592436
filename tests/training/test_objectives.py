"""The training losses against independent computations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from media_samples import MODEL

from streamsplat_edge.training.config import preset
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import Batch, Mixer, Stills
from streamsplat_edge.training.gaussians import (
    fade_factor,
    inverse_depth_to_depth,
    render_pair,
    render_static,
)
from streamsplat_edge.training.initialise import initialise
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.objectives import (
    Objective,
    Setting,
    _pick_times,
    depth_loss,
    motion_loss,
    predict_pair,
    to_rgbd,
)
from streamsplat_edge.training.recipe import Recipe

CONFIG = preset(
    "tiny", height=16, width=32, dim=32, head_dim=16, upsample_windows=(8, 8), upsample_blocks=(1, 0)
)


def test_motion_loss_is_zero_for_motion_equal_to_flow() -> None:
    rows, cols = CONFIG.grid
    flow = torch.zeros(1, 2, 2, 16, 32)
    flow[:, 0, 0], flow[:, 0, 1] = 3.0, -1.0  # frame 0 moves 3 px right and 1 px up
    flow[:, 1, 0], flow[:, 1, 1] = -3.0, 1.0  # the way back
    motion = torch.zeros(1, 2, rows * cols, 3)
    motion[..., 0], motion[..., 2] = 3.0 / 16, 1.0 / 8  # px to canonical units; z is up
    valid = torch.ones(1, 2, 16, 32)
    assert motion_loss(motion, flow, valid, CONFIG).item() == pytest.approx(0.0, abs=1e-6)
    wrong = motion.clone()
    wrong[:, 1, :, 0] += 2.0 / 16  # frame 1 off by 2 px
    expected = 0.5 * (np.sqrt(4 + 0.01) - 0.1)
    assert motion_loss(wrong, flow, valid, CONFIG).item() == pytest.approx(expected, rel=1e-4)


def test_motion_loss_ignores_what_is_not_valid() -> None:
    rows, cols = CONFIG.grid
    flow = torch.full((1, 2, 2, 16, 32), 50.0)
    motion = torch.zeros(1, 2, rows * cols, 3)
    assert motion_loss(motion, flow, torch.zeros(1, 2, 16, 32), CONFIG).item() == 0.0
    # Nor what the motion head could hardly reach.
    assert motion_loss(motion, flow, torch.ones(1, 2, 16, 32), CONFIG).item() == 0.0


def test_depth_loss_counts_only_known_samples() -> None:
    target = torch.rand(3, 16, 32)
    y = torch.rand(3, CONFIG.gaussians)
    valid = torch.tensor([True, False, True])
    cells = target.reshape(3, 8, 2, 16, 2).mean((2, 4)).reshape(3, -1)
    expected = (y - cells).abs()[valid].mean()
    assert depth_loss(y, target, valid, CONFIG).item() == pytest.approx(expected.item(), rel=1e-5)
    assert depth_loss(y, target, torch.zeros(3, dtype=torch.bool), CONFIG).item() == 0.0


def test_fade_is_one_at_the_anchor_and_never_grows() -> None:
    fade = torch.tensor([[0.0, 0.3], [4.0, 0.5], [30.0, 0.9]])
    assert torch.allclose(fade_factor(fade, torch.tensor(0.0)), torch.ones(3))
    assert torch.allclose(fade_factor(fade[:1], torch.tensor(0.7)), torch.ones(1))
    steps = torch.stack([fade_factor(fade, dt) for dt in torch.linspace(0, 1, 11)])
    assert (steps[1:] <= steps[:-1] + 1e-6).all()
    assert torch.equal(fade_factor(fade, torch.tensor(-0.4)), fade_factor(fade, torch.tensor(0.4)))


@pytest.mark.parametrize(("mapping", "far", "near"), [("published", 5.0, 0.1), ("paper", 2.0, 1.0)])
def test_depth_mappings(mapping: str, far: float, near: float) -> None:
    depth = inverse_depth_to_depth(torch.tensor([0.0, 1.0, -0.01, 1.01]), mapping)
    assert depth[0].item() == pytest.approx(far, rel=1e-4)
    assert depth[1].item() == pytest.approx(near, rel=1e-4)
    assert (depth[2:] < 0).all()


def test_pair_at_its_ends_is_the_frame_at_rest_when_the_other_has_faded() -> None:
    torch.manual_seed(0)
    count = 40
    gaussians = torch.rand(1, 2, count, 9)
    gaussians[..., 0:3:2] = gaussians[..., 0:3:2] * 2 - 1
    gaussians[..., 6:8] = 0.05 + 0.1 * gaussians[..., 6:8]
    motion = 0.2 * torch.randn(1, 2, count, 3)
    motion[..., 1] = 0
    fade = torch.tensor([1000.0, 0.5]).expand(1, 2, count, 2)  # a hard switch in the middle
    background = torch.tensor([[0.1, 0.2, 0.3]])
    times = torch.tensor([[0.0, 1.0]])
    rgb, _, _ = render_pair(gaussians, motion, fade, times, background, (16, 32), "published")
    for i in range(2):
        still, _, _ = render_static(gaussians[:, i], background, (16, 32), "published")
        assert torch.allclose(rgb[:, i], still, atol=1e-6)


@pytest.fixture(scope="module")
def batches(cache: Cache) -> tuple[Stills, Batch]:
    """With depth of all samples but one, and masks."""
    mixer = Mixer(cache, 0.5, seed=1)
    stills, pairs = mixer.batch_stills(0, 4), mixer.batch(0, 3, 4)
    generator = torch.Generator().manual_seed(0)
    for batch in (stills, pairs):
        batch.inv_depth = torch.rand(batch.inv_depth.shape, generator=generator).half()
        batch.depth_valid = torch.arange(len(batch.depth_valid)) != 1
    pairs.mask[:, :, 10:20, 30:50] = True
    return stills, pairs


class _Lpips(torch.nn.Module):
    """Stands in for LPIPS: remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Size] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.seen.append(a.shape)
        return (a - b).abs().mean((1, 2, 3))


def evaluate(
    stage: Literal["static", "dynamic"], batch: Any, lpips: _Lpips, step: int = 0, **fields: Any
) -> tuple[float, dict[str, float]]:
    recipe = Recipe(
        stage=stage, preset="tiny", data="x", steps=10, batch=len(batch.depth_valid), init="x", model=MODEL,
        lpips_weights="x", depth_weight=0.0, probabilistic=False, **fields,
    )  # fmt: skip
    torch.manual_seed(0)
    model = StreamSplat(recipe.config)
    initialise(model)
    loss, parts = Objective(model, recipe, Setting(lpips=lpips))(batch, step)
    return loss.item(), {name: value.item() for name, value in parts.items()}


@pytest.mark.parametrize("stage", ["static", "dynamic"])
def test_published_terms_count_from_their_starts_on(
    batches: tuple[Stills, Batch], stage: Literal["static", "dynamic"]
) -> None:
    batch = batches[0] if stage == "static" else batches[1]
    lpips = _Lpips()
    weights = {"ssi_depth_weight": 0.5, "ssi_depth_start": 0.3, "lpips_weight": 0.25, "lpips_start": 0.6}
    plain, _ = evaluate(stage, batch, lpips)
    early, parts = evaluate(stage, batch, lpips, 2, **weights)
    assert not {"ssi_depth", "lpips"} & parts.keys() and not lpips.seen
    assert early == pytest.approx(parts["mse"], rel=1e-5) and plain > 0
    middle, parts = evaluate(stage, batch, lpips, 3, **weights)
    assert parts["ssi_depth"] > 0 and "lpips" not in parts
    assert middle == pytest.approx(parts["mse"] + 0.5 * parts["ssi_depth"], rel=1e-5)
    late, parts = evaluate(stage, batch, lpips, 6, **weights)
    images = 4 if stage == "static" else 3 * 3
    assert lpips.seen == [(images, 3, 256, 256)] and parts["lpips"] > 0
    assert late == pytest.approx(parts["mse"] + 0.5 * parts["ssi_depth"] + 0.25 * parts["lpips"], rel=1e-5)


def test_unknown_depth_adds_nothing(batches: tuple[Stills, Batch]) -> None:
    unknown = replace(batches[0], depth_valid=torch.zeros(4, dtype=torch.bool))
    loss, parts = evaluate("static", unknown, _Lpips(), ssi_depth_weight=1.0)
    assert parts["ssi_depth"] == 0 and loss == pytest.approx(parts["mse"], rel=1e-6)


def test_masks_weigh_moving_objects_and_may_be_empty(batches: tuple[Stills, Batch]) -> None:
    batch = batches[1]
    loss, parts = evaluate("dynamic", batch, _Lpips(), mask_weight=3.0)
    assert parts["mask_mse"] > 0 and loss == pytest.approx(parts["mse"] + 3 * parts["mask_mse"], rel=1e-5)
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    loss, parts = evaluate("dynamic", empty, _Lpips(), mask_weight=3.0)
    assert parts["mask_mse"] == 0 and loss == pytest.approx(parts["mse"], rel=1e-6)


def test_every_frame_is_supervised_where_the_recipe_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    assert _pick_times(6, 0, generator).tolist() == [0, 1, 2, 3, 4, 5]
    end, *inner = _pick_times(6, 4, generator).tolist()
    assert end in (0, 5) and len(set(inner)) == 3 and set(inner) <= {1, 2, 3, 4}


def test_depth_is_scaled_per_frame_and_zero_where_it_is_constant() -> None:
    depth = torch.stack([torch.linspace(0.2, 0.6, 12).reshape(3, 4), torch.full((3, 4), 0.7)]).half()
    rgbd = to_rgbd(torch.full((2, 3, 3, 4), 51, dtype=torch.uint8), depth)
    assert torch.allclose(rgbd[:, :3], torch.tensor(0.2))
    assert torch.allclose(rgbd[0, 3], torch.linspace(0, 1, 12).reshape(3, 4), atol=2e-3)
    assert (rgbd[1, 3] == 0).all()


def test_forward_only_hides_the_later_frame(batches: tuple[Stills, Batch]) -> None:
    batch = batches[1]
    recipe = Recipe(stage="dynamic", preset="tiny", data="x", steps=1, batch=3, init="x", model=MODEL)
    torch.manual_seed(0)
    model = StreamSplat(recipe.config)
    ends = batch.frames[:, [0, -1]]
    both = predict_pair(model, ends, batch.inv_depth, recipe, Setting())
    one = predict_pair(model, ends, batch.inv_depth, replace(recipe, bidirectional=False), Setting())
    assert (one[0][:, 1, :, 8] == 0).all() and (both[0][:, 1, :, 8] > 0).all()
    assert torch.equal(one[0][:, 0], both[0][:, 0]) and torch.equal(one[0][..., :8], both[0][..., :8])
    assert all(torch.equal(a, b) for a, b in zip(one[1:], both[1:], strict=True))
    # Its motion is not supervised either.
    _, parts = evaluate("dynamic", batch, _Lpips(), motion_weight=1.0)
    flow = replace(batch, flow_bwd=batch.flow_bwd + 1)
    _, changed = evaluate("dynamic", flow, _Lpips(), motion_weight=1.0)
    _, hidden = evaluate("dynamic", batch, _Lpips(), motion_weight=1.0, bidirectional=False)
    _, same = evaluate("dynamic", flow, _Lpips(), motion_weight=1.0, bidirectional=False)
    assert changed["motion_px"] != parts["motion_px"] and same["motion_px"] == hidden["motion_px"]
