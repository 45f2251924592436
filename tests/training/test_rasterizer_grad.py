"""The differentiable rasterizer against a dense float64 one, finite differences, golden images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent))

import grad_scenes  # noqa: E402
from grad_scenes import GOLDEN_CASES, POISON, SCENES, dense_scene, scene, upstream  # noqa: E402
from torch import Tensor  # noqa: E402

from streamsplat_edge import _core  # noqa: E402
from streamsplat_edge.runtime.errors import InputError  # noqa: E402
from streamsplat_edge.training.rasterizer import rasterize  # noqa: E402


def render(
    inputs: Sequence[Tensor], height: int, width: int, simd: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    xz, depth, scale, opacity, rgb, background = inputs
    return rasterize(xz, depth, scale, opacity, rgb, background, height, width, simd=simd)


def gradients(
    inputs: Sequence[Tensor], up: Sequence[Tensor], height: int, width: int, simd: str = "auto"
) -> list[Tensor]:
    return grad_scenes.gradients(partial(render, simd=simd), inputs, up, height, width)


@pytest.mark.parametrize("simd", ["avx512", "avx2", "scalar"])
@pytest.mark.parametrize("name", SCENES)
def test_matches_dense_float64(name: str, simd: str) -> None:
    if not _core.simd_supported(simd):
        pytest.skip(f"this CPU has no {simd}")
    grad_scenes.check_dense(partial(render, simd=simd), dense_scene(name))


def test_ties_keep_their_order_in_long_lists() -> None:
    grad_scenes.check_dense(render, dense_scene("tied"))
    inputs = grad_scenes.tied_scene()
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
    grad_scenes.check_clamp(render)


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


@pytest.mark.parametrize("field", range(5))
@pytest.mark.parametrize("value", POISON)
def test_poisoned_gaussians_are_dropped(field: int, value: float) -> None:
    grad_scenes.check_poison(render, field, value)


def test_culled_gaussians_get_zero_gradients() -> None:
    grad_scenes.check_culled(render)


def test_extreme_but_valid_gaussian_stays_visible() -> None:
    grad_scenes.check_extreme(render)


@pytest.mark.parametrize(("batch", "count"), [(1, 0), (0, 5), (2, 0)])
def test_empty(batch: int, count: int) -> None:
    grad_scenes.check_empty(render, batch, count)


def test_batch_equals_single_images() -> None:
    grad_scenes.check_batch(render)


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
    grad_scenes.check_golden(render, case)


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
