"""The training losses against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamsplat_edge.training.config import preset
from streamsplat_edge.training.gaussians import (
    fade_factor,
    inverse_depth_to_depth,
    render_pair,
    render_static,
)
from streamsplat_edge.training.objectives import depth_loss, motion_loss

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
