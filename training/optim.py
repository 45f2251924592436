"""Optimisers and schedule of the two stages."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..runtime.errors import InputError
from .model import StreamSplat
from .recipe import Recipe

_OUTSIDE_MUON = (
    "gs_layer",
    "mix_layer",
    "residual_fc",
    "encoder_proj",
    "condition_proj",
    "widen",
    "token_shuffle",
)


def build_optimizers(model: StreamSplat, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW over all the stage trains (published), or Muon for the hidden matrices and AdamW for the rest.

    Muon orthogonalises the update of a matrix, which is meant for the linear layers of the residual branches:
    embeddings, the patch convolution, the projections of the shuffles, of the condition and of the static
    features, the heads, norms and biases stay with AdamW. What the stage does not train is frozen. With the
    recipe's `heads_lr`, the static heads have an AdamW of their own, without decay: they are near their goal.
    """
    trained = model.parameters_of(recipe.stage)
    heads = model.parameters_of("heads") if recipe.heads_lr else []
    for p in model.parameters():
        p.requires_grad_(False)
    for p in [*trained, *heads]:
        p.requires_grad_(True)
    own = []
    if heads:
        own = [torch.optim.AdamW(heads, lr=recipe.heads_lr, betas=recipe.betas, weight_decay=0.0)]
    decay = recipe.weight_decay
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(trained, lr=recipe.lr, betas=recipe.betas, weight_decay=decay), *own]
    hidden = {
        id(p)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in _OUTSIDE_MUON)
        for p in [module.weight]
    }
    matrices = [p for p in trained if id(p) in hidden]
    rest = [p for p in trained if id(p) not in hidden]
    adamw = torch.optim.AdamW(rest, lr=recipe.lr, betas=recipe.betas, weight_decay=0.0)
    if not matrices:
        raise InputError(
            f"Stage {recipe.stage!r} of this model has no hidden matrices for optimizer 'muon'.",
            'Set optimizer = "adamw".',
        )
    muon = torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=decay, adjust_lr_fn="original")
    return [muon, adamw, *own]


def lr_factor(step: int, recipe: Recipe) -> float:
    """Factor of the learning rate in `step` (from 0): linear warm-up, then cosine down to `final_lr`.

    Steps are those of the optimiser, however many processes share a batch. The published schedule is advanced
    through `accelerate`, once per process in every optimiser step, so that its 50,000 steps of warm-up on 8
    GPUs are 6,250 here; and its warm-up starts from 1e-10 where this one starts one step up.
    """
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = min(1.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    return recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
