"""The loss terms against float64 NumPy written from their equations, and their behaviour at the edges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.losses import masked_mse, mse, ssi_depth, ssi_mse

Array = NDArray[np.float64]
SHAPE = (2, 3, 6, 8)


def tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def depths(seed: int) -> tuple[Array, Array, Array]:
    """Rendered depth in the model's range, a target, and a mask that leaves out about a third."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 5, SHAPE), rng.uniform(0, 1, SHAPE), rng.uniform(size=SHAPE) > 0.35


def reference_ssi_depth(depth: Array, target: Array, mask: Array, ignore_large: float) -> float:
    total = 0.0
    for d, y, m in zip(depth, target, mask, strict=True):
        vectors = []
        for x in ((m / (d + 1e-8)).ravel(), (m * y).ravel()):
            shifted = x - np.sort(x)[(len(x) - 1) // 2]
            vectors.append(shifted / (np.abs(shifted).mean() + 1e-8))
        difference = np.abs(vectors[0] - vectors[1])
        weight = np.ones_like(difference)
        if ignore_large:
            weight = np.maximum(0.1, expit((ignore_large - difference**2) / 0.06))
        total += (weight * difference).mean()
    return total / len(depth)


def test_mse() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 3, 4, 3)), rng.uniform(size=(2, 3, 4, 3))
    assert mse(tensor(a), tensor(b)).item() == pytest.approx(np.mean((a - b) ** 2), rel=1e-6)


@pytest.mark.parametrize("kind", [np.bool_, np.float64])
def test_masked_mse_is_the_mean_over_the_masked_pixels_of_the_batch(kind: type) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(*SHAPE, 3)), rng.uniform(size=(*SHAPE, 3))
    mask = np.zeros(SHAPE, bool)
    mask[0, 1, :2] = mask[1, 2, 3, 4] = True  # samples of very different size
    got = masked_mse(tensor(a), tensor(b), torch.tensor(mask.astype(kind)))
    assert got.item() == pytest.approx(np.mean((a[mask] - b[mask]) ** 2), rel=1e-6)


