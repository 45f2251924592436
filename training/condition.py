"""The published condition of the dynamic decoder: DINOv2 ViT-B/14 with registers (REFERENCE.md section 1).

The network itself comes from `transformers`; here are the published input quirks and the loading of both
weight formats.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from .pretrained import load_hub_folder, load_renamed, read_original, transformers_for

if TYPE_CHECKING:
    from transformers import Dinov2WithRegistersConfig

_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


_NAME = "DINOv2 with registers"
_HINT = "Use dinov2_vitb14_reg4_pretrain.pth or a local copy of the hub folder dinov2-with-registers-base."


def dino_config(**overrides: Any) -> Dinov2WithRegistersConfig:
    """Configuration of dinov2_vitb14_reg; `overrides` make smaller ones."""
    config: Dinov2WithRegistersConfig = transformers_for(_NAME).Dinov2WithRegistersConfig(
        **{"image_size": 518, "patch_size": 14, "num_register_tokens": 4, **overrides}
    )
    return config


def from_original_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an original `dinov2_*_reg4_pretrain` file to those of `transformers`.

    The packed q | k | v projection is split; `mask_token`, used in DINOv2's own training only, is dropped.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "mask_token":
            continue
        if not key.startswith("blocks."):
            renamed[_EMBEDDINGS.get(key, key)] = value
            continue
        _, index, rest = key.split(".", 2)
        block = f"encoder.layer.{index}."
        if rest.startswith("attn.qkv."):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{block}attention.{name}_proj.{rest.rsplit('.', 1)[1]}"] = part
            continue
        for original, ours in _IN_BLOCK.items():
            rest = rest.replace(original, ours)
        renamed[block + rest] = value
    return renamed


class DinoCondition(nn.Module):
    """RGB in [0, 1] -> patch tokens of DINOv2 after its last norm.

    As published: resized bilinearly without antialiasing to `size`, no ImageNet mean and standard deviation.
    """

    def __init__(
        self,
        config: Dinov2WithRegistersConfig | None = None,
        size: tuple[int, int] = (252, 448),
        backbone: Any = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.model = backbone or transformers_for(_NAME).Dinov2WithRegistersModel(config or dino_config())
        self.model.eval().requires_grad_(False)

    def forward(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, H, W] -> [B, M, C], M = size / 14 row-major (252 x 448: 18 x 32 = 576)."""
        image = F.interpolate(rgb, self.size, mode="bilinear", align_corners=False, antialias=False)
        tokens: Tensor = self.model(pixel_values=image).last_hidden_state
        return tokens[:, 1 + self.model.config.num_register_tokens :]

    def train(self, mode: bool = True) -> DinoCondition:
        """Always in evaluation mode: the condition is frozen in both stages."""
        return super().train(False)


def load_dino(
    path: Path, size: tuple[int, int] = (252, 448), config: Dinov2WithRegistersConfig | None = None
) -> DinoCondition:
    """DINOv2 from local weights.

    Args:
        path: a folder in the hub layout (`config.json` and `model.safetensors`), or an original weight file
            (`dinov2_vitb14_reg4_pretrain.pth`, or the same tensors as safetensors).
        size: rows and columns of the resized image, multiples of 14.
        config: of an original weight file, where it is not ViT-B/14 (a folder brings its own).

    Raises:
        InputError: nothing there, unreadable, or not the weights of DINOv2 ViT-B/14 with registers.
    """
    if path.is_dir():
        kind = transformers_for(_NAME).Dinov2WithRegistersModel
        return DinoCondition(size=size, backbone=load_hub_folder(kind, path, _NAME, _HINT))
    state = from_original_keys(read_original(path, _HINT))
    condition = DinoCondition(config, size)
    load_renamed(condition.model, state, path, _NAME, _HINT, optional=("embeddings.mask_token",))
    return condition
