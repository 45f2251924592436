"""The differentiable rasterizer against a dense float64 one, finite differences, golden images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent))

import dense_renderer  # noqa: E402
from torch import Tensor  # noqa: E402

from streamsplat_edge import _core  # noqa: E402
from streamsplat_edge.runtime.errors import InputError  # noqa: E402
from streamsplat_edge.training.rasterizer import rasterize  # noqa: E402

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


def upstream(seed: int, batch: int, height: int, width: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1000 + seed)
    shapes = ((batch, height, width, 3), (batch, height, width), (batch, height, width))
    return [torch.randn(s, generator=g) for s in shapes]


def render(
    inputs: Sequence[Tensor], height: int, width: int, simd: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    xz, depth, scale, opacity, rgb, background = inputs
    return rasterize(xz, depth, scale, opacity, rgb, background, height, width, simd=simd)


def gradients(
    inputs: Sequence[Tensor], up: Sequence[Tensor], height: int, width: int, simd: str = "auto"
) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    torch.autograd.backward(render(leaves, height, width, simd), up)
    return [t.grad for t in leaves if t.grad is not None]


def rounded_once(inputs: Sequence[Tensor]) -> list[Tensor]:
    """float64 copies of the float32 inputs."""
    return [t.double() for t in inputs]


SCENES: dict[str, dict[str, Any]] = {
    "sparse": dict(seed=0, count=60),
    "overlapping": dict(seed=1, count=400, sigma=3.0, opaque=0.6),
    "opaque_early_stop": dict(seed=2, count=900, sigma=3.0),
    "tiny": dict(seed=3, count=500, sigma=0.4),
    "large": dict(seed=4, count=80, sigma=25.0, opaque=0.9),
    "clamped": dict(seed=5, count=120, sigma=4.0, opaque=1.6),
}


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
    leaves = [t[0].requires_grad_() for t in rounded_once(inputs)]
    xz, depth, scale, opacity, rgb, background = leaves
    *outputs, fragile = dense_renderer.render(xz, depth, scale, opacity, rgb, background, height, width)
    assert fragile.float().mean() < 0.2
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
    """Computed once for all instruction sets: this is the slow part."""
    return dense(scene(**SCENES[name]), 50, 70)


def check_against(truth: Dense, simd: str = "auto") -> None:
    height, width = truth.solid.shape
    outputs = render(truth.inputs, height, width, simd)
    for got, want in zip(outputs, truth.outputs, strict=True):
        assert (got[0] - want)[truth.solid].abs().max() < 1e-5
    actual = gradients(truth.inputs, truth.upstream, height, width, simd)
    for field, got, want in zip(NAMES, actual, truth.gradients, strict=True):
        error = (got[0].double() - want).norm() / want.norm()
        worst = (got[0].double() - want).abs().max() / want.abs().max()
        assert error < 1e-4 and worst < 1e-4, f"{field}: relative L2 {error:.2e}, worst {worst:.2e}"


@pytest.mark.parametrize("simd", ["avx512", "avx2", "scalar"])
@pytest.mark.parametrize("name", SCENES)
def test_matches_dense_float64(name: str, simd: str) -> None:
    if not _core.simd_supported(simd):
        pytest.skip(f"this CPU has no {simd}")
    check_against(dense_scene(name), simd)


def test_ties_keep_their_order_in_long_lists() -> None:
    """Three depths among hundreds of overlapping Gaussians: ties go by index."""
    inputs = scene(20, 700, sigma=2.0, opaque=0.5)
    inputs[1] = torch.tensor([0.5, 1.0, 4.0])[torch.arange(700) * 7 % 3][None]
    check_against(dense(inputs, 50, 70))
    shuffled = [t.flip(1) for t in inputs[:5]] + inputs[5:]
    assert (render(inputs, 50, 70)[0] - render(shuffled, 50, 70)[0]).abs().max() > 1e-2


def test_branches_are_exercised() -> None:
    """The scenes above really contain early stops and clamped alphas."""
    stopped = render(scene(**SCENES["opaque_early_stop"]), 50, 70)[2]
    assert (1.0 - stopped < 3e-4).float().mean() > 0.05
    single = [t[:, :1] for t in scene(**SCENES["clamped"])[:5]]
    single[0], single[3] = torch.zeros(1, 1, 2), torch.full((1, 1), 1.6)
    single[2] = torch.full((1, 1, 2), 0.2)
    assert render([*single, torch.zeros(1, 3)], 50, 70)[2].max() == pytest.approx(0.99, abs=1e-6)


def test_no_gradient_through_the_alpha_clamp() -> None:
    """A Gaussian that is clamped wherever it is looked at moves nothing, but its colour still counts."""
    up = [torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)]
    up[0][0, 8, 8] = 1.0
    up[2][0, 8, 8] = 1.0
    inputs = [torch.zeros(1, 1, 2), torch.ones(1, 1), torch.ones(1, 1, 2), torch.full((1, 1), 1.5)]
    got = dict(
        zip(NAMES, gradients([*inputs, torch.ones(1, 1, 3), torch.zeros(1, 3)], up, 16, 16), strict=True)
    )
    assert all(torch.count_nonzero(got[k]) == 0 for k in ("xz", "scale", "opacity"))
    assert got["rgb"][0, 0, 0] == pytest.approx(0.99, abs=1e-6)


def test_directional_finite_difference() -> None:
    """float32, along a random direction in all inputs at once; a smooth scene (one tile, no skips)."""
    height = width = 16
    g = torch.Generator().manual_seed(7)
    inputs = [
        torch.rand(2, 20, 2, generator=g) * 0.6 - 0.3,
        torch.linspace(0.5, 4.0, 20).repeat(2, 1),
        1.2 + torch.rand(2, 20, 2, generator=g),
        0.1 + 0.2 * torch.rand(2, 20, generator=g),
        torch.rand(2, 20, 3, generator=g),
        torch.rand(2, 3, generator=g),
    ]
    up = upstream(3, 2, height, width)
    direction = [torch.randn(t.shape, generator=g) for t in inputs]
    direction[1] *= 0.05  # keeps the depth order

    def loss(step: float) -> float:
        moved = [t + step * d for t, d in zip(inputs, direction, strict=True)]
        pairs = zip(render(moved, height, width), up, strict=True)
        return float(sum((out.double() * u.double()).sum() for out, u in pairs))

    step = 4e-3
    measured = (loss(step) - loss(-step)) / (2 * step)
    grads = gradients(inputs, up, height, width)
    predicted = float(sum((a.double() * d.double()).sum() for a, d in zip(grads, direction, strict=True)))
    assert measured == pytest.approx(predicted, rel=2e-3)


POISON = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("field", range(5))
@pytest.mark.parametrize("value", POISON)
def test_poisoned_gaussians_are_dropped(field: int, value: float) -> None:
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
    got, want = gradients(bad, up, height, width), gradients(without, up, height, width)
    for a, b in zip(got[:5], want[:5], strict=True):
        assert torch.count_nonzero(a[:, victims]) == 0
        assert torch.equal(a[:, kept], b)


def test_culled_gaussians_get_zero_gradients() -> None:
    inputs = scene(9, 40)
    inputs[1][0, 0:5] = torch.tensor([0.0, -0.0, -1.0, -9.5, -1e30])  # behind
    inputs[3][0, 5:8] = torch.tensor([0.0, 0.003, -0.5])  # transparent
    inputs[0][0, 8:10] = torch.tensor([[40.0, 0.0], [0.0, -1e30]])  # outside
    for field, grad in zip(NAMES[:5], gradients(inputs, upstream(9, 1, 50, 70), 50, 70)[:5], strict=True):
        assert torch.count_nonzero(grad[0, :10]) == 0, field
        assert torch.count_nonzero(grad[0, 10:]) > 0, field


def test_extreme_but_valid_gaussian_stays_visible() -> None:
    """A Gaussian far larger than the image covers it evenly."""
    inputs = [torch.zeros(1, 1, 2), torch.ones(1, 1), torch.full((1, 1, 2), 1e12), torch.full((1, 1), 0.5)]
    inputs += [torch.ones(1, 1, 3), torch.zeros(1, 3)]
    _, depth, alpha = render(inputs, 33, 47)
    assert torch.equal(alpha, torch.full((1, 33, 47), 0.5)) and torch.equal(depth, alpha)
    grads = gradients(inputs, upstream(1, 1, 33, 47), 33, 47)
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(("batch", "count"), [(1, 0), (0, 5), (2, 0)])
def test_empty(batch: int, count: int) -> None:
    inputs = scene(0, count, batch)
    rgb, depth, alpha = render(inputs, 20, 30)
    assert rgb.shape == (batch, 20, 30, 3)
    assert torch.equal(rgb, inputs[5][:, None, None, :].expand_as(rgb))
    assert not depth.any() and not alpha.any()
    grads = gradients(inputs, upstream(0, batch, 20, 30), 20, 30)
    assert [g.shape for g in grads] == [t.shape for t in inputs]


def test_batch_equals_single_images() -> None:
    inputs = scene(11, 300, batch=3)
    up = upstream(11, 3, 50, 70)
    outputs, grads = render(inputs, 50, 70), gradients(inputs, up, 50, 70)
    for b in range(3):
        one = [t[b : b + 1] for t in inputs]
        for a, w in zip(outputs, render(one, 50, 70), strict=True):
            assert torch.equal(a[b], w[0])
        for a, w in zip(grads, gradients(one, [u[b : b + 1] for u in up], 50, 70), strict=True):
            assert torch.equal(a[b], w[0])


@pytest.mark.parametrize("simd", ["auto", "avx2", "scalar"])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_bit_identical_twice_and_for_any_number_of_threads(batch: int, simd: str) -> None:
    if not _core.simd_supported(simd):
        pytest.skip(f"this CPU has no {simd}")
    inputs = scene(12, 600, batch, size=(70, 90))
    up = upstream(12, batch, 70, 90)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2, 3, 8):
            torch.set_num_threads(threads)
            outputs = render(inputs, 70, 90, simd=simd)
            results.append([*outputs, *gradients(inputs, up, 70, 90, simd=simd)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_render(case: str) -> None:
    with np.load(GOLDEN, allow_pickle=False) as data:
        d = {k.split("/", 1)[1]: data[k] for k in data.files if k.startswith(case + "/")}
    assert np.array_equal(d["in_quats"], np.broadcast_to([1, 0, 0, 0], d["in_quats"].shape))
    means, scales = torch.from_numpy(d["in_means"]), torch.from_numpy(d["in_scales"])
    opacity, rgb, bg = (torch.from_numpy(d["in_" + k]) for k in ("opacity", "rgb", "bg"))
    height, width = (int(v) for v in d["in_size"])
    batch = [means[:, [0, 2]], means[:, 1], scales[:, [0, 2]], opacity, rgb, bg]
    outputs = render([t[None] for t in batch], height, width)
    solid = ~d["cull_fragile"]
    for got, name in zip(outputs, ("rgb", "depth", "alpha"), strict=True):
        error = np.abs(got[0].numpy() - d["cull_" + name])
        assert error[solid].max() < 1e-5, name
        if (~solid).any():
            assert error[~solid].max() < 0.1, name


def test_upstream_of_an_unused_output_and_partial_leaves() -> None:
    """A loss on the colour only, with one leaf that needs a gradient, equals the full computation."""
    inputs = scene(13, 100)
    full = [t.clone().requires_grad_() for t in inputs]
    render(full, 50, 70)[0].square().sum().backward()
    part = [t.clone() for t in inputs]
    part[2].requires_grad_()
    render(part, 50, 70)[0].square().sum().backward()
    assert torch.equal(part[2].grad, full[2].grad) and part[0].grad is None


def test_wrong_arguments_say_what_to_do() -> None:
    inputs = scene(0, 10)
    with pytest.raises(InputError, match=r"rgb has shape \(1, 10, 2\)"):
        render([*inputs[:4], inputs[4][..., :2], inputs[5]], 20, 30)
    with pytest.raises(InputError, match="batch dimension"):
        render([t[0] for t in inputs], 20, 30)
    with pytest.raises(InputError, match="not floating point"):
        render([inputs[0], inputs[1].long(), *inputs[2:]], 20, 30)
    with pytest.raises(InputError, match="0x30"):
        render(inputs, 0, 30)
    with pytest.raises(InputError, match="'sse9' is unknown"):
        render(inputs, 20, 30, simd="sse9")


def test_the_native_backward_pass_takes_only_its_own_state() -> None:
    arrays = [t.numpy() for t in scene(0, 10)]
    up = [t.numpy() for t in upstream(0, 1, 20, 30)]
    foreign = type(_core.raster_grad_forward(*arrays, *(u.copy() for u in up), 1))
    assert foreign.__name__ == "PyCapsule"
    from datetime import datetime_CAPI

    with pytest.raises(ValueError, match="raster_grad_forward"):
        _core.raster_grad_backward(datetime_CAPI, *arrays, *up, *(a.copy() for a in arrays), 1)


def test_a_graph_alive_at_exit_is_no_leak_report() -> None:
    code = (
        "import torch; from streamsplat_edge.training.rasterizer import rasterize\n"
        "z = torch.zeros(1, 1, 2, requires_grad=True); o = torch.ones(1, 1)\n"
        "out = rasterize(z, o, z + 0.1, o, torch.ones(1, 1, 3), torch.zeros(1, 3), 8, 8)\n"
        "out[0].sum().backward(retain_graph=True); print('done')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and result.stdout == "done\n", result.stderr
    assert "leak" not in result.stderr
