"""The network at a small size against an independent float64 implementation, and properties of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from keyed_weights import apply_keyed_weights
from numpy.typing import NDArray
from numpy_model import PUBLISHED, Altered, NumpyModel

from streamsplat_edge.training.config import PRESETS, ModelConfig, preset
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.modules import Block, PixelShuffle, RMSNorm, sinusoidal_table

TOLERANCE = 5e-6  # relative L2, float32 against float64

# The published structure: two stages of two blocks, heads of equal width, a condition from outside.
PUBLISHED_SMALL = ModelConfig(
    name="published-small",
    height=32,
    width=64,
    patch=8,
    dim=64,
    head_dim=16,
    encoder_depth=2,
    decoder_depth=2,
    upsample_windows=(64, 64),
    condition="dino",
    condition_dim=48,
    condition_len=20,
)
# What `tiny` uses besides: three stages of 2, 1 and 0 blocks, heads narrower than head_dim, encoder tokens
# as condition.
TINY_SMALL = replace(
    PUBLISHED_SMALL,
    name="tiny-small",
    head_dim=32,
    upsample_windows=(64, 32, 64),
    upsample_blocks=(2, 1, 0),
    condition="tokens",
    condition_dim=0,
    condition_len=0,
)
CONFIGS = {c.name: c for c in (PUBLISHED_SMALL, TINY_SMALL)}
OUTPUTS = ("tokens", "features", "gaussians", "decoded", "motion", "fade")

Array = NDArray[Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def keyed_model(config: ModelConfig, **kwargs: Any) -> StreamSplat:
    model = StreamSplat(config, **kwargs).eval()
    apply_keyed_weights(model)
    return model


def pair_inputs(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    rng = np.random.default_rng(3)
    rgbd = torch.from_numpy(rng.random((2, 4, config.height, config.width), dtype=np.float32))
    if config.condition == "tokens":
        return rgbd, None
    shape = (1, 2, config.condition_len, config.condition_dim)
    return rgbd, torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@cache
def torch_outputs(name: str) -> dict[str, Array]:
    config = CONFIGS[name]
    model = keyed_model(config)
    rgbd, condition = pair_inputs(config)
    with torch.no_grad():
        tokens, features, gaussians = model.encode(rgbd)
        decoded = model.decoder(tokens[None], tokens[None] if condition is None else condition)
        motion, fade = model.deform(tokens[None], features[None], condition)
    return {
        k: v.numpy()
        for k, v in zip(OUTPUTS, (tokens, features, gaussians, decoded[0], motion[0], fade[0]), strict=True)
    }


@cache
def numpy_outputs(name: str, altered: Altered = PUBLISHED) -> dict[str, Array]:
    config = CONFIGS[name]
    weights = {k: v.detach().numpy() for k, v in keyed_model(config).named_parameters()}
    model = NumpyModel(config, weights, altered)
    rgbd, condition = pair_inputs(config)
    frames = [model.encode(frame) for frame in rgbd.numpy().astype(np.float64)]
    tokens, features, gaussians = (tuple(f[i] for f in frames) for i in range(3))
    source = tokens if condition is None else tuple(condition[0].numpy().astype(np.float64))
    motion, fade = model.deform(tokens, features, source)
    decoded = np.stack(model.decoder(tokens, source))
    return {
        k: np.asarray(v)
        for k, v in zip(OUTPUTS, (tokens, features, gaussians, decoded, motion, fade), strict=True)
    }


def relative_l2(value: Array, reference: Array) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("name", CONFIGS)
def test_matches_independent_implementation(name: str) -> None:
    ours, reference = torch_outputs(name), numpy_outputs(name)
    for key in OUTPUTS:
        assert ours[key].shape == reference[key].shape
        assert relative_l2(ours[key], reference[key]) <= TOLERANCE, key


@pytest.mark.parametrize(
    ("altered", "key"),
    [
        (Altered(roll="none"), "features"),
        (Altered(roll="even"), "features"),
        (Altered(square_windows=True), "features"),
        (Altered(encoder_position="none"), "tokens"),
        (Altered(encoder_position="halves"), "tokens"),
        (Altered(first_norm=False), "tokens"),
        (Altered(swap_condition=False), "decoded"),
        (Altered(condition_position=False), "decoded"),
        (Altered(cls_exchanged=True), "decoded"),
        (Altered(normalise_keys=True), "decoded"),
        (Altered(position_embedding=False), "decoded"),
        (Altered(motion_factor=1.0), "motion"),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v.changes()),
)
def test_a_mistake_would_be_noticed(altered: Altered, key: str) -> None:
    """The comparison above is sharp: each mistake of REFERENCE.md section 10 exceeds its tolerance by far."""
    ours = torch_outputs("published-small")[key]
    assert relative_l2(ours, numpy_outputs("published-small", altered)[key]) > 50 * TOLERANCE


def test_rms_norm_epsilon() -> None:
    """Small inputs, where 1e-5 and 1e-6 differ (at full size a wrong value would slip under the bound)."""
    x = 1e-3 * torch.randn(7, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = RMSNorm(32)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * norm.weight
        assert torch.allclose(norm(x.float()), expected.float(), rtol=1e-5, atol=0)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_sinusoidal_table() -> None:
    table = sinusoidal_table(40, 16).double()
    position = torch.arange(40, dtype=torch.float64)
    for i in range(8):
        angle = position * 10000.0 ** (-2 * i / 16)
        assert torch.allclose(table[:, 2 * i], torch.sin(angle), atol=1e-5, rtol=0)
        assert torch.allclose(table[:, 2 * i + 1], torch.cos(angle), atol=1e-5, rtol=0)
    given = sinusoidal_table(40, 16, torch.full((8,), 0.5))
    assert torch.equal(given[:, 0], torch.sin(torch.arange(40) * 0.5)) and torch.equal(
        given[:, 0], given[:, 14]
    )


def test_pixel_shuffle_is_the_image_operation() -> None:
    shuffle = PixelShuffle(16, (3, 5))
    x = torch.randn(2, 15, 16, generator=torch.Generator().manual_seed(1))
    image = torch.nn.functional.linear(x, shuffle.residual_fc.weight, shuffle.residual_fc.bias)
    image = image.transpose(1, 2).reshape(2, 32, 3, 5)
    expected = torch.nn.functional.pixel_shuffle(image, 2).flatten(2).transpose(1, 2)
    assert torch.allclose(shuffle(x), expected, atol=1e-6)


@pytest.mark.parametrize("roll", [False, True])
def test_attention_stays_in_its_window(roll: bool) -> None:
    torch.manual_seed(0)
    block = Block(16, 8, window=8, roll=roll).eval()
    x = torch.randn(1, 32, 16)
    moved = x.clone()
    moved[0, 1] += 1.0
    with torch.no_grad():
        changed = (block(moved) - block(x)).abs().amax(-1)[0] > 1e-7
    # Rolled by half a window, the first half of the first window shares one with the second half of the last.
    expected = set(range(8)) if not roll else {0, 1, 2, 3, 28, 29, 30, 31}
    assert set(changed.nonzero().flatten().tolist()) == expected


def test_frames_of_a_batch_are_independent() -> None:
    config = PUBLISHED_SMALL
    model = keyed_model(config)
    generator = torch.Generator().manual_seed(5)
    rgbd = torch.rand(4, 4, config.height, config.width, generator=generator)
    condition = torch.randn(2, 2, config.condition_len, config.condition_dim, generator=generator)
    with torch.no_grad():
        tokens, features, _ = model.encode(rgbd)
        motion, fade = model.deform(tokens.unflatten(0, (2, 2)), features.unflatten(0, (2, 2)), condition)
        for pair in range(2):
            t, f, _ = model.encode(rgbd[2 * pair : 2 * pair + 2])
            one_motion, one_fade = model.deform(t[None], f[None], condition[pair : pair + 1])
            assert torch.allclose(motion[pair], one_motion[0], atol=2e-6)
            assert torch.allclose(fade[pair], one_fade[0], atol=2e-5)


def test_gaussians_stay_in_their_cell() -> None:
    config = PUBLISHED_SMALL
    model = keyed_model(config)
    with torch.no_grad():
        gaussians = model.gs_predictor.predictor(
            50 * torch.randn(1, config.gaussians, config.feature_dim),
            torch.zeros(1, 3, config.height, config.width),
        )[0]
    rows, cols = config.grid
    row, col = torch.arange(config.gaussians) // cols, torch.arange(config.gaussians) % cols
    column_position = (gaussians[:, 0] + 1) / 2 * cols
    row_position = (1 - gaussians[:, 2]) / 2 * rows
    tolerance = 1e-4  # of a cell
    assert bool(((column_position - col - 0.5).abs() <= 0.5 + tolerance).all())
    assert bool(((row_position - row - 0.5).abs() <= 0.5 + tolerance).all())
    for column, (low, high) in {1: (0, 1), 3: (0, 1), 8: (0.05, 1)}.items():
        assert low <= float(gaussians[:, column].min()) and float(gaussians[:, column].max()) <= high
    assert float(gaussians[:, 6:8].min()) >= 0


def test_sampling_only_in_training() -> None:
    config = TINY_SMALL
    model = keyed_model(config, probabilistic=True)
    rgbd, _ = pair_inputs(config)
    with torch.no_grad():
        mean = model.encode(rgbd)[2]
        assert torch.equal(model.encode(rgbd)[2], mean)
        model.train()
        torch.manual_seed(0)
        first, second = model.encode(rgbd)[2], model.encode(rgbd)[2]
    assert not torch.equal(first[..., :3], second[..., :3])
    assert torch.equal(first[..., 3:], second[..., 3:])
    reach = 2 * torch.tensor([1 / config.grid[1], 0.5, 1 / config.grid[0]])
    assert bool(((first - mean)[..., :3].abs() <= reach).all())
    assert torch.allclose(mean, torch.from_numpy(torch_outputs("tiny-small")["gaussians"]), atol=1e-6)


def test_autocast_keeps_outputs_in_float32() -> None:
    model = keyed_model(PUBLISHED_SMALL)
    rgbd, condition = pair_inputs(PUBLISHED_SMALL)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens, features, gaussians = model.encode(rgbd)
        motion, fade = model.deform(tokens[None], features[None], condition)
    expected = torch_outputs("published-small")
    for key, value in (
        ("tokens", tokens),
        ("gaussians", gaussians),
        ("motion", motion[0]),
        ("fade", fade[0]),
    ):
        assert value.dtype == torch.float32
        assert relative_l2(value.numpy(), expected[key]) < 0.1


def test_shapes_of_the_presets() -> None:
    base = preset("base")
    assert (base.tokens, base.grid, base.gaussians, base.feature_dim) == (2304, (144, 256), 36864, 192)
    for config in PRESETS.values():
        assert config.gaussians == config.tokens * 4 ** len(config.upsample_windows)
        assert config.feature_dim * 2 ** len(config.upsample_windows) == config.dim
    config = preset("tiny", height=64, width=64)
    model = StreamSplat(config).eval()
    rgbd = torch.rand(2, 4, config.height, config.width)
    with torch.no_grad():
        tokens, features, gaussians = model.encode(rgbd)
        motion, fade = model.deform(tokens[None], features[None], model.condition(rgbd[:, :3])[None])
    assert tokens.shape == (2, config.tokens, config.dim)
    assert features.shape == (2, config.gaussians, config.feature_dim)
    assert gaussians.shape == (2, config.gaussians, 9)
    assert motion.shape == (1, 2, config.gaussians, 3) and fade.shape == (1, 2, config.gaussians, 2)


def test_config_errors_name_the_field() -> None:
    good = PUBLISHED_SMALL.to_dict()
    assert ModelConfig.from_dict(good) == PUBLISHED_SMALL
    with pytest.raises(ValueError, match=r"encoder_dept.*did you mean 'encoder_depth'"):
        ModelConfig.from_dict({**good, "encoder_dept": 3})
    with pytest.raises(ValueError, match="33x64"):
        replace(PUBLISHED_SMALL, height=33)
    with pytest.raises(ValueError, match="windows of 48"):
        replace(PUBLISHED_SMALL, upsample_windows=(48, 64))
    with pytest.raises(ValueError, match=r"unknown preset 'bass' \(did you mean 'base'\?\)"):
        preset("bass")
    with pytest.raises(ValueError, match=r"unknown preset 'x' \(known: base, tiny, small\)"):
        preset("x")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 64.0, "'dim' must be a whole number"),
        ("dim", 0, "'dim' must be 1 or more"),
        ("dim", 36, "'dim' is 36; 2 upsamplings need a multiple of 8"),
        ("head_dim", 48, "width 64 does not split into heads of 48"),
        ("head_dim", 128, "width 64 does not split into heads of 128"),
        ("encoder_depth", -1, "'encoder_depth' must be 0 or more"),
        ("upsample_windows", (64,), "one entry per upsampling stage"),
        ("upsample_windows", (0, 64), "windows of 0"),
        ("upsample_blocks", (2, -1), "negative"),
        ("condition", "clip", "'dino' or 'tokens' or 'conv', not 'clip'"),
        ("condition_len", 0, "condition_dim and condition_len"),
        ("depth_levels", -1, "'depth_levels' must be 0 or more"),
        ("depth_mapping", "log", "'published' or 'paper', not 'log'"),
        ("height", 8 * 10**6, "8e\\+06 pixels along a side is too large"),
        ("encoder_depth", 10**9, "transformer blocks is too large"),
        ("upsample_blocks", (2, 10**9), "transformer blocks is too large"),
        ("upsample_windows", (64,) * 2000, "is too large"),
        ("dim", 2**20, "weights is too large"),
        ("condition_dim", 10**12, "weights is too large"),
        ("condition_len", 10**12, "condition tokens is too large"),
        ("dynamic_scalar", (0.5, 0.5), "a list of 3"),
        ("dynamic_scalar", (0.5, 0.5, float("nan")), "a finite number"),
    ],
)  # fmt: skip
def test_configs_of_no_use_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PUBLISHED_SMALL, **{field: value})
