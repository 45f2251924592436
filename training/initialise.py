"""Where training starts: weights that already render something, and a linear warm start of their colours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .data.loader import Mixer
from .dynamic import DecoderBlock, DynamicDecoder, DynamicHeads
from .matching import MatchingDecoder
from .model import StreamSplat
from .modules import MLP, Attention, sinusoidal_table
from .rasterizer import rasterize
from .static import COLOUR_FILTER, NEIGHBOURS, StaticHeads

# Puts most of a query's attention on an identical key among some hundred unrelated ones.
_MATCH_GAIN = 1.8
# The rasterizer adds this to the variance of every splat, in square pixels.
_LOW_PASS = 0.3
# Where the warm start's samples begin: far beyond the steps of stage 1, which sees others.
_FIRST_STEP = 1_000_000


def initialise(model: StreamSplat) -> None:
    """Residual branches start at zero, heads at opaque splats about as large as their cell, hardly any motion
    and a soft cross-fade.

    Cross-attention starts as a search for the matching token: query and key share one projection, the other
    frame's tokens reach it unchanged, and both frames carry the same position code. What it finds enters the
    residual stream from the first step, since motion is not a linear function of either frame alone.
    """
    config = model.config
    heads, dynamic = model.gs_predictor.predictor, model.gs_dynamic_predictor
    rows, cols = config.grid
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, Attention):
                module.out_proj.weight.zero_()
            if isinstance(module, MLP):
                module.c_proj.weight.zero_()
        for module in model.modules():
            if isinstance(module, DecoderBlock):
                _match(module.cross_attn)
        if isinstance(model.decoder, DynamicDecoder):
            decoder = model.decoder.transformer_decoder
        if config.condition == "tokens":
            decoder.condition_proj.weight.copy_(torch.eye(config.dim))
            decoder.positional_embedding.copy_(sinusoidal_table(config.tokens, config.dim).repeat(2, 1)[None])
        for name in ("scale", "opacity", "xyz_static"):
            _linear(heads, f"gs_layer.{name}").weight.mul_(0.1)
        # 0.1 softplus(b) is the size in canonical units. Splats start touching, but where every pixel has one
        # that copies its colour: those are sharpest as points, which the low-pass widens to a pixel.
        points = heads.residual and config.grid == (config.height, config.width)
        share, opacity = (0.12, 4.5) if points else (0.6, 2.5)
        half_cell = torch.tensor([1.0 / cols, 1.0 / rows])
        _linear(heads, "gs_layer.scale").bias.copy_(torch.log(torch.expm1(10 * share * half_cell)))
        _linear(heads, "gs_layer.opacity").bias.fill_(opacity)
        if heads.residual:
            for name in ("rgb", "xyz_static"):
                _linear(heads, f"gs_layer.{name}").weight.zero_()
            heads.colour_filter.weight.copy_(_deblurring(heads, (rows, cols)) if points else _identity())
            if heads.depth_levels and points:
                heads.order_filter.copy_(_order_filter(heads, (rows, cols)))
        if heads.probabilistic:
            log_scale = _linear(heads, "mix_layer.xyz_static_scale")
            log_scale.weight.zero_()
            log_scale.bias.fill_(-2.5)
        _linear(dynamic, "gs_layer.xyz_dynamic.layers.7").weight.mul_(0.1)
        fade = _linear(dynamic, "gs_layer.opacity_dynamic.layers.7")
        fade.weight.mul_(0.1)
        # Half-way both frames together still cover 93 %, so nothing shines through at the start.
        fade.bias.copy_(torch.tensor([1.5, 0.0]))
        if isinstance(model.decoder, MatchingDecoder):
            _cross_fade(model.decoder, dynamic)


def _cross_fade(decoder: MatchingDecoder, heads: DynamicHeads) -> None:
    """Start as a linear mix of both frames, each moved: the earlier in front and fading, the later opaque.

    Their common motion in y keeps the earlier frame's Gaussians in front at all times, by more than the
    depths of the two frames usually disagree. One channel of the frame embedding says which frame it is; one
    hidden unit of the fade's head carries it.
    """
    for level in (decoder.level_16, decoder.level_8, decoder.level_4):
        nn.init.zeros_(level.flow.weight)
        assert level.flow.bias is not None
        nn.init.zeros_(level.flow.bias)
    assert heads.shared_y is not None
    heads.shared_y.fill_(math.atanh(0.9))
    decoder.cls_embedding[0, :, 0, -1] = torch.tensor([3.0, -3.0])
    for name, inputs in (("1", -1), ("4", 0)):
        weight = _linear(heads, f"gs_layer.opacity_dynamic.layers.{name}").weight
        weight[0] = 0.0
        weight[0, inputs] = 1.0
    last = _linear(heads, "gs_layer.opacity_dynamic.layers.7")
    last.weight[0, 0] = 1.85  # silu(silu(3)) = 2.7: gamma0 = 5, a nearly linear fade
    # gamma1 = 0.3: neighbours overlap, so that a third of the opacity covers half of what is behind.
    last.bias.copy_(torch.tensor([0.1, -0.85]))


def _match(attention: Attention) -> None:
    weight, dim = attention.packed_proj.weight, attention.dim
    weight[:dim] *= _MATCH_GAIN
    weight[dim : 2 * dim] = weight[:dim]
    nn.init.normal_(attention.out_proj.weight, std=dim**-0.5)


def _identity() -> Tensor:
    kernel = torch.zeros(1, 1, COLOUR_FILTER, COLOUR_FILTER)
    kernel[..., COLOUR_FILTER // 2, COLOUR_FILTER // 2] = 1.0
    return kernel


def _deblurring(heads: StaticHeads, grid: tuple[int, int]) -> Tensor:
    """The filter [1, 1, k, k] that undoes what rendering one Gaussian per pixel blurs: F^-1(1 / F(impulse)).

    The impulse is rendered with the first scales and opacities and all depths equal.
    """
    rows, cols = grid
    count, middle = rows * cols, (rows // 2, cols // 2)
    colours = torch.zeros(1, count, 3)
    colours[0, middle[0] * cols + middle[1]] = 1.0
    scale = 0.1 * F.softplus(_linear(heads, "gs_layer.scale").bias).expand(1, count, 2)
    opacity = (0.05 + 0.95 * torch.sigmoid(_linear(heads, "gs_layer.opacity").bias)).expand(1, count)
    places = torch.stack([heads.x_map, heads.z_map], -1)[None]
    rgb, _, _ = rasterize(
        places, torch.ones(1, count), scale, opacity, colours, torch.zeros(1, 3), rows, cols
    )
    impulse = torch.roll(rgb[0, ..., 0], (-middle[0], -middle[1]), (0, 1))
    inverse = torch.roll(torch.fft.ifft2(1 / torch.fft.fft2(impulse)).real, middle, (0, 1))
    reach = COLOUR_FILTER // 2
    kept = inverse[middle[0] - reach : middle[0] + reach + 1, middle[1] - reach : middle[1] + reach + 1].flip(
        0, 1
    )
    # What is cut off must not change the brightness of even areas.
    return (kept / (kept.sum() * impulse.sum()))[None, None]


def _order_filter(heads: StaticHeads, grid: tuple[int, int]) -> Tensor:
    """What a neighbour k contributes to a pixel that it covers by alpha b, where the Gaussian of the pixel
    itself is nearly opaque: b when drawn before that, else next to nothing. So colours take

        -b / (1 - b) (colour of k - colour)    where k is drawn first against the order of the grid,
        +b / (1 - b) (colour of k - colour)    where it is drawn last against it.
    """
    rows, cols = grid
    scale = 0.1 * F.softplus(_linear(heads, "gs_layer.scale").bias)
    opacity = 0.05 + 0.95 * torch.sigmoid(_linear(heads, "gs_layer.opacity").bias)
    variance_x, variance_y = ((s * n / 2) ** 2 + _LOW_PASS for s, n in zip(scale, (cols, rows), strict=True))
    weights = []
    for dy, dx in NEIGHBOURS:
        alpha = opacity * torch.exp(-0.5 * (dx**2 / variance_x + dy**2 / variance_y))
        sign = 1.0 if (dy, dx) < (0, 0) else -1.0
        weights.append(sign * alpha / (1 - alpha))
    return torch.cat(weights)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = module.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def _linear_colours(model: StreamSplat, rgbd: Tensor) -> Tensor:
    """Colours [B, G, 3] along the path that is left when every residual branch is zero."""
    encoder = model.gs_predictor.encoder.transformer_encoder
    upsampler = model.gs_predictor.gaussian_upsampler
    x = encoder.conv(rgbd).flatten(2).transpose(1, 2)
    x = encoder.layernorm2(encoder.layernorm1(encoder.positional_encoding(x)))
    for i in range(upsampler.stages):
        x = upsampler.get_submodule(f"upsampler_{i}")(x)
    return torch.sigmoid(model.gs_predictor.predictor.gs_layer["rgb"](upsampler.layernorm2(x)))


def warm_start(model: StreamSplat, mixer: Mixer, steps: int, batch: int, progress: bool) -> float:
    """Fit patch embedding, shuffles and the colour head as a linear autoencoder of each cell's colour.

    With zero residual branches (`initialise`) the network is this path, so stage 1 starts from sharp colours
    instead of discovering them; a step costs a few per cent of a stage-1 step because nothing is attended or
    rendered.

    Args:
        model: freshly initialised.
        mixer: source of the images.
        steps, batch: length, images per step.
        progress: show a progress bar on stderr.

    Returns:
        The last mean squared error.
    """
    encoder = model.gs_predictor.encoder.transformer_encoder
    upsampler = model.gs_predictor.gaussian_upsampler
    modules: list[nn.Module] = [encoder.conv, encoder.layernorm1, encoder.layernorm2, upsampler.layernorm2]
    modules += [upsampler.get_submodule(f"upsampler_{i}") for i in range(upsampler.stages)]
    modules.append(model.gs_predictor.predictor.gs_layer["rgb"])
    optimizer = torch.optim.AdamW(
        (p for m in modules for p in m.parameters()), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0
    )
    error = torch.tensor(0.0)
    for step in tqdm(range(steps), disable=not progress, desc="warm start", unit="step"):
        images = mixer.batch_stills(_FIRST_STEP + step, batch).images.float() / 255.0
        rgbd = torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
        target = F.adaptive_avg_pool2d(images, model.config.grid).flatten(2).transpose(1, 2)
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 50) * (1.0 - 0.95 * step / steps)
        error = (_linear_colours(model, rgbd) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
    return float(error.detach())
