"""DINOv2 from both weight formats, and the published input quirks (full-size proof: test_parity.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from keyed_weights import keyed_tensor
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("transformers", reason="the published DINOv2 condition needs transformers")

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.condition import DinoCondition, dino_config, from_original_keys, load_dino

DIM, DEPTH, SIZE = 32, 2, (28, 56)


def small_config() -> Any:
    return dino_config(hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=70)


def original_state() -> dict[str, Tensor]:
    """A small file with the original names, `mask_token` included."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 26, DIM),
        "register_tokens": (1, 4, DIM),
        "mask_token": (1, DIM),
        "patch_embed.proj.weight": (DIM, 3, 14, 14),
        "patch_embed.proj.bias": (DIM,),
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
    }
    for i in range(DEPTH):
        for name, rows, cols in (
            ("attn.qkv", 3 * DIM, DIM),
            ("attn.proj", DIM, DIM),
            ("mlp.fc1", 4 * DIM, DIM),
            ("mlp.fc2", DIM, 4 * DIM),
        ):
            shapes[f"blocks.{i}.{name}.weight"] = (rows, cols)
            shapes[f"blocks.{i}.{name}.bias"] = (rows,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (DIM,)
    return {k: torch.from_numpy(keyed_tensor(k, v)) for k, v in shapes.items()}


def independent(state: dict[str, Tensor], rgb: Tensor) -> Tensor:
    """The same network from REFERENCE.md section 1, with the original names."""
    image = F.interpolate(rgb, SIZE, mode="bilinear", align_corners=False)
    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    table = state["pos_embed"][:, 1:].reshape(1, 5, 5, DIM).permute(0, 3, 1, 2)
    table = F.interpolate(table, grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    first = state["cls_token"] + state["pos_embed"][:, :1]
    batch = len(x)
    x = torch.cat([first.expand(batch, -1, -1), state["register_tokens"].expand(batch, -1, -1), x + table], 1)

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(DEPTH):
        b = f"blocks.{i}"
        q, k, v = (
            t.reshape(batch, -1, 2, DIM // 2).transpose(1, 2)
            for t in linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x)).split(DIM, -1)
        )
        attended = torch.softmax(q @ k.transpose(2, 3) * (DIM // 2) ** -0.5, -1) @ v
        attended = attended.transpose(1, 2).reshape(batch, -1, DIM)
        x = x + state[f"{b}.ls1.gamma"] * linear(f"{b}.attn.proj", attended)
        hidden = F.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x)))
        x = x + state[f"{b}.ls2.gamma"] * linear(f"{b}.mlp.fc2", hidden)
    return norm("norm", x)[:, 5:]


@pytest.fixture
def rgb() -> Tensor:
    return torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_original_files(tmp_path: Path, rgb: Tensor, suffix: str) -> None:
    path, state = tmp_path / f"dino{suffix}", original_state()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, str(path))
    condition = load_dino(path, SIZE, small_config())
    expected = independent(state, rgb)
    assert expected.shape == (2, 8, DIM)
    assert torch.allclose(condition(rgb), expected, atol=2e-6)


def test_hub_folder(tmp_path: Path, rgb: Tensor) -> None:
    source = DinoCondition(small_config(), SIZE)
    source.model.load_state_dict(from_original_keys(original_state()), strict=False)
    source.model.save_pretrained(tmp_path / "hub")
    loaded = load_dino(tmp_path / "hub", SIZE)
    assert torch.equal(loaded(rgb), source(rgb))


def test_frozen_and_in_eval() -> None:
    condition = DinoCondition(small_config(), SIZE)
    condition.train()
    assert not any(m.training for m in condition.modules())
    assert not any(p.requires_grad for p in condition.parameters())


def test_refusals(tmp_path: Path) -> None:
    state = original_state()
    without, extra, shaped = dict(state), dict(state), dict(state)
    del without["register_tokens"]
    extra["blocks.0.attn.extra"] = torch.zeros(1)
    shaped["norm.weight"] = torch.zeros(7)
    for wrong, text in ((without, "register_tokens"), (extra, "extra"), (shaped, "norm")):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=text):
            load_dino(tmp_path / "wrong.pth", SIZE, small_config())
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "folder").mkdir()
    torch.save({"state": 3}, tmp_path / "nested.pth")
    for name in ("text.pth", "absent.pth", "folder", "nested.pth"):
        with pytest.raises(InputError):
            load_dino(tmp_path / name, SIZE, small_config())
