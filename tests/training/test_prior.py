"""Truncated-normal sampling against SciPy, its edge cases and its gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from streamsplat_edge.training.prior import sample_truncated_normal

BOUND = 0.999
CASES = [(0.0, -2.0), (0.0, 0.5), (0.7, -1.0), (-0.95, -3.0), (0.999, -4.9), (-0.4, 3.0), (0.2, 6.0)]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _distribution(mean: float, log_scale: float) -> stats.rv_continuous:
    scale = math.exp(log_scale)
    return stats.truncnorm((-BOUND - mean) / scale, (BOUND - mean) / scale, loc=mean, scale=scale)


@pytest.mark.parametrize(("mean", "log_scale"), CASES)
def test_quantiles_are_those_of_scipy(mean: float, log_scale: float) -> None:
    """The same uniform numbers through SciPy's inverse CDF give the same samples."""
    shape = (500,)
    u = torch.rand(shape, generator=_generator(), dtype=torch.float64).clamp(1e-3, 1 - 1e-3).numpy()
    expected = _distribution(mean, log_scale).ppf(u)
    means, log_scales = (torch.full(shape, v, dtype=torch.float64) for v in (mean, log_scale))
    sample = sample_truncated_normal(means, log_scales, BOUND, _generator())
    assert np.abs(sample.numpy() - expected).max() < 1e-9


@pytest.mark.parametrize(("mean", "log_scale"), CASES)
def test_distribution_in_float32(mean: float, log_scale: float) -> None:
    count = 20000
    sample = sample_truncated_normal(
        torch.full((count,), mean), torch.full((count,), log_scale), BOUND, _generator(1)
    ).numpy()
    reference = _distribution(mean, log_scale)
    assert sample.dtype == np.float32 and np.abs(sample).max() <= np.float32(BOUND)
    # 1e-3 of the mass sits on each clamped end; 1.63 / sqrt(n) is the 1 % quantile of the statistic.
    assert stats.kstest(sample.astype(np.float64), reference.cdf).statistic < 1e-3 + 1.63 / math.sqrt(count)
    error = reference.std() / math.sqrt(count)
    assert abs(sample.mean(dtype=np.float64) - reference.mean()) < 4 * error + 1e-3 * reference.std()
    assert sample.std(dtype=np.float64) == pytest.approx(reference.std(), rel=0.03)


def test_uniform_numbers_are_clamped() -> None:
    mean, log_scale = torch.full((50000,), 0.1), torch.full((50000,), 5.0)
    sample = sample_truncated_normal(mean, log_scale, BOUND, _generator())
    # Nearly uniform over the support, so the clamped ends are at 1e-3 of its width.
    assert float(sample.min()) == pytest.approx(-BOUND + 1e-3 * 2 * BOUND, abs=2e-4)
    assert float(sample.max()) == pytest.approx(BOUND - 1e-3 * 2 * BOUND, abs=2e-4)


def test_edge_cases() -> None:
    mean = torch.tensor([0.5, -0.9, 0.3, 0.3, 0.3])
    log_scale = torch.tensor([-5.0, -100.0, 7.0, 30.0, 1000.0])
    sample = sample_truncated_normal(mean, log_scale, BOUND, _generator())
    # Too narrow: the mean. Less than 1e-3 of the normal inside the support: the lower bound, as published.
    assert sample[:2].tolist() == mean[:2].tolist()
    assert sample[2:].tolist() == [torch.tensor(-BOUND).item()] * 3
    outside = sample_truncated_normal(torch.tensor([2.0]), torch.tensor([-6.0]), BOUND, _generator())
    assert outside.item() == torch.tensor(BOUND).item()
    just_wide = sample_truncated_normal(torch.zeros(100), torch.full((100,), 6.6), BOUND, _generator())
    assert bool((just_wide > -BOUND).all())


def test_deterministic_with_a_generator() -> None:
    mean, log_scale = torch.zeros(64), torch.zeros(64)
    draws = [sample_truncated_normal(mean, log_scale, BOUND, _generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_gradients() -> None:
    mean = torch.tensor([0.0, 0.6, -0.9, 0.2], dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor([-2.0, -1.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)

    def draw(m: Tensor, s: Tensor) -> Tensor:
        return sample_truncated_normal(m, s, BOUND, _generator(7))

    assert torch.autograd.gradcheck(draw, (mean, log_scale))


def test_gradients_stay_finite_at_the_edges() -> None:
    mean = torch.linspace(-BOUND, BOUND, 9).repeat(8).requires_grad_()
    scales = [-1000.0, -5.0, -4.999, 0.0, 6.7, 20.0, 100.0, 1000.0]
    log_scale = torch.tensor(scales).repeat_interleave(9).requires_grad_()
    sample = sample_truncated_normal(mean, log_scale, BOUND, _generator())
    assert bool(sample.isfinite().all())
    sample.sum().backward()
    assert mean.grad is not None and log_scale.grad is not None
    assert bool(mean.grad.isfinite().all()) and bool(log_scale.grad.isfinite().all())
    assert bool((mean.grad[9:18] == 1).sum() >= 7)  # the mean itself, where the scale is too small
    assert bool((log_scale.grad[27:36] != 0).any())
