"""Monocular depth of the published training: Depth Anything V2 (REFERENCE.md section 6).

The network comes from `transformers`; here are the loading of both weight formats and what the published
depth script does that `transformers` does not: no ImageNet mean and standard deviation, and the original
network's interpolation of the position embedding.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.errors import InputError
from .condition import from_original_keys
from .pretrained import load_hub_folder, load_renamed, read_original, transformers_for

if TYPE_CHECKING:
    from transformers import DepthAnythingConfig

Size = Literal["auto", "small", "base", "large"]

SHORT_SIDE = 518
PATCH = 14
# The original network stretches its position grid by this many patches too little, against rounding.
_POSITION_OFFSET = 0.1

_NAME = "Depth Anything V2"
_HINT = (
    "Use depth_anything_v2_vits.pth, ..._vitb.pth or ..._vitl.pth, or a local copy of a hub folder such as "
    "Depth-Anything-V2-Small-hf."
)
# Width of the transformer -> size, depth, heads, fused width, widths of the four levels, their blocks.
_SIZES: dict[int, tuple[str, int, int, int, list[int], list[int]]] = {
    384: ("small", 12, 6, 64, [48, 96, 192, 384], [3, 6, 9, 12]),
    768: ("base", 12, 12, 128, [96, 192, 384, 768], [3, 6, 9, 12]),
    1024: ("large", 24, 16, 256, [256, 512, 1024, 1024], [5, 12, 18, 24]),
}

# Original name of a part of the head -> its name in `transformers`, which counts the fusion backwards.
_HEAD = {
    **{f"projects.{i}": f"neck.reassemble_stage.layers.{i}.projection" for i in range(4)},
    **{f"resize_layers.{i}": f"neck.reassemble_stage.layers.{i}.resize" for i in (0, 1, 3)},
    **{f"scratch.layer{i + 1}_rn": f"neck.convs.{i}" for i in range(4)},
    **{f"scratch.refinenet{4 - i}.out_conv": f"neck.fusion_stage.layers.{i}.projection" for i in range(4)},
    **{
        f"scratch.refinenet{4 - i}.resConfUnit{unit}.conv{conv}": (
            f"neck.fusion_stage.layers.{i}.residual_layer{unit}.convolution{conv}"
        )
        for i in range(4)
        for unit in (1, 2)
        for conv in (1, 2)
    },
    "scratch.output_conv1": "head.conv1",
    "scratch.output_conv2.0": "head.conv2",
    "scratch.output_conv2.2": "head.conv3",
}


def depth_config(width: int) -> DepthAnythingConfig:
    """Configuration of the published network whose transformer is `width` wide (384, 768 or 1024)."""
    _, depth, heads, fused, levels, blocks = _SIZES[width]
    return make_config(width, depth, heads, fused, levels, blocks)


def make_config(
    width: int,
    depth: int,
    heads: int,
    fused: int,
    levels: list[int],
    blocks: list[int],
    image_size: int = SHORT_SIDE,
) -> DepthAnythingConfig:
    """A configuration from the numbers that tell the published sizes apart (smaller ones for tests).

    Args:
        width, depth, heads: of the DINOv2 transformer.
        fused: channels of the fusion.
        levels: channels of the four feature maps.
        blocks: numbers, from 1, of the blocks they are taken from.
        image_size: side of the square image that the position embedding was made for.
    """
    transformers = transformers_for(_NAME)
    backbone = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=image_size,
        patch_size=PATCH, out_indices=blocks, apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config: DepthAnythingConfig = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=width, patch_size=PATCH,
        neck_hidden_sizes=levels, fusion_hidden_size=fused, depth_estimation_type="relative",
    )  # fmt: skip
    return config


def from_original_depth_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a `depth_anything_v2_vit*.pth` to those of `transformers`.

    `pretrained.*` is DINOv2 without registers, `depth_head.*` the DPT head. Unknown names are kept, so that
    loading refuses them under the name that the file has.
    """
    backbone = {k.removeprefix("pretrained."): v for k, v in state.items() if k.startswith("pretrained.")}
    renamed = {f"backbone.{k}": v for k, v in from_original_keys(backbone).items()}
    for key, value in state.items():
        if key.startswith("pretrained."):
            continue
        part, _, leaf = key.removeprefix("depth_head.").rpartition(".")
        renamed[f"{_HEAD[part]}.{leaf}" if part in _HEAD else key] = value
    return renamed


