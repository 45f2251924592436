"""The losses of the two stages: a batch of the data mixer and a model -> scalar loss and its parts.

Terms and weights are those the shipped recipes use; they depart from the published ones (REFERENCE.md section
6) where exact labels are at hand: depth and motion are supervised directly instead of by scale-and-shift
invariant depth, and there is no LPIPS.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .data.loader import Batch, Stills
from .gaussians import render_pair, render_static
from .matching import MatchingDecoder
from .model import StreamSplat
from .recipe import Recipe


def to_rgbd(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float [B, 4, H, W] in [0, 1], the depth channel zero (depth_input "zeros")."""
    rgb = images.float() / 255.0
    return torch.cat([rgb, torch.zeros_like(rgb[:, :1])], dim=1)


def psnr(mse: Tensor) -> Tensor:
    """PSNR in dB of values in [0, 1]."""
    return -10.0 * torch.log10(mse.clamp(min=1e-10))


def _on_grid(x: Tensor, config: ModelConfig) -> Tensor:
    """[B, C, H, W] averaged over each Gaussian's cell -> [B, G, C]."""
    return F.adaptive_avg_pool2d(x, config.grid).flatten(2).transpose(1, 2)


def depth_loss(y: Tensor, target: Tensor, valid: Tensor, config: ModelConfig) -> Tensor:
    """Mean |y - target| over the samples whose inverse depth is known; 0 when none is.

    Args:
        y: [B, G] predicted inverse depth in [0, 1].
        target: [B, H, W] known inverse depth, averaged over each Gaussian's cell.
        valid: [B], whether the sample's depth is known.
    """
    weight = valid.float()[:, None]
    error = (y - _on_grid(target[:, None].float(), config)[..., 0]).abs() * weight
    return error.sum() / (weight.sum() * y.shape[1]).clamp(min=1.0)


