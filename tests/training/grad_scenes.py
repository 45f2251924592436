"""Scenes, truths and checks that every version of the differentiable rasterizer has to pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamsplat_edge.training import dense_renderer

NAMES = ("xz", "depth", "scale", "opacity", "rgb", "background")
GOLDEN = Path(__file__).parents[1] / "data" / "golden_render.npz"
GOLDEN_CASES = (
    "random300",
    "ties",
    "offscreen",
    "sizes",
    "opacity",
    "dense_opaque",
    "odd_size",
    "all_culled",
    "single_center",
)
SCENES: dict[str, dict[str, Any]] = {
    "sparse": dict(seed=0, count=60),
    "overlapping": dict(seed=1, count=400, sigma=3.0, opaque=0.6),
    "opaque_early_stop": dict(seed=2, count=900, sigma=3.0),
    "tiny": dict(seed=3, count=500, sigma=0.4),
    "large": dict(seed=4, count=80, sigma=25.0, opaque=0.9),
    "clamped": dict(seed=5, count=120, sigma=4.0, opaque=1.6),
}

# (inputs in the order of NAMES, height, width) to rgb, depth, alpha; differentiable.
Render = Callable[[Sequence[Tensor], int, int], tuple[Tensor, Tensor, Tensor]]


def scene(
    seed: int,
    count: int,
    batch: int = 1,
    sigma: float = 2.0,
    opaque: float = 1.0,
    size: tuple[int, int] = (50, 70),
) -> list[Tensor]:
    """Random Gaussians, some outside the image; ``sigma`` in pixels."""
    g = torch.Generator().manual_seed(seed)
    height, width = size
    xz = torch.rand(batch, count, 2, generator=g) * 2.3 - 1.15
    depth = 0.1 + 4.9 * torch.rand(batch, count, generator=g)
    pixels = sigma * (0.3 + 1.7 * torch.rand(batch, count, 2, generator=g))
    scale = pixels * 2.0 / torch.tensor([width, height])
    opacity = opaque * (0.05 + 0.95 * torch.rand(batch, count, generator=g))
    rgb = torch.rand(batch, count, 3, generator=g)
    background = torch.rand(batch, 3, generator=g)
    return [xz, depth, scale, opacity, rgb, background]


def tied_scene() -> list[Tensor]:
    """Three depths among hundreds of overlapping Gaussians: ties go by index."""
    inputs = scene(20, 700, sigma=2.0, opaque=0.5)
    inputs[1] = torch.tensor([0.5, 1.0, 4.0])[torch.arange(700) * 7 % 3][None]
    return inputs


def upstream(seed: int, batch: int, height: int, width: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1000 + seed)
    shapes = ((batch, height, width, 3), (batch, height, width), (batch, height, width))
    return [torch.randn(s, generator=g) for s in shapes]


def gradients(
    render: Render, inputs: Sequence[Tensor], up: Sequence[Tensor], height: int, width: int
) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    torch.autograd.backward(render(leaves, height, width), up)
    return [t.grad for t in leaves if t.grad is not None]


@dataclass
class Dense:
    """A scene rendered by the dense float64 renderer, and the gradients of one random loss on it.

    solid: bool [H, W], pixels where no discrete decision hangs on rounding; the loss looks only at those.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    solid: Tensor
    upstream: Sequence[Tensor]
    gradients: Sequence[Tensor]


def dense(inputs: Sequence[Tensor], height: int, width: int) -> Dense:
    leaves = [t[0].double().requires_grad_() for t in inputs]
    xz, depth, scale, opacity, rgb, background = leaves
    image = dense_renderer.render(xz, depth, scale, opacity, rgb, background, height, width)
    outputs, fragile = image[:3], image.fragile
    assert fragile is not None and fragile.float().mean() < 0.2
    solid = ~fragile
    up = [
        u * (solid[None, ..., None] if u.dim() == 4 else solid[None]) for u in upstream(0, 1, height, width)
    ]
    torch.autograd.backward(outputs, [u[0].double() for u in up])
    wanted = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(wanted) == len(leaves) and all(g.abs().max() > 0 for g in wanted)
    return Dense(inputs, [o.detach() for o in outputs], solid, up, wanted)


@cache
def dense_scene(name: str) -> Dense:
    """Computed once for all rasterizers: this is the slow part."""
    return dense(tied_scene() if name == "tied" else scene(**SCENES[name]), 50, 70)


def check_dense(render: Render, truth: Dense) -> None:
    """Outputs within 1e-5 of the truth, gradients within a relative 1e-4."""
    height, width = truth.solid.shape
    outputs = render(truth.inputs, height, width)
    for got, want in zip(outputs, truth.outputs, strict=True):
        assert (got[0] - want)[truth.solid].abs().max() < 1e-5
    actual = gradients(render, truth.inputs, truth.upstream, height, width)
    for field, got, want in zip(NAMES, actual, truth.gradients, strict=True):
        error = (got[0].double() - want).norm() / want.norm()
        worst = (got[0].double() - want).abs().max() / want.abs().max()
        assert error < 1e-4 and worst < 1e-4, f"{field}: relative L2 {error:.2e}, worst {worst:.2e}"


