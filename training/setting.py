"""Where a step of training is computed, and what every objective needs for that."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .processes import Processes
from .recipe import Recipe

Parts = dict[str, Tensor]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """Where a step is computed, and the frozen networks it needs.

    Attributes:
        processes: those that share the batch.
        lpips: (a, b) [N, 3, H, W] in [0, 1] -> distances [N]; needed where `lpips_weight` is not 0.
        dino: rgb [N, 3, H, W] in [0, 1] -> condition [N, M, C]; needed where the model's condition is "dino".
    """

    processes: Processes = field(default_factory=lambda: Processes(torch.device("cpu")))
    lpips: nn.Module | None = None
    dino: nn.Module | None = None


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """For the transformers only: heads leave it by themselves, renders and losses are computed outside."""
    dtype = _AUTOCAST.get(recipe.precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def weighted_mean(error: Tensor, weight: Tensor) -> Tensor:
    """Mean of `error` by `weight` (same shape); 0 where all weights are."""
    return (error * weight).sum() / weight.sum().clamp(min=1.0)
