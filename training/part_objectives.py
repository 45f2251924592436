"""The losses of the stages that train one network of a small preset by itself, against labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv_depth import slopes_loss
from .data.loader import Batch, Stills
from .matching import MatchingDecoder
from .model import StreamSplat
from .recipe import Recipe
from .setting import Parts, Setting, autocast, weighted_mean

_STRIDE = 4  # of the depth network's output
_STANDS_OUT, _THING = 0.04, 10.0  # see `depth_objective`


def depth_objective(
    model: StreamSplat, batch: Stills, recipe: Recipe, generator: torch.Generator,
    setting: Setting | None = None, step: int = 0,
) -> tuple[Tensor, Parts]:  # fmt: skip
    """Stage "depth": distance of the depth network's output to known inverse depth, and of their slopes.

        loss = mean(w |d - target|) / mean(w) + slopes_weight * `conv_depth.slopes_loss`
        w = 10 where |target - median of its row| > 0.04, else 1

    Things that stand out of the ground cover little of a picture; unweighted, the ground alone would be
    learned. Not invariant to scale and shift: synthetic scenes share one scale, and with a small network
    certainty about it keeps neighbouring frames alike. Both are compared at 1/4 of the resolution.

    Arguments as of `objectives.static_objective`. Parts: "depth" and "slopes"; "ramp" is what the plainest
    guess would have as "depth": every row its mean over the batch.
    """
    rgb = (batch.images.float() / 255.0).contiguous(memory_format=torch.channels_last)
    with autocast(recipe, rgb.device):
        depth = model.depth(rgb)
    target = F.avg_pool2d(batch.inv_depth[:, None].float(), _STRIDE)
    depth = F.avg_pool2d(depth.float(), _STRIDE)
    stands_out = (target - target.median(3, keepdim=True).values).abs() > _STANDS_OUT
    weight = 1 + (_THING - 1) * stands_out.float()
    difference = weighted_mean((depth - target).abs(), weight)
    slopes = slopes_loss(depth, target)
    ramp = weighted_mean((target - target.mean((0, 3), keepdim=True)).abs(), weight)
    return difference + recipe.slopes_weight * slopes, {
        "depth": difference.detach(),
        "slopes": slopes.detach(),
        "ramp": ramp,
    }


def flow_objective(
    model: StreamSplat, batch: Batch, recipe: Recipe, generator: torch.Generator,
    setting: Setting | None = None, step: int = 0,
) -> tuple[Tensor, Parts]:  # fmt: skip
    """Stage "motion": distance of the matched flow to the known one, at every resolution of the matching.

        loss = sum over levels l of 2^-(L - l) mean sqrt(|flow_l - flow|^2 + 0.01)      (pixels of the frame)

    Arguments as of `objectives.static_objective`. Parts: "flow_px" is the mean distance in pixels at the
    finest level, "still_px" that of no motion at all.
    """
    setting = setting or Setting()
    assert isinstance(model.decoder, MatchingDecoder)
    count = batch.frames.shape[0]
    rgb = (batch.frames[:, [0, -1]].flatten(0, 1).float() / 255.0).contiguous(
        memory_format=torch.channels_last
    )
    with autocast(recipe, rgb.device):
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
        pixels = flow.flatten(0, 1).float() * (model.config.width / cols)
        square = (pixels - truth).square().sum(1)

        def mean(error: Tensor, weight: Tensor = weight) -> Tensor:
            return setting.processes.balance(weighted_mean(error, weight), weight.sum())

        loss = loss + 0.5**level * mean((square + 0.01).sqrt())
        if level == 0:
            parts["flow_px"] = mean(square.detach().sqrt())
            parts["still_px"] = mean(truth.square().sum(1).sqrt())
    return loss, parts
