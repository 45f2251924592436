"""The losses of the two published stages: a batch of the data mixer and a model -> scalar loss and its parts.

Every term has a weight of its own in the recipe. The published recipes (`base_*.toml`) use MSE, LPIPS, masked
MSE and scale- and shift-invariant depth (REFERENCE.md section 6, `losses.py`); ours depart from them where
exact labels are at hand and supervise depth and motion directly.

A step draws its noise for the whole batch, of which a process uses its rows: what a sample meets does not
depend on how many processes share the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .conv_depth import normalised
from .data.loader import Batch, Stills
from .gaussians import render_pair, render_static
from .losses import masked_mse, ssi_depth
from .model import StreamSplat
from .part_objectives import depth_objective, flow_objective
from .recipe import Recipe
from .setting import Parts, Setting, autocast, weighted_mean

# As published: LPIPS sees images of this size; stage 2 compares depth where this much is covered, and holds
# large differences back (see `losses.ssi_depth`).
_LPIPS_SIZE = (256, 256)
_COVERED = 0.1
_IGNORE_LARGE = 0.3


def to_rgbd(images: Tensor, inv_depth: Tensor | None = None) -> Tensor:
    """Model input of uint8 images [B, 3, H, W]: float [B, 4, H, W] in [0, 1].

    Args:
        images: RGB.
        inv_depth: [B, H, W], larger is nearer, scaled to [0, 1] frame by frame as in the published training;
            a constant frame becomes zero (published: NaN). None is zero (depth_input "zeros").
    """
    rgb = images.float() / 255.0
    if inv_depth is None:
        return torch.cat([rgb, torch.zeros_like(rgb[:, :1])], dim=1)
    return torch.cat([rgb, normalised(inv_depth[:, None].float())], dim=1)


def psnr(mse: Tensor) -> Tensor:
    """PSNR in dB of values in [0, 1]."""
    return -10.0 * torch.log10(mse.clamp(min=1e-10))


def render_loss(mse: Tensor, recipe: Recipe) -> Tensor:
    """Mean squared errors of renders, any shape, as the loss the recipe asks for: their mean, or that of
    ln(mse + 1e-5), which is PSNR up to a factor below 50 dB."""
    return mse.mean() if recipe.loss == "mse" else torch.log(mse + 1e-5).mean()


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


def _own_noise(noise: Tensor, setting: Setting) -> Tensor:
    """This process's rows of noise drawn for the whole batch."""
    processes = setting.processes
    rows = processes.rows(noise.shape[0])
    return noise[rows.start : rows.stop].to(processes.device)


def _counts(start: float, step: int, recipe: Recipe) -> bool:
    return step >= start * recipe.steps


def perceptual_loss(rgb: Tensor, target: Tensor, lpips: nn.Module) -> Tensor:
    """Mean LPIPS of images [N, H, W, 3], both resized bilinearly to 256x256 as published."""
    images = torch.cat([rgb, target]).permute(0, 3, 1, 2)
    if images.shape[2:] != _LPIPS_SIZE:
        images = F.interpolate(images, _LPIPS_SIZE, mode="bilinear", align_corners=False)
    distance: Tensor = lpips(*images.chunk(2))
    return distance.mean()


def known_depth_loss(
    depth: Tensor, target: Tensor, valid: Tensor, mask: Tensor | None = None, ignore_large: float = 0.0
) -> Tensor:
    """`losses.ssi_depth` over the samples whose inverse depth is known; 0 when none is.

    Args:
        depth: [B, V, H, W] rendered (accumulated) depth.
        target: [B, V, H, W] inverse depth.
        valid: [B], whether the sample's depth is known.
        mask, ignore_large: as of `ssi_depth`.
    """
    if not bool(valid.any()):
        return depth.new_zeros(())
    return ssi_depth(depth[valid], target[valid].float(), None if mask is None else mask[valid], ignore_large)