def golden_inputs(case: str) -> tuple[list[Tensor], dict[str, np.ndarray]]:
    """The inputs of a golden image as a batch of one, and all of its arrays."""
    with np.load(GOLDEN, allow_pickle=False) as data:
        d = {k.split("/", 1)[1]: data[k] for k in data.files if k.startswith(case + "/")}
    assert np.array_equal(d["in_quats"], np.broadcast_to([1, 0, 0, 0], d["in_quats"].shape))
    means, scales = torch.from_numpy(d["in_means"]), torch.from_numpy(d["in_scales"])
    opacity, rgb, bg = (torch.from_numpy(d["in_" + k]) for k in ("opacity", "rgb", "bg"))
    inputs = [means[:, [0, 2]], means[:, 1], scales[:, [0, 2]], opacity, rgb, bg]
    return [t[None] for t in inputs], d


def check_golden(render: Render, case: str) -> None:
    inputs, d = golden_inputs(case)
    height, width = (int(v) for v in d["in_size"])
    solid = ~d["cull_fragile"]
    for got, name in zip(render(inputs, height, width), ("rgb", "depth", "alpha"), strict=True):
        error = np.abs(got[0].numpy() - d["cull_" + name])
        assert error[solid].max() < 1e-5, name
        if (~solid).any():
            assert error[~solid].max() < 0.1, name


POISON = (float("nan"), float("inf"), -float("inf"))


def check_poison(render: Render, field: int, value: float) -> None:
    """Poisoned Gaussians change nothing and get nothing."""
    height, width = 50, 70
    clean = scene(8, 200, sigma=3.0)
    up = upstream(8, 1, height, width)
    bad = [t.clone() for t in clean]
    victims = torch.arange(0, 200, 7)
    bad[field][0, victims] = value
    kept = torch.tensor([i for i in range(200) if i % 7])
    without = [t[:, kept] for t in clean[:5]] + clean[5:]
    for a, b in zip(render(bad, height, width), render(without, height, width), strict=True):
        assert torch.equal(a, b)
    got, want = gradients(render, bad, up, height, width), gradients(render, without, up, height, width)
    for a, b in zip(got[:5], want[:5], strict=True):
        assert torch.count_nonzero(a[:, victims]) == 0
        assert torch.equal(a[:, kept], b)


def check_culled(render: Render) -> None:
    inputs = scene(9, 40)
    inputs[1][0, 0:5] = torch.tensor([0.0, -0.0, -1.0, -9.5, -1e30])  # behind
    inputs[3][0, 5:8] = torch.tensor([0.0, 0.003, -0.5])  # transparent
    inputs[0][0, 8:10] = torch.tensor([[40.0, 0.0], [0.0, -1e30]])  # outside
    grads = gradients(render, inputs, upstream(9, 1, 50, 70), 50, 70)
    for field, grad in zip(NAMES[:5], grads[:5], strict=True):
        assert torch.count_nonzero(grad[0, :10]) == 0, field
        assert torch.count_nonzero(grad[0, 10:]) > 0, field


def check_extreme(render: Render) -> None:
    """A Gaussian far larger than the image covers it evenly."""
    inputs = [torch.zeros(1, 1, 2), torch.ones(1, 1), torch.full((1, 1, 2), 1e12), torch.full((1, 1), 0.5)]
    inputs += [torch.ones(1, 1, 3), torch.zeros(1, 3)]
    _, depth, alpha = render(inputs, 33, 47)
    assert torch.equal(alpha, torch.full((1, 33, 47), 0.5)) and torch.equal(depth, alpha)
    grads = gradients(render, inputs, upstream(1, 1, 33, 47), 33, 47)
    assert all(torch.isfinite(g).all() for g in grads)


def check_empty(render: Render, batch: int, count: int) -> None:
    inputs = scene(0, count, batch)
    rgb, depth, alpha = render(inputs, 20, 30)
    assert rgb.shape == (batch, 20, 30, 3)
    assert torch.equal(rgb, inputs[5][:, None, None, :].expand_as(rgb))
    assert not depth.any() and not alpha.any()
    grads = gradients(render, inputs, upstream(0, batch, 20, 30), 20, 30)
    assert [g.shape for g in grads] == [t.shape for t in inputs]


def check_batch(render: Render, *, on_gpu: bool = False) -> None:
    """A batch is its images, bit by bit.

    Args:
        on_gpu: torch adds up the gradient of the background there, in an order that depends on how many sums
            it takes at a time.
    """
    inputs = scene(11, 300, batch=3)
    up = upstream(11, 3, 50, 70)
    outputs, grads = render(inputs, 50, 70), gradients(render, inputs, up, 50, 70)
    for b in range(3):
        one = [t[b : b + 1] for t in inputs]
        for a, w in zip(outputs, render(one, 50, 70), strict=True):
            assert torch.equal(a[b], w[0])
        alone = gradients(render, one, [u[b : b + 1] for u in up], 50, 70)
        for field, a, w in zip(NAMES, grads, alone, strict=True):
            if field == "background" and on_gpu:
                torch.testing.assert_close(a[b], w[0], rtol=1e-5, atol=1e-4)
            else:
                assert torch.equal(a[b], w[0]), field


def check_clamp(render: Render) -> None:
    """A Gaussian that is clamped wherever it is looked at moves nothing, but its colour still counts."""
    up = [torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)]
    up[0][0, 8, 8] = 1.0
    up[2][0, 8, 8] = 1.0
    inputs = [torch.zeros(1, 1, 2), torch.ones(1, 1), torch.ones(1, 1, 2), torch.full((1, 1), 1.5)]
    grads = gradients(render, [*inputs, torch.ones(1, 1, 3), torch.zeros(1, 3)], up, 16, 16)
    got = dict(zip(NAMES, grads, strict=True))
    assert all(torch.count_nonzero(got[k]) == 0 for k in ("xz", "scale", "opacity"))
    assert abs(got["rgb"][0, 0, 0].item() - 0.99) < 1e-6
