"""Deformation by matching: its operators against plain loops, its signs, and what a stage keeps of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from media_samples import HEIGHT, MODEL, WIDTH
from safetensors.torch import save_file

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.checkpoint import load_part, save_weights
from streamsplat_edge.training.config import preset
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import Batch, Mixer
from streamsplat_edge.training.gaussians import render_pair
from streamsplat_edge.training.initialise import initialise
from streamsplat_edge.training.matching import STRIDE, cost_volume, flow_to_motion, warp
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.part_objectives import flow_objective
from streamsplat_edge.training.recipe import Recipe

CONFIG = preset("tiny", **MODEL)
RECIPE = Recipe(stage="motion", preset="tiny", data="-", steps=1, batch=2, model=MODEL)


def initialised(seed: int = 0) -> StreamSplat:
    torch.manual_seed(seed)
    model = StreamSplat(CONFIG)
    initialise(model)
    return model


def test_cost_volume_is_the_correlation_with_the_neighbourhood() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 5, 4, 7, generator=generator) for _ in range(2))
    radius, expected = 2, torch.zeros(2, 25, 4, 7)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            for y in range(4):
                for x in range(7):
                    if 0 <= y + dy < 4 and 0 <= x + dx < 7:
                        product = (a[:, :, y, x] * b[:, :, y + dy, x + dx]).sum(1) / 5**0.5
                        expected[:, (dy + radius) * 5 + dx + radius, y, x] = product
    assert torch.allclose(cost_volume(a, b, radius), expected, atol=1e-5)


def test_motion_has_one_length_in_pixels_at_every_resolution() -> None:
    """What the coarsest level has found is doubled from level to level, with the places."""
    model = initialised()
    with torch.no_grad():
        model.decoder.level_16.flow.bias.copy_(torch.tensor([1.0, -0.5]))
        flows, _ = model.decoder.flows(torch.randn(1, 2, HEIGHT * WIDTH // 16, CONFIG.condition_dim))
    for flow, stride in zip(flows, (16, 8, 4), strict=True):
        assert flow.shape[3:] == (HEIGHT // stride, WIDTH // stride)
        pixels = (flow * stride).movedim(2, -1)
        assert torch.allclose(pixels, torch.tensor([16.0, -8.0]).expand_as(pixels), atol=1e-4)


def test_flow_objective_equals_its_equation(cache: Cache) -> None:
    """Of every place the mean over its known pixels; places of which less than half is known do not count,
    and each coarser level counts half."""
    model = initialised()
    batch = Mixer(cache, 0.5, seed=2).batch(0, 2, 2)
    rng = np.random.default_rng(0)
    known = rng.random((2, 2, HEIGHT // 8, WIDTH // 8)) < 0.6
    known = known.repeat(8, 2).repeat(8, 3)
    known[:, :, :, ::3] = False
    flow = rng.normal(0, 4, (2, 2, 2, HEIGHT, WIDTH)).astype(np.float16)
    batch = replace(
        batch, flow_valid=torch.from_numpy(known),
        flow_fwd=torch.from_numpy(flow[:, 0]), flow_bwd=torch.from_numpy(flow[:, 1]),
    )  # fmt: skip
    with torch.no_grad():
        torch.nn.init.normal_(model.decoder.level_16.flow.bias, std=0.5)
        loss, parts = flow_objective(model, batch, RECIPE, torch.Generator())
        ends = batch.frames[:, [0, -1]].flatten(0, 1).float() / 255
        flows, _ = model.decoder.flows(model.condition(ends).unflatten(0, (2, 2)))

    def places(x: np.ndarray, stride: int) -> np.ndarray:
        split = x.reshape(*x.shape[:-2], HEIGHT // stride, stride, WIDTH // stride, stride)
        return np.asarray(split.sum((-3, -1)))

    expected = 0.0
    for found, stride, share in zip(flows, (16, 8, 4), (0.25, 0.5, 1.0), strict=True):
        count = places(known[:, :, None].astype(np.float64), stride)
        truth = places(flow.astype(np.float64) * known[:, :, None], stride) / np.maximum(count, 1)
        counts = (count > stride**2 / 2)[:, :, 0]
        assert 0.1 < counts.mean() < 0.9
        square = ((found.double().numpy() * stride - truth) ** 2).sum(2)
        expected += share * np.sqrt(square + 0.01)[counts].mean()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert parts["flow_px"].item() == pytest.approx(np.sqrt(square)[counts].mean(), rel=1e-3)
    assert parts["still_px"].item() == pytest.approx(np.sqrt((truth**2).sum(2))[counts].mean(), rel=1e-3)


def test_warp_looks_where_the_flow_points() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((9, 12), dtype=np.float32)
    flow = rng.normal(0, 2, (9, 12, 2)).astype(np.float32)
    y, x = np.mgrid[:9, :12].astype(np.float32)
    expected = cv2.remap(
        image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    ours = warp(torch.from_numpy(image)[None, None], torch.from_numpy(flow).permute(2, 0, 1)[None])
    # OpenCV rounds positions to 1/32 pixel.
    assert np.abs(ours[0, 0].numpy() - expected).max() < 0.07


@pytest.mark.parametrize("frame", [0, 1])
def test_motion_moves_a_gaussian_along_the_flow(frame: int) -> None:
    """One splat of either frame: at the other end of the pair it is where its flow points."""
    place, flow_px = (24.0, 20.0), (12.0, -8.0)  # column, row; right and up
    gaussian = torch.tensor([0.0, 0.5, 0.0, 1.0, 1.0, 1.0, 0.03, 0.05, 0.9])
    gaussian[0], gaussian[2] = (place[0] + 0.5) * 2 / WIDTH - 1, 1 - (place[1] + 0.5) * 2 / HEIGHT
    gaussians = gaussian.expand(1, 2, 1, 9).clone()
    gaussians[:, 1 - frame, :, 8] = 0.0
    flow = (torch.tensor(flow_px) / STRIDE).expand(1, 2, 1, 2)
    rgb, _, _ = render_pair(
        gaussians, flow_to_motion(flow, CONFIG), torch.zeros(1, 2, 1, 2), torch.tensor([[float(1 - frame)]]),
        torch.zeros(1, 3), (HEIGHT, WIDTH), "published",
    )  # fmt: skip
    row, col = divmod(int(rgb[0, 0, ..., 0].argmax()), WIDTH)
    assert (col, row) == (place[0] + flow_px[0], place[1] + flow_px[1])


def test_condition_moves_with_the_picture() -> None:
    model, image = initialised(), torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        still, moved = (
            model.condition(x).unflatten(1, (HEIGHT // STRIDE, WIDTH // STRIDE))
            for x in (image, image.roll((STRIDE, 2 * STRIDE), (2, 3)))
        )
    inner = (slice(None), slice(4, -4), slice(6, -6))  # borders are padded with zeros, and wrap around here
    assert torch.allclose(moved[inner], still.roll((1, 2), (1, 2))[inner], atol=1e-5)


def test_flow_is_learned_from_pairs(cache: Cache) -> None:
    """A few steps on one batch: the flow of both directions gets clearly better than none."""
    model = initialised()
    batch = Mixer(cache, 1.0, seed=2).batch(0, 2, 2)
    recipe = Recipe(stage="motion", preset="tiny", data="-", steps=1, batch=2, model=MODEL)
    optimizer = torch.optim.Adam(model.parameters_of("motion"), 3e-3)
    for _ in range(60):
        loss, parts = flow_objective(model, batch, recipe, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert parts["flow_px"] < 0.6 * parts["still_px"]
    static = [p for name, p in model.named_parameters() if name.startswith("gs_predictor.")]
    assert all(p.grad is None for p in static)


def test_flow_that_is_not_known_does_not_count(cache: Cache) -> None:
    model, batch = initialised(), Mixer(cache, 1.0, seed=2).batch(0, 2, 2)
    recipe = Recipe(stage="motion", preset="tiny", data="-", steps=1, batch=2, model=MODEL)

    def loss(of: Batch) -> float:
        return flow_objective(model, of, recipe, torch.Generator())[0].item()

    unknown = replace(batch, flow_valid=torch.zeros_like(batch.flow_valid))
    assert loss(unknown) == 0.0
    half = batch.flow_valid.clone()
    half[..., : WIDTH // 2] = False
    spoiled = batch.flow_fwd.clone()
    spoiled[..., : WIDTH // 2] = 1000.0
    known = replace(batch, flow_valid=half)
    assert loss(replace(known, flow_fwd=spoiled)) == pytest.approx(loss(known), rel=1e-5)


def test_parts_are_taken_out_of_a_whole_model(tmp_path: Path) -> None:
    source, target = initialised(1), initialised(2)
    save_weights(source, tmp_path / "model.safetensors", {})
    before = {k: v.clone() for k, v in target.state_dict().items()}
    load_part(target, tmp_path / "model.safetensors", "motion")
    trained = {id(p) for p in target.parameters_of("motion")}
    assert trained and all(
        torch.equal(p, source.get_parameter(name) if id(p) in trained else before[name])
        for name, p in target.named_parameters()
    )
    save_file({"model.decoder.level_9": torch.zeros(1), "model.other": torch.zeros(1)}, tmp_path / "odd")
    with pytest.raises(InputError, match=r"(?s)unexpected model.decoder.level_9.*unexpected model.other"):
        load_part(target, tmp_path / "odd", "motion")


def test_motion_weights_are_kept_and_taken_alone(tmp_path: Path) -> None:
    source, target = initialised(1), initialised(2)
    path = tmp_path / "motion.safetensors"
    save_weights(source, path, {}, "motion")
    before = {k: v.clone() for k, v in target.state_dict().items()}
    load_part(target, path, "motion")
    trained = {id(p) for p in target.parameters_of("motion")}
    for name, parameter in target.named_parameters():
        expected = source.get_parameter(name) if id(parameter) in trained else before[name]
        assert torch.equal(parameter, expected), name
    published = StreamSplat(replace(CONFIG, condition="tokens", condition_dim=0, decoder="attention"))
    with pytest.raises(InputError, match="does not fit the model"):
        load_part(published, path, "motion")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "attention"}, "need each other"),
        ({"condition": "tokens", "condition_dim": 0}, "need each other"),
        ({"condition_dim": 7}, "even condition_dim"),
        ({"height": 40, "upsample_windows": (4, 4)}, "multiples of 16"),
        ({"patch": 16}, "patch 8"),
        ({"upsample_windows": (), "upsample_blocks": ()}, "one Gaussian per"),
    ],
)
def test_configs_that_cannot_match_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_only_matching_models_have_a_motion_stage() -> None:
    model = {**MODEL, "condition": "tokens", "condition_dim": 0, "decoder": "attention"}
    with pytest.raises(InputError, match="trains decoder 'matching', which 'tiny' does not have"):
        Recipe(stage="motion", preset="tiny", data="-", steps=1, batch=1, model=model)
    with pytest.raises(InputError, match="'init_motion' belongs to stage 'dynamic'"):
        Recipe(stage="static", preset="tiny", data="-", steps=1, batch=1, model=MODEL, init_motion="x")