def _published_positions(module: Any, embeddings: Tensor, height: int, width: int) -> Tensor:
    """Position embedding [1, 1 + M, C] for an image of height x width pixels, as the original network has it.

    Bicubic without antialiasing like `transformers`, but sampled at (rows + 0.1) / side of the grid instead
    of rows / side. An image of the size that the embedding was made for takes it as it is.
    """
    table = module.position_embeddings
    side = round((table.shape[1] - 1) ** 0.5)
    if height == width == side * PATCH:
        return torch.as_tensor(table)
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    scale = [(pixels // PATCH + _POSITION_OFFSET) / side for pixels in (height, width)]
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class DepthAnything(nn.Module):
    """RGB in [0, 1] -> relative inverse depth, as the published depth script calls the network.

    The image is resized bilinearly so that its shorter side is `short_side`, both sides rounded to multiples
    of 14; no mean and standard deviation; the result is resized bilinearly (align_corners) to the image.
    """

    def __init__(self, model: Any, short_side: int = SHORT_SIDE) -> None:
        super().__init__()
        self.short_side = short_side
        self.model = model
        self.model.eval().requires_grad_(False)
        table = model.backbone.embeddings
        table.interpolate_pos_encoding = partial(_published_positions, table)

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the image that the network sees, multiples of 14."""
        scale = self.short_side / min(height, width)
        rows, cols = (max(1, round(side * scale / PATCH)) * PATCH for side in (height, width))
        return rows, cols

    def forward(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, H, W] -> [B, 1, H, W], 0 or more, larger = nearer, in a unit of its own per image."""
        height, width = rgb.shape[-2:]
        size = self.network_size(height, width)
        image = F.interpolate(rgb, size, mode="bilinear", align_corners=False, antialias=False)
        depth = self.model(pixel_values=image).predicted_depth[:, None]
        return F.interpolate(depth, (height, width), mode="bilinear", align_corners=True)

    def train(self, mode: bool = True) -> DepthAnything:
        """Always in evaluation mode: nothing here is trained."""
        return super().train(False)


def load_depth_anything(
    path: str | Path, size: Size = "auto", config: DepthAnythingConfig | None = None
) -> DepthAnything:
    """Depth Anything V2 (relative depth) from local weights.

    Args:
        path: a folder in the hub layout (`config.json` and `model.safetensors`), or an original weight file
            (`depth_anything_v2_vits.pth`, ..., or the same tensors as safetensors).
        size: which one it must be; "auto" takes what is there.
        config: of an original weight file of another shape than the published ones.

    Raises:
        InputError: nothing there, unreadable, another size, a metric model (whose depth grows with the
            distance), or not the weights of Depth Anything; keys that do not fit are listed. An original
            file of a metric model has the same keys, so that it cannot be told apart.
    """
    path = Path(path)
    if path.is_dir():
        kind = transformers_for(_NAME).DepthAnythingForDepthEstimation
        model = load_hub_folder(kind, path, _NAME, _HINT)
        if model.config.depth_estimation_type != "relative":
            raise InputError(f"{path} estimates metric depth, not relative inverse depth.", _HINT)
        model.head.max_depth = 1  # published folders say null, which here means: as it comes
        _check_size(path, model.config.reassemble_hidden_size, size)
        return DepthAnything(model)
    state = read_original(path, _HINT)
    if config is None:
        token = state.get("pretrained.cls_token")
        width = int(token.shape[-1]) if token is not None and token.ndim else 0
        if width not in _SIZES:
            names = ", ".join(list(state)[:5])
            raise InputError(
                f"{path} is not {_NAME}: no pretrained.cls_token {list(_SIZES)} wide; its keys: {names}, ...",
                _HINT,
            )
        config = depth_config(width)
    _check_size(path, config.reassemble_hidden_size, size)
    model = transformers_for(_NAME).DepthAnythingForDepthEstimation(config)
    renamed = from_original_depth_keys(state)
    load_renamed(model, renamed, path, _NAME, _HINT, optional=("backbone.embeddings.mask_token",))
    return DepthAnything(model)


def _check_size(path: Path, width: int, size: Size) -> None:
    name = _SIZES[width][0] if width in _SIZES else f"of width {width}"
    if size not in ("auto", name):
        raise InputError(f"{path} is {_NAME} {name}, not {size}.", "Ask for that size, or for auto.")