def model_input(model: StreamSplat, images: Tensor, inv_depth: Tensor, frames: int = 1) -> Tensor:
    """uint8 [B, 3, H, W], inverse depth [B, H, W] (read with depth_input "stage" only) -> rgbd [B, 4, H, W].

    `frames` consecutive images belong together, see `conv_depth.normalised`.
    """
    rgbd = to_rgbd(images, inv_depth if model.config.depth_input == "stage" else None)
    if model.config.depth_input == "conv":
        with torch.no_grad():  # has a stage of its own
            rgbd[:, 3:] = normalised(model.depth(rgbd[:, :3]), frames)
    return rgbd


def encode(model: StreamSplat, images: Tensor, inv_depth: Tensor, recipe: Recipe) -> tuple[Tensor, ...]:
    """`model.encode` of frames that stand alone, see `model_input`."""
    with autocast(recipe, images.device):
        return model.encode(model_input(model, images, inv_depth))


def static_objective(
    model: StreamSplat, batch: Stills, recipe: Recipe, generator: torch.Generator,
    setting: Setting | None = None, step: int = 0,
) -> tuple[Tensor, Parts]:  # fmt: skip
    """Stage 1: how a frame's own Gaussians render it on a random background.

        loss = MSE + depth_weight * `depth_loss`
             + ssi_depth_weight * `losses.ssi_depth` + lpips_weight * LPIPS       from their starts on

    Args:
        model: in training mode.
        batch: this process's rows.
        recipe: weights and starts.
        generator: of this step, on the CPU, in the same state in every process.
        setting: None is one process without LPIPS.
        step: from 0.

    Returns:
        The loss, and detached parts: "mse", "psnr" in dB, "depth", "ssi_depth", "lpips".
    """
    setting = setting or Setting()
    config, balance = model.config, setting.processes.balance
    _, _, gaussians = encode(model, batch.images, batch.inv_depth, recipe)
    target = batch.images.float().permute(0, 2, 3, 1) / 255.0
    background = _own_noise(
        torch.rand(len(target) * setting.processes.count, 3, generator=generator), setting
    )
    size = (config.height, config.width)
    rgb, depth_map, _ = render_static(gaussians, background, size, config.depth_mapping)
    per_image = (rgb - target).square().mean((1, 2, 3))
    known = batch.depth_valid.sum()
    depth = balance(depth_loss(gaussians[..., 1], batch.inv_depth, batch.depth_valid, config), known)
    parts = {
        "mse": per_image.mean().detach(),
        "psnr": psnr(per_image.detach()).mean(),
        "depth": depth.detach(),
    }
    loss = render_loss(per_image, recipe) + recipe.depth_weight * depth
    if recipe.ssi_depth_weight and _counts(recipe.ssi_depth_start, step, recipe):
        term = known_depth_loss(depth_map[:, None], batch.inv_depth[:, None], batch.depth_valid)
        loss, parts["ssi_depth"] = _add(loss, recipe.ssi_depth_weight, balance(term, known))
    if recipe.lpips_weight and _counts(recipe.lpips_start, step, recipe):
        assert setting.lpips is not None
        term = perceptual_loss(rgb, target, setting.lpips)
        loss, parts["lpips"] = _add(loss, recipe.lpips_weight, term)
    return loss, parts


def _add(loss: Tensor, weight: float, term: Tensor) -> tuple[Tensor, Tensor]:
    return loss + weight * term, term.detach()


