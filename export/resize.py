"""A trained model at another resolution.

Weights do not depend on the resolution; what belongs to positions does. A new token takes the row of the
sinusoidal tables that the trained token at its place in the image has; the learned embedding of the decoder
is interpolated; the maps of cell centres are computed anew; attention windows of the upsamplers, which must
divide the number of tokens, take the nearest length that does.

The tables count tokens row by row, so that recomputing them for another width moves every token to another
place of the image, and a larger image has numbers that were never trained. Measured with the shipped tiny
weights (trained at 144x256), PSNR of the reconstruction in dB at 96x160 / 192x320 / 288x512: recomputed
31.1 / 15.5 / 11.7, interpolated bilinearly 29.3 / 29.9 / 31.6, nearest 31.3 / 32.2 / 35.9.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from ..runtime.errors import InputError
from ..training.config import ModelConfig
from ..training.model import StreamSplat

_CONDITION_TABLE = "decoder.transformer_decoder.positional_encoding.pe"
_EMBEDDING = "decoder.transformer_decoder.positional_embedding"
# The published condition is 14 pixels per token at 7/8 of the model's resolution (252 x 448 of 288 x 512).
_DINO_STEP, _DINO_PATCH = 16, 14


def resized_config(config: ModelConfig, height: int, width: int) -> ModelConfig:
    """The configuration at `height` x `width` pixels.

    Raises:
        InputError: not multiples of the patch size.
    """
    patch = config.patch
    if height < 2 * patch or width < 2 * patch or height % patch or width % patch:
        down = "x".join(str(max(2, round(side / patch)) * patch) for side in (height, width))
        raise InputError(
            f"{height}x{width} is not a multiple of the patch size {patch} of preset {config.name}.",
            f"Use for example --size {down}.",
        )
    tokens = height * width // patch**2
    windows = tuple(
        nearest_window(window, tokens * 4 ** (stage + 1))
        for stage, window in enumerate(config.upsample_windows)
    )
    changes = {"height": height, "width": width, "upsample_windows": windows}
    if config.condition == "dino":
        rows, cols = dino_grid(height, width)
        changes["condition_len"] = rows * cols
    elif config.condition_len == config.tokens:
        changes["condition_len"] = tokens
    try:
        return replace(config, **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"{config.name} cannot be exported at {height}x{width}: {error}.") from None


def dino_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of DINOv2's patches for a model resolution, in the published proportion."""
    return max(1, round(height / _DINO_STEP)), max(1, round(width / _DINO_STEP))


def dino_size(height: int, width: int) -> tuple[int, int]:
    """Pixels of the image DINOv2 sees: 252 x 448 for the published 288 x 512."""
    rows, cols = dino_grid(height, width)
    return rows * _DINO_PATCH, cols * _DINO_PATCH


def nearest_window(window: int, tokens: int) -> int:
    """The even divisor of `tokens` whose ratio to `window` is nearest to 1 (the smaller of two)."""
    small = [d for d in range(1, math.isqrt(tokens) + 1) if tokens % d == 0]
    divisors = {d for pair in ((d, tokens // d) for d in small) for d in pair}
    return min((d for d in sorted(divisors) if d % 2 == 0), key=lambda d: abs(math.log(d / window)))


def resized(model: StreamSplat, height: int, width: int) -> StreamSplat:
    """The model at another resolution, with the same weights; `model` itself where nothing changes.

    Raises:
        InputError: as `resized_config`.
    """
    config = resized_config(model.config, height, width)
    if config == model.config:
        return model
    result = StreamSplat(config)
    own = result.state_dict()
    state = model.state_dict()
    grids = (model.config.token_grid, config.token_grid)
    dino = config.condition == "dino"
    condition_grids = tuple(dino_grid(c.height, c.width) for c in (model.config, config)) if dino else grids
    for name, value in own.items():
        if name == _EMBEDDING:
            state[name] = _interpolated(state[name], *grids)
        elif name == _CONDITION_TABLE:
            state[name] = _nearest(state[name], *condition_grids)
        elif name.endswith(".pe"):
            state[name] = _nearest(state[name], *grids)
        elif name.endswith((".x_map", ".z_map")):
            state[name] = value
    result.load_state_dict(state)
    return result.eval()


def _nearest(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Rows [N, D] of a table over the grid `old`, for the grid `new`."""
    planes = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    return F.interpolate(planes, new, mode="nearest-exact").flatten(2)[0].T.contiguous()


def _interpolated(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Learned embedding [1, 2N, D] of two frames' tokens, bicubically on the grid of tokens."""
    planes = embedding.reshape(2, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(planes, new, mode="bicubic", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).reshape(1, 2 * math.prod(new), -1)
