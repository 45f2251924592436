"""Where training starts: what the first weights render, and the linear warm start."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from media_samples import MODEL

from streamsplat_edge.training.config import preset
from streamsplat_edge.training.data.cache import Cache
from streamsplat_edge.training.data.loader import Mixer
from streamsplat_edge.training.gaussians import fade_factor, render_static
from streamsplat_edge.training.initialise import initialise, warm_start
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.objectives import to_rgbd

CONFIG = preset("tiny", **MODEL)


def initialised(seed: int = 0, **kwargs: bool) -> StreamSplat:
    torch.manual_seed(seed)
    model = StreamSplat(CONFIG, **kwargs)
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
