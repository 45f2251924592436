"""Where training starts: what the first weights render, and the linear warm start."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from media_samples import MODEL

from streamsplat_edge.training.config import ModelConfig, preset
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import Mixer
from streamsplat_edge.training.gaussians import fade_factor, render_pair, render_static
from streamsplat_edge.training.initialise import initialise, warm_start
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.objectives import psnr, to_rgbd

MATCHING = preset("tiny", **MODEL)
# The published decoder and heads.
CONFIG = preset(
    "tiny",
    **MODEL,
    condition="tokens",
    condition_dim=0,
    decoder="attention",
    colour="absolute",
    depth_levels=0,
)


def initialised(seed: int = 0, config: ModelConfig = CONFIG, **kwargs: bool) -> StreamSplat:
    torch.manual_seed(seed)
    model = StreamSplat(config, **kwargs)
    initialise(model)
    return model.eval()


def test_first_gaussians_are_opaque_and_fill_their_cells() -> None:
    images = torch.randint(0, 256, (2, 3, CONFIG.height, CONFIG.width), dtype=torch.uint8)
    with torch.no_grad():
        _, _, gaussians = initialised(probabilistic=True).encode(to_rgbd(images))
        background = torch.zeros(2, 3)
        _, _, alpha = render_static(
            gaussians, background, (CONFIG.height, CONFIG.width), CONFIG.depth_mapping
        )
    rows, cols = CONFIG.grid
    half_cell = torch.tensor([1.0 / cols, 1.0 / rows])
    sigma = gaussians[..., 6:8] / half_cell
    assert sigma.min() > 0.3 and sigma.max() < 1.2, "about as large as the cell"
    assert gaussians[..., 8].min() > 0.8, "opaque"
    assert alpha.min() > 0.5, "no pixel is left out"


def test_first_motion_is_small_and_the_fade_a_soft_cross_fade() -> None:
    model = initialised()
    images = torch.randint(0, 256, (2, 3, CONFIG.height, CONFIG.width), dtype=torch.uint8)
    with torch.no_grad():
        tokens, features, _ = model.encode(to_rgbd(images))
        motion, fade = model.deform(tokens[None], features[None])
    assert (motion.abs() < 0.1 * torch.tensor(CONFIG.dynamic_scalar)).all()
    half_way, end = fade_factor(fade, torch.tensor(0.5)), fade_factor(fade, torch.tensor(1.0))
    assert half_way.min() > 0.6 and half_way.max() < 0.95 and (end < half_way).all()


def smooth_pair(config: ModelConfig) -> torch.Tensor:
    """Two unrelated pictures [2, 3, H, W] in [0, 1] with detail down to a few pixels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, config.height // 3, config.width // 3, generator=generator)
    return F.interpolate(coarse, (config.height, config.width), mode="bicubic").clamp(0, 1)


def test_one_gaussian_per_pixel_starts_sharp() -> None:
    config = preset("tiny", **{**MODEL, "upsample_windows": [60, 60, 60], "upsample_blocks": [0, 0, 0]})
    rgb = smooth_pair(config)
    with torch.no_grad():
        _, _, gaussians = initialised(config=config).encode(torch.cat([rgb, torch.zeros_like(rgb[:, :1])], 1))
        shown, _, _ = render_static(
            gaussians, torch.full((2, 3), 0.5), (config.height, config.width), config.depth_mapping
        )
    inner = (slice(None), slice(8, -8), slice(8, -8))  # at the border neighbours are missing
    assert psnr((shown - rgb.permute(0, 2, 3, 1))[inner].square().mean()) > 45


def test_matching_starts_as_a_cross_fade_at_rest() -> None:
    config = preset("tiny", **{**MODEL, "upsample_windows": [60, 60, 60], "upsample_blocks": [0, 0, 0]})
    model, rgb = initialised(config=config), smooth_pair(config)
    times = torch.tensor([[0.0, 0.5, 1.0]])
    with torch.no_grad():
        tokens, features, gaussians = model.encode(torch.cat([rgb, torch.zeros_like(rgb[:, :1])], 1))
        motion, fade = model.deform(tokens[None], features[None], model.condition(rgb)[None])
        shown, _, _ = render_pair(
            gaussians[None], motion, fade, times, torch.full((1, 3), 0.5),
            (config.height, config.width), config.depth_mapping,
        )  # fmt: skip
    pixels = torch.tensor([config.width / 2, config.height / 2])
    assert (motion[..., 0::2] * pixels).abs().max() < 1, "hardly any motion in the image"
    first, last = rgb.permute(0, 2, 3, 1)
    for image, share in zip(shown[0], (0.0, 0.5, 1.0), strict=True):
        weight = ((image - first) * (last - first)).sum() / (last - first).square().sum()
        assert abs(weight - share) < 0.2, "how far the picture is on its way from the first to the last"


def test_initialise_is_decided_by_the_seed() -> None:
    first, again, other = initialised(1), initialised(1), initialised(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_warm_start_gives_the_cells_their_colours(cache: Cache) -> None:
    model = initialised(3)
    mixer = Mixer(cache, 0.5, seed=1)
    images = mixer.batch_stills(0, 8).images  # steps that the warm start does not see
    target = F.adaptive_avg_pool2d(images / 255.0, CONFIG.grid).flatten(2).transpose(1, 2)

    def error() -> float:
        with torch.no_grad():
            _, _, gaussians = model.encode(to_rgbd(images))
        return float((gaussians[..., 3:6] - target).square().mean())

    before = error()
    untouched = {n: p.clone() for n, p in model.named_parameters() if not n.startswith("gs_predictor.")}
    reported = warm_start(model, mixer, 80, 4, progress=False)
    # Of the whole encoder: with residual branches at zero it is the linear path that was fitted.
    assert error() < 0.5 * before
    assert 0.2 * error() < reported < 5 * error()
    assert all(torch.equal(p, untouched[n]) for n, p in model.named_parameters() if n in untouched)