def test_an_empty_mask_gives_zero_and_no_gradient() -> None:
    a = torch.rand(*SHAPE, 3, requires_grad=True)
    loss = masked_mse(a, torch.rand(*SHAPE, 3), torch.zeros(SHAPE, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and a.grad is not None and not a.grad.any()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("ignore_large", [0.0, 0.3])
def test_ssi_depth_equals_its_equation(masked: bool, ignore_large: float) -> None:
    depth, target, mask = depths(2)
    got = ssi_depth(tensor(depth), tensor(target), torch.tensor(mask) if masked else None, ignore_large)
    want = reference_ssi_depth(depth, target, mask if masked else np.ones(SHAPE), ignore_large)
    assert got.item() == pytest.approx(want, rel=2e-5)


def test_ssi_depth_ignores_scale_and_shift_of_the_target_only_per_sample() -> None:
    depth, target, _ = depths(3)
    scale, shift = np.array([3.0, 0.2]).reshape(2, 1, 1, 1), np.array([0.5, -2.0]).reshape(2, 1, 1, 1)
    plain = ssi_depth(tensor(depth), tensor(target)).item()
    assert ssi_depth(tensor(depth), tensor(scale * target + shift)).item() == pytest.approx(plain, rel=1e-5)
    assert ssi_depth(tensor(depth), tensor(2 / depth - 1)).item() < 1e-5
    per_view = np.array([2.0, 5.0, 0.2]).reshape(1, 3, 1, 1) / depth - 1
    assert ssi_depth(tensor(depth), tensor(per_view)).item() > 0.05


def test_weights_of_large_differences_are_constant_in_the_gradient() -> None:
    depth, target, _ = depths(4)
    x = tensor(depth).requires_grad_()
    ssi_depth(x, tensor(target), None, 0.3).backward()
    # Float64 of the equation with the weights held: the directional derivative by finite differences.
    rng = np.random.default_rng(5)
    direction = rng.normal(size=SHAPE)

    def vectors(d: Array) -> list[Array]:
        out = []
        for sample, y in zip(d, target, strict=True):
            normal = []
            for v in ((1 / (sample + 1e-8)).ravel(), y.ravel()):
                v = v - np.sort(v)[(len(v) - 1) // 2]
                normal.append(v / (np.abs(v).mean() + 1e-8))
            out.append(np.abs(normal[0] - normal[1]))
        return out

    weights = [np.maximum(0.1, expit((0.3 - v**2) / 0.06)) for v in vectors(depth)]

    def held(d: Array) -> float:
        return float(np.mean([(w * v).mean() for w, v in zip(weights, vectors(d), strict=True)]))

    step = 1e-6
    slope = (held(depth + step * direction) - held(depth - step * direction)) / (2 * step)
    assert x.grad is not None
    assert (x.grad.double().numpy() * direction).sum() == pytest.approx(slope, rel=1e-3)


def reference_ssi_mse(depth: Array, target: Array, mask: Array) -> float:
    losses = []
    for d, y, m in zip(depth, target, mask.astype(bool), strict=True):
        p, t = 1 / (d[m] + 1e-8), y[m]
        design = np.stack([p, np.ones_like(p)], 1)
        fit = np.linalg.lstsq(design, t, rcond=None)[0]
        losses.append(np.mean((design @ fit - t) ** 2))
    return float(np.mean(losses))


@pytest.mark.parametrize("masked", [True, False])
def test_ssi_mse_equals_least_squares(masked: bool) -> None:
    depth, target, mask = depths(6)
    got = ssi_mse(tensor(depth), tensor(target), torch.tensor(mask) if masked else None)
    want = reference_ssi_mse(depth, target, mask if masked else np.ones(SHAPE))
    assert got.item() == pytest.approx(want, rel=1e-4)
    assert ssi_mse(tensor(depth), tensor(0.7 / depth - 0.2)).item() < 1e-9


@pytest.mark.parametrize("loss", [ssi_depth, lambda *a: ssi_depth(*a, 0.3), ssi_mse])
@pytest.mark.parametrize("depth", [0.0, 0.4, 5.0])
@pytest.mark.parametrize("target", ["constant", "varied"])
@pytest.mark.parametrize("mask", ["all", "none", "one", "some"])
def test_degenerate_depth_is_finite(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], depth: float, target: str, mask: str
) -> None:
    """Depth 0 is a pixel that nothing covers; constant depth is what an untrained model renders."""
    torch.manual_seed(0)
    x = torch.full(SHAPE, depth, requires_grad=True)
    y = torch.rand(SHAPE) if target == "varied" else torch.zeros(SHAPE)
    m = torch.zeros(SHAPE, dtype=torch.bool)
    m[...] = mask == "all"
    if mask == "one":
        m[0, 0, 0, 0] = True
    if mask == "some":
        m[0] = torch.rand(SHAPE[1:]) > 0.5
    value = loss(x, y, m)
    value.backward()
    assert x.grad is not None and torch.isfinite(value) and torch.isfinite(x.grad).all()
    if mask == "none":
        assert value.item() == 0 and not x.grad.any()


def test_autocast_does_not_lower_the_precision() -> None:
    depth, target, mask = depths(7)
    arguments = tensor(depth), tensor(target), torch.tensor(mask)
    with torch.autocast("cpu", torch.bfloat16):
        got = ssi_depth(*arguments, 0.3), ssi_mse(*arguments)
    assert got == (ssi_depth(*arguments, 0.3), ssi_mse(*arguments))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    x = torch.rand(SHAPE)
    with pytest.raises(InputError, match=r"target has the shape \[2, 1, 6, 8\]"):
        mse(x, x[:, :1])
    with pytest.raises(InputError, match="mask has the shape"):
        masked_mse(torch.rand(*SHAPE, 3), torch.rand(*SHAPE, 3), torch.ones(2, 1, 6, 8))
    for loss in (ssi_depth, ssi_mse):
        with pytest.raises(InputError, match="target has the shape"):
            loss(x, x[:1])
        with pytest.raises(InputError, match="mask has the shape"):
            loss(x, x, x[:1])
    with pytest.raises(InputError, match="ignore_large is -1"):
        ssi_depth(x, x, None, -1)
