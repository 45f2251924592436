"""The CUDA kernels against the dense float64 renderer, the C++ version and the golden images.

Tests named `[on_cpu]` run the kernels' own source on the CPU. Those marked `gpu` are the same on a device;
`make gpu-check` runs them.
"""

from __future__ import annotations

import grad_scenes
import pytest
import torch
from grad_scenes import GOLDEN_CASES, NAMES, POISON, SCENES, dense_scene, scene, upstream
from kernels_on_cpu import Runner
from torch import Tensor

from streamsplat_edge.training.rasterizer import rasterize


def on_cpu(inputs: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The C++ version."""
    return rasterize(*inputs, height, width)


def everything(render: grad_scenes.Render, inputs: list[Tensor], height: int, width: int) -> list[Tensor]:
    """Outputs and gradients."""
    up = upstream(3, len(inputs[0]), height, width)
    outputs = render(inputs, height, width)
    return [*outputs, *grad_scenes.gradients(render, inputs, up, height, width)]


@pytest.mark.parametrize("name", [*SCENES, "tied"])
def test_matches_dense_float64(render: Runner, name: str) -> None:
    grad_scenes.check_dense(render, dense_scene(name))


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_render(render: Runner, case: str) -> None:
    grad_scenes.check_golden(render, case)


COMPARED = {
    "batch": scene(30, 300, batch=3),
    "one_tile_of_many": scene(
        31, 1500, sigma=3.0, opaque=0.02, size=(13, 11)
    ),  # lists beyond a block of threads
    "wide": scene(32, 200, sigma=2.0, size=(5, 200)),
    "tall": scene(33, 200, sigma=2.0, size=(200, 5)),
    "one_pixel": scene(34, 20, sigma=1.0, size=(1, 1)),
    "negative_scale": scene(35, 50, sigma=-3.0),
}
SIZES = {"one_tile_of_many": (13, 11), "wide": (5, 200), "tall": (200, 5), "one_pixel": (1, 1)}


@pytest.mark.parametrize("name", COMPARED)
def test_equals_the_cpp_version(render: Runner, name: str) -> None:
    size = SIZES.get(name, (50, 70))
    got, want = (everything(r, COMPARED[name], *size) for r in (render, on_cpu))
    for field, a, b in zip(("image", "depth image", "alpha", *NAMES), got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm(), field
    assert all(w.abs().max() > 0 for w in want)


@pytest.mark.parametrize("case", ["random300", "dense_opaque", "odd_size"])
def test_golden_scenes_backwards(render: Runner, case: str) -> None:
    """There are no golden gradients: the C++ version stands in."""
    inputs, d = grad_scenes.golden_inputs(case)
    height, width = (int(v) for v in d["in_size"])
    solid = torch.from_numpy(~d["cull_fragile"]).float()
    up = upstream(4, 1, height, width)
    up = [u * (solid[None, ..., None] if u.dim() == 4 else solid[None]) for u in up]
    got, want = (grad_scenes.gradients(r, inputs, up, height, width) for r in (render, on_cpu))
    for field, a, b in zip(NAMES, got, want, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm(), field


@pytest.mark.parametrize("field", range(5))
def test_poisoned_gaussians_are_dropped(render: Runner, field: int) -> None:
    grad_scenes.check_poison(render, field, POISON[field % len(POISON)])


def test_culled_gaussians_get_zero_gradients(render: Runner) -> None:
    grad_scenes.check_culled(render)


def test_extreme_but_valid_gaussian_stays_visible(render: Runner) -> None:
    grad_scenes.check_extreme(render)


@pytest.mark.parametrize(("batch", "count"), [(1, 0), (0, 5), (2, 0)])
def test_empty(render: Runner, batch: int, count: int) -> None:
    grad_scenes.check_empty(render, batch, count)


def test_batch_equals_single_images(render: Runner) -> None:
    grad_scenes.check_batch(render, on_gpu=render.library is None)


def test_no_gradient_through_the_alpha_clamp(render: Runner) -> None:
    grad_scenes.check_clamp(render)


def test_loss_on_one_output_and_strided_inputs(render: Runner) -> None:
    """Inputs and upstream gradients need not be contiguous, and outputs need not all be used."""
    inputs = scene(36, 40)
    want = grad_scenes.gradients(lambda *a: render(*a)[:1], inputs, upstream(6, 1, 50, 70)[:1], 50, 70)
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in inputs]
    up = upstream(6, 1, 50, 70)[0].transpose(1, 2).contiguous().transpose(1, 2)
    got = grad_scenes.gradients(lambda *a: render(*a)[:1], strided, [up], 50, 70)
    assert not any(t.is_contiguous() for t in (*strided, up))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_same_bits_every_time(render: Runner) -> None:
    """On the CPU whatever the order of warps and lanes, so no barrier is missing; on a GPU in every run."""
    inputs = scene(37, 300, sigma=3.0, opaque=0.7, size=(40, 50))
    runs = []
    for number in range(4):
        if render.library is not None:
            render.library.schedule(number)
        runs.append(everything(render, inputs, 40, 50))
    for other in runs[1:]:
        for field, a, b in zip(("image", "depth image", "alpha", *NAMES), runs[0], other, strict=True):
            assert torch.equal(a, b), field


@pytest.mark.gpu
def test_runs_on_the_current_stream() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a torch without CUDA")
    inputs = [t.cuda() for t in scene(38, 5000, sigma=3.0, size=(288, 512))]
    want = rasterize(*inputs, 288, 512)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [t.clone() for t in inputs]
        torch.cuda._sleep(100_000_000)  # cycles; who does not wait for this stream sees what was there before
        late[3].zero_()
        late[3].add_(inputs[3])
        got = rasterize(*late, 288, 512)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