def _motion_errors(motion: Tensor, flow: Tensor, valid: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Distances and weights [B, 2, G] of `motion_loss`."""
    sign = flow.new_tensor([1.0, -1.0])[:, None, None]
    target = _on_grid(flow.flatten(0, 1), config).unflatten(0, flow.shape[:2]) * sign
    known = _on_grid(valid.flatten(0, 1)[:, None].float(), config)[..., 0].unflatten(0, flow.shape[:2]) > 0.99
    to_pixels = motion.new_tensor([config.width / 2, -config.height / 2])
    reach = 0.5 * motion.new_tensor(config.dynamic_scalar)[0::2] * to_pixels.abs()
    weight = (known & (target.abs() < reach).all(-1)).float()
    pixels = motion[..., 0::2] * to_pixels
    return ((pixels - target).square().sum(-1) + 0.01).sqrt() - 0.1, weight


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
    return weighted_mean(*_motion_errors(motion, flow, valid, config))


def predict_pair(
    model: StreamSplat, ends: Tensor, inv_depth: Tensor, recipe: Recipe, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """What a model with a frozen encoder makes of pairs; its heads take part where the recipe tunes them.

    Args:
        model: in the mode it is to run in.
        ends: uint8 [B, 2, 3, H, W], the earlier frame first.
        inv_depth: [B, 2, H, W], read with depth_input "stage" only.
        recipe: precision, and whether the deformation is bidirectional: if not, the Gaussians of the later
            frame are there, but transparent.
        setting: as of `static_objective`.

    Returns:
        Gaussians [B, 2, G, 9], motion [B, 2, G, 3], fade [B, 2, G, 2].
    """
    count, device = len(ends), ends.device
    condition = None
    with torch.no_grad():
        rgbd = model_input(model, ends.flatten(0, 1), inv_depth.flatten(0, 1), frames=2)
        with autocast(recipe, device):
            encoded = model.encode(rgbd)
        tokens, features, gaussians = (x.unflatten(0, (count, 2)) for x in encoded)
        if model.config.condition == "dino":
            assert setting.dino is not None
            with autocast(recipe, device):
                condition = setting.dino(ends.flatten(0, 1).float() / 255.0).unflatten(0, (count, 2))
    if recipe.heads_lr:  # once more, for their gradients: they are small
        gaussians = model.gs_predictor.predictor(encoded[1], rgbd).unflatten(0, (count, 2))
    with autocast(recipe, device):
        if model.config.condition == "conv":  # trained, so outside of no_grad
            condition = model.condition(ends.flatten(0, 1).float() / 255.0).unflatten(0, (count, 2))
        motion, fade = model.deform(tokens, features, condition)
    if not recipe.bidirectional:
        shown = gaussians.new_ones(2, 1, 9)
        shown[1, :, 8] = 0.0
        gaussians = gaussians * shown
    return gaussians, motion, fade


def dynamic_objective(
    model: StreamSplat, batch: Batch, recipe: Recipe, generator: torch.Generator,
    setting: Setting | None = None, step: int = 0,
) -> tuple[Tensor, Parts]:  # fmt: skip
    """Stage 2, encoder frozen: how a pair's Gaussians render it at several times.

        loss = MSE + motion_weight * `motion_loss` + mask_weight * `losses.masked_mse`
             + ssi_depth_weight * `losses.ssi_depth` + lpips_weight * LPIPS       from their starts on

    Depth is known at the two ends, so the depth term looks at the renders there; published: at all times.

    Arguments as of `static_objective`. Parts: "mse", "psnr", "psnr_between" (frames in between only) in dB,
    "motion_px" in pixels, "mask_mse", "ssi_depth", "lpips".
    """
    setting = setting or Setting()
    config, balance = model.config, setting.processes.balance
    count, length = batch.times.shape
    ends = batch.frames[:, [0, -1]]
    gaussians, motion, fade = predict_pair(model, ends, batch.inv_depth, recipe, setting)

    total = count * setting.processes.count
    picks = torch.stack([_pick_times(length, recipe.renders, generator) for _ in range(total)])
    background = _own_noise(torch.rand(total, 3, generator=generator), setting)
    picks = _own_noise(picks, setting)
    times = batch.times.gather(1, picks)
    target = batch.frames.gather(1, picks[:, :, None, None, None].expand(-1, -1, *batch.frames.shape[2:]))
    target = target.float().permute(0, 1, 3, 4, 2) / 255.0
    size = (config.height, config.width)
    rgb, depth_map, alpha = render_pair(
        gaussians, motion, fade, times, background, size, config.depth_mapping
    )
    error = (rgb - target).square().mean(-1)
    mse = error.mean()
    loss = render_loss(error.mean((2, 3)), recipe)
    per_render = error.detach().mean((2, 3))
    between = (times > 0) & (times < 1)
    parts = {
        "mse": mse.detach(),
        "psnr": psnr(per_render).mean(),
        "psnr_between": psnr(per_render)[between].mean(),
    }
    if recipe.motion_weight:
        flow = torch.stack([batch.flow_fwd, batch.flow_bwd], 1).float()
        errors, weight = _motion_errors(motion, flow, batch.flow_valid, config)
        if not recipe.bidirectional:
            weight = weight * weight.new_tensor([1.0, 0.0])[:, None]
        term = balance(weighted_mean(errors, weight), weight.sum())
        loss, parts["motion_px"] = _add(loss, recipe.motion_weight, term)
    if recipe.mask_weight:
        mask = batch.mask.gather(1, picks[:, :, None, None].expand(-1, -1, *batch.mask.shape[2:]))
        term = balance(masked_mse(rgb, target, mask), mask.sum())
        loss, parts["mask_mse"] = _add(loss, recipe.mask_weight, term)
    if recipe.ssi_depth_weight and _counts(recipe.ssi_depth_start, step, recipe):
        at_end = (picks[0] == 0) | (picks[0] == length - 1)  # the same slots in every sample
        which = (picks[:, at_end] != 0).long()[:, :, None, None].expand(-1, -1, *size)
        term = known_depth_loss(
            depth_map[:, at_end], batch.inv_depth.gather(1, which), batch.depth_valid,
            alpha[:, at_end] > _COVERED, _IGNORE_LARGE,
        )  # fmt: skip
        term = balance(term, batch.depth_valid.sum())
        loss, parts["ssi_depth"] = _add(loss, recipe.ssi_depth_weight, term)
    if recipe.lpips_weight and _counts(recipe.lpips_start, step, recipe):
        assert setting.lpips is not None
        term = perceptual_loss(rgb.flatten(0, 1), target.flatten(0, 1), setting.lpips)
        loss, parts["lpips"] = _add(loss, recipe.lpips_weight, term)
    return loss, parts


def _pick_times(length: int, renders: int, generator: torch.Generator) -> Tensor:
    """Indices of one end frame and `renders - 1` in-between frames (repeated when there are fewer); 0: all.

    In-between frames are what stage 2 is for; an end frame is supervised in one slot of `renders`.
    """
    if renders == 0:
        return torch.arange(length)
    end = torch.randint(0, 2, (1,), generator=generator) * (length - 1)
    inner = torch.randperm(length - 2, generator=generator)[: renders - 1] + 1 if length > 2 else end
    picks = torch.cat([end, inner])
    return picks[torch.arange(renders) % len(picks)]


OBJECTIVES: dict[str, Callable[..., tuple[Tensor, Parts]]] = {
    "depth": depth_objective,
    "static": static_objective,
    "motion": flow_objective,
    "dynamic": dynamic_objective,
}


class Objective(nn.Module):
    """The loss of the recipe's stage as a module, so that its backward pass can be shared by processes."""

    def __init__(self, model: StreamSplat, recipe: Recipe, setting: Setting) -> None:
        super().__init__()
        self.model, self.recipe, self.setting = model, recipe, setting

    def forward(self, batch: Batch | Stills, step: int) -> tuple[Tensor, Parts]:
        """This process's rows of the batch of `step` -> loss and parts, as of the stage's objective.

        Noise is seeded per step, not running on: a resumed run draws what an unbroken one would have drawn.
        """
        recipe, processes = self.recipe, self.setting.processes
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        torch.manual_seed(recipe.seed * 7919 + step)
        samples = {"static": recipe.probabilistic, "dynamic": recipe.sampled_motion}.get(recipe.stage, False)
        if samples and processes.index:
            # What is sampled is drawn from the global generator, three numbers per Gaussian, at once: pass
            # over what the processes before this one draw. (On CUDA numbers do not run on like this, but they
            # differ all the same.)
            frames = 1 if recipe.stage == "static" else 2
            before = processes.rows(recipe.batch).start * frames
            torch.rand(before, self.model.config.gaussians, 3, device=processes.device)
        return OBJECTIVES[recipe.stage](self.model, batch, recipe, generator, self.setting, step)