def static_objective(
    model: StreamSplat, batch: Stills, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Stage 1: MSE of the rendered frame on a random background, plus the depth term where depth is known.

    loss = MSE + depth_weight * `depth_loss`
    """
    config = model.config
    rgbd = to_rgbd(batch.images)
    _, _, gaussians = model.encode(rgbd)
    background = torch.rand(rgbd.shape[0], 3, generator=generator)
    rgb, _, _ = render_static(gaussians, background, (config.height, config.width), config.depth_mapping)
    per_image = (rgb - rgbd[:, :3].permute(0, 2, 3, 1)).square().mean((1, 2, 3))
    depth = depth_loss(gaussians[..., 1], batch.inv_depth, batch.depth_valid, config)
    parts = {
        "mse": per_image.mean().detach(),
        "psnr": psnr(per_image.detach()).mean(),
        "depth": depth.detach(),
    }
    return per_image.mean() + recipe.depth_weight * depth, parts


def motion_loss(motion: Tensor, flow: Tensor, valid: Tensor, config: ModelConfig) -> Tensor:
    """Charbonnier distance, in pixels, of projected motion to optical flow.

    Gaussians of frame 0 move by the flow to frame 1; those of frame 1 arrive from frame 0, so theirs is
    minus the flow back. Flow beyond half of what `dynamic_scalar` allows is left out: on real clips it is
    mostly the estimator's error, and its size would drown the rest.

    Args:
        motion: [B, 2, G, 3].
        flow: [B, 2, 2, H, W] px (frame; x, y), first to last and last to first.
        valid: [B, 2, H, W].
    """
    sign = flow.new_tensor([1.0, -1.0])[:, None, None]
    target = _on_grid(flow.flatten(0, 1), config).unflatten(0, flow.shape[:2]) * sign
    known = _on_grid(valid.flatten(0, 1)[:, None].float(), config)[..., 0].unflatten(0, flow.shape[:2]) > 0.99
    to_pixels = motion.new_tensor([config.width / 2, -config.height / 2])
    reach = 0.5 * motion.new_tensor(config.dynamic_scalar)[0::2] * to_pixels.abs()
    weight = (known & (target.abs() < reach).all(-1)).float()
    pixels = motion[..., 0::2] * to_pixels
    error = ((pixels - target).square().sum(-1) + 0.01).sqrt() - 0.1
    return (error * weight).sum() / weight.sum().clamp(min=1.0)


def flow_objective(
    model: StreamSplat, batch: Batch, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Stage "motion": distance of the matched flow to the known one, at every resolution of the matching.

        loss = sum over levels l of 2^-(L - l) mean sqrt(|flow_l - flow|^2 + 0.01)      (pixels of the frame)

    Parts: "flow_px" is the mean distance in pixels at the finest level, "still_px" that of no motion at all.
    """
    assert isinstance(model.decoder, MatchingDecoder)
    count = batch.frames.shape[0]
    ends = torch.stack([batch.frames[:, 0], batch.frames[:, -1]], 1)
    rgb = (ends.flatten(0, 1).float() / 255.0).contiguous(memory_format=torch.channels_last)
    flows, _ = model.decoder.flows(model.condition(rgb).unflatten(0, (count, 2)))
    target = torch.stack([batch.flow_fwd, batch.flow_bwd], 1).flatten(0, 1).float()
    known = batch.flow_valid.flatten(0, 1)[:, None].float()
    loss = target.new_zeros(())
    parts = {}
    for level, flow in enumerate(reversed(flows)):
        rows, cols = flow.shape[-2:]
        # Means over the known pixels of a place only: a place that is mostly unknown is left out.
        share = F.adaptive_avg_pool2d(known, (rows, cols))
        truth = F.adaptive_avg_pool2d(target * known, (rows, cols)) / share.clamp(min=1e-3)
        weight = (share > 0.5).float()[:, 0]
        pixels = flow.flatten(0, 1) * (model.config.width / cols)
        square = (pixels - truth).square().sum(1)
        total = weight.sum().clamp(min=1.0)
        loss = loss + 0.5**level * ((square + 0.01).sqrt() * weight).sum() / total
        if level == 0:
            parts["flow_px"] = (square.detach().sqrt() * weight).sum() / total
            parts["still_px"] = (truth.square().sum(1).sqrt() * weight).sum() / total
    return loss, parts


def dynamic_objective(
    model: StreamSplat, batch: Batch, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Stage 2, encoder frozen: MSE of rendered times, plus the foreground term and the supervision of motion.

        loss = MSE + motion_weight * `motion_loss` + mask_weight * MSE(masked pixels; 0 for an empty mask)

    Parts: "mse", "psnr", "psnr_between" (frames in between only) in dB, "motion_px" in pixels, "mask_mse".
    """
    config = model.config
    count, length = batch.times.shape
    ends = torch.stack([batch.frames[:, 0], batch.frames[:, -1]], 1)
    with torch.no_grad():
        tokens, features, gaussians = (
            x.unflatten(0, (count, 2)) for x in model.encode(to_rgbd(ends.flatten(0, 1)))
        )
    condition = None
    if model.config.condition == "conv":
        condition = model.condition(ends.flatten(0, 1).float() / 255.0).unflatten(0, (count, 2))
    motion, fade = model.deform(tokens, features, condition)

    # In-between frames are what stage 2 is for; an end frame is supervised in one slot of `renders`.
    picks = torch.stack([_pick_times(length, recipe.renders, generator) for _ in range(count)])
    times = batch.times.gather(1, picks)
    target = batch.frames.gather(1, picks[:, :, None, None, None].expand(-1, -1, *batch.frames.shape[2:]))
    target = target.float().permute(0, 1, 3, 4, 2) / 255.0
    background = torch.rand(count, 3, generator=generator)
    rgb, _, _ = render_pair(
        gaussians, motion, fade, times, background, (config.height, config.width), config.depth_mapping
    )
    error = (rgb - target).square().mean(-1)
    mse = error.mean()
    loss = mse
    per_render = error.detach().mean((2, 3))
    between = (times > 0) & (times < 1)
    parts = {
        "mse": mse.detach(),
        "psnr": psnr(per_render).mean(),
        "psnr_between": psnr(per_render)[between].mean(),
    }
    if recipe.motion_weight:
        flow = torch.stack([batch.flow_fwd, batch.flow_bwd], 1).float()
        motion_term = motion_loss(motion, flow, batch.flow_valid, config)
        loss = loss + recipe.motion_weight * motion_term
        parts["motion_px"] = motion_term.detach()
    if recipe.mask_weight:
        mask = batch.mask.gather(1, picks[:, :, None, None].expand(-1, -1, *batch.mask.shape[2:])).float()
        masked = (error * mask).sum() / mask.sum().clamp(min=1.0)
        loss = loss + recipe.mask_weight * masked
        parts["mask_mse"] = masked.detach()
    return loss, parts


def _pick_times(length: int, renders: int, generator: torch.Generator) -> Tensor:
    """Indices of one end frame and `renders - 1` in-between frames (repeated when there are fewer)."""
    end = torch.randint(0, 2, (1,), generator=generator) * (length - 1)
    inner = torch.randperm(length - 2, generator=generator)[: renders - 1] + 1 if length > 2 else end
    picks = torch.cat([end, inner])
    return picks[torch.arange(renders) % len(picks)]
