"""Depth Anything V2 from both weight formats, against the network written out with the original names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from keyed_weights import keyed_tensor
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers", reason="Depth Anything V2 needs transformers")

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.depth import (
    DepthAnything,
    depth_config,
    from_original_depth_keys,
    load_depth_anything,
    make_config,
)

DIM, DEPTH, FUSED, LEVELS, GRID = 32, 5, 8, [6, 8, 10, 12], 5
HEIGHT, WIDTH, ROWS, COLS = 48, 83, 3, 5  # shorter side 42 pixels: 42 x 73, to 3 x 5 patches
BLOCKS = [1, 2, 3, 5]  # as with the large one, not the last four


def small_config() -> Any:
    return make_config(DIM, DEPTH, 2, FUSED, LEVELS, BLOCKS, image_size=GRID * 14)


def original_shapes(
    dim: int, depth: int, fused: int, levels: list[int], grid: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a `depth_anything_v2_vit*.pth`."""
    shapes: dict[str, tuple[int, ...]] = {
        "pretrained.cls_token": (1, 1, dim),
        "pretrained.pos_embed": (1, grid * grid + 1, dim),
        "pretrained.mask_token": (1, dim),
        "pretrained.patch_embed.proj.weight": (dim, 3, 14, 14),
        "pretrained.patch_embed.proj.bias": (dim,),
        "pretrained.norm.weight": (dim,),
        "pretrained.norm.bias": (dim,),
    }

    def layer(name: str, *shape: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        if bias != 0:
            shapes[f"{name}.bias"] = (shape[0] if bias is None else bias,)

    for i in range(depth):
        block = f"pretrained.blocks.{i}"
        layer(f"{block}.attn.qkv", 3 * dim, dim)
        layer(f"{block}.attn.proj", dim, dim)
        layer(f"{block}.mlp.fc1", 4 * dim, dim)
        layer(f"{block}.mlp.fc2", dim, 4 * dim)
        for name in ("norm1", "norm2"):
            layer(f"{block}.{name}", dim)
        for name in ("ls1", "ls2"):
            shapes[f"{block}.{name}.gamma"] = (dim,)
    head = "depth_head"
    for i, channels in enumerate(levels):
        layer(f"{head}.projects.{i}", channels, dim, 1, 1)
        layer(f"{head}.scratch.layer{i + 1}_rn", fused, channels, 3, 3, bias=0)
        for unit in (1, 2):
            for conv in (1, 2):
                name = f"{head}.scratch.refinenet{i + 1}.resConfUnit{unit}.conv{conv}"
                layer(name, fused, fused, 3, 3)
        layer(f"{head}.scratch.refinenet{i + 1}.out_conv", fused, fused, 1, 1)
    layer(f"{head}.resize_layers.0", levels[0], levels[0], 4, 4)
    layer(f"{head}.resize_layers.1", levels[1], levels[1], 2, 2)
    layer(f"{head}.resize_layers.3", levels[3], levels[3], 3, 3)
    layer(f"{head}.scratch.output_conv1", fused // 2, fused, 3, 3)
    layer(f"{head}.scratch.output_conv2.0", 32, fused // 2, 3, 3)
    layer(f"{head}.scratch.output_conv2.2", 1, 32, 1, 1)
    return shapes


def original_state() -> dict[str, Tensor]:
    shapes = original_shapes(DIM, DEPTH, FUSED, LEVELS, GRID)
    state = {k: torch.from_numpy(keyed_tensor(k, v)) for k, v in shapes.items()}
    # Of everyday size, or a wrong position embedding would not show; and no depth that is zero everywhere.
    state["pretrained.pos_embed"] *= 50
    state["depth_head.scratch.output_conv2.2.bias"] += 0.5
    return state


def independent(s: dict[str, Tensor], rgb: Tensor) -> Tensor:
    """The published script and network, from their description, with the original names."""
    image = F.interpolate(rgb, (14 * ROWS, 14 * COLS), mode="bilinear", align_corners=False)
    p = "pretrained."
    x = F.conv2d(image, s[f"{p}patch_embed.proj.weight"], s[f"{p}patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).transpose(1, 2)
    table = s[f"{p}pos_embed"][:, 1:].reshape(1, GRID, GRID, DIM).permute(0, 3, 1, 2)
    scale = ((ROWS + 0.1) / GRID, (COLS + 0.1) / GRID)
    table = F.interpolate(table, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
    first = (s[f"{p}cls_token"] + s[f"{p}pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x + table], 1)

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (DIM,), s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, s[f"{name}.weight"], s[f"{name}.bias"])

    levels = []
    for i in range(DEPTH):
        b = f"{p}blocks.{i}"
        q, k, v = (
            t.reshape(len(x), -1, 2, DIM // 2).transpose(1, 2)
            for t in linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x)).split(DIM, -1)
        )
        attended = torch.softmax(q @ k.transpose(2, 3) * (DIM // 2) ** -0.5, -1) @ v
        attended = attended.transpose(1, 2).flatten(2)
        x = x + s[f"{b}.ls1.gamma"] * linear(f"{b}.attn.proj", attended)
        hidden = F.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x)))
        x = x + s[f"{b}.ls2.gamma"] * linear(f"{b}.mlp.fc2", hidden)
        if i + 1 in BLOCKS:
            levels.append(norm("pretrained.norm", x)[:, 1:].transpose(1, 2).unflatten(2, (ROWS, COLS)))

    h = "depth_head."

    def conv(name: str, y: Tensor, pad: int = 1, stride: int = 1) -> Tensor:
        return F.conv2d(y, s[f"{h}{name}.weight"], s.get(f"{h}{name}.bias"), stride, pad)

    def up(i: int, y: Tensor, factor: int) -> Tensor:
        name = f"{h}resize_layers.{i}"
        return F.conv_transpose2d(y, s[f"{name}.weight"], s[f"{name}.bias"], stride=factor)

    maps = [conv(f"projects.{i}", y, pad=0) for i, y in enumerate(levels)]
    maps = [up(0, maps[0], 4), up(1, maps[1], 2), maps[2], conv("resize_layers.3", maps[3], stride=2)]
    maps = [conv(f"scratch.layer{i + 1}_rn", y) for i, y in enumerate(maps)]

    def unit(name: str, y: Tensor) -> Tensor:
        return y + conv(f"{name}.conv2", F.relu(conv(f"{name}.conv1", F.relu(y))))

    path = torch.zeros(())
    for i in (4, 3, 2, 1):
        name = f"scratch.refinenet{i}"
        y = maps[3] if i == 4 else path + unit(f"{name}.resConfUnit1", maps[i - 1])
        y = unit(f"{name}.resConfUnit2", y)
        size = maps[i - 2].shape[2:] if i > 1 else [2 * side for side in y.shape[2:]]
        path = conv(f"{name}.out_conv", F.interpolate(y, size, mode="bilinear", align_corners=True), pad=0)
    y = conv("scratch.output_conv1", path)
    y = F.interpolate(y, (14 * ROWS, 14 * COLS), mode="bilinear", align_corners=True)
    y = F.relu(conv("scratch.output_conv2.2", F.relu(conv("scratch.output_conv2.0", y)), pad=0))
    return F.interpolate(y, rgb.shape[2:], mode="bilinear", align_corners=True)


@pytest.fixture
def rgb() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def loaded(path: Path, config: Any = None) -> DepthAnything:
    network = load_depth_anything(path, config=config)
    network.short_side = 42
    return network


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_original_files(tmp_path: Path, rgb: Tensor, suffix: str) -> None:
    path, state = tmp_path / f"depth_anything_v2_vits{suffix}", original_state()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, str(path))
    depth, expected = loaded(path, small_config())(rgb), independent(state, rgb)
    assert depth.shape == (2, 1, HEIGHT, WIDTH) and not depth.requires_grad
    assert float(expected.std()) > 1e-3
    assert torch.allclose(depth, expected, atol=2e-6, rtol=1e-5)


def published_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of a hub folder as they were when the published ones were written."""
    changes = {"attention.o_proj": "attention.output.dense"}
    changes |= {f"attention.{k[0]}_proj": f"attention.attention.{k}" for k in ("query", "key", "value")}
    renamed = {}
    for key, value in tensors.items():
        for new, old in changes.items():
            key = key.replace(new, old)
        renamed[key] = value
    return renamed


def test_hub_folder_gives_the_same(tmp_path: Path, rgb: Tensor) -> None:
    torch.save(original_state(), tmp_path / "original.pth")
    original = loaded(tmp_path / "original.pth", small_config())
    original.model.save_pretrained(tmp_path / "hub")
    assert torch.equal(loaded(tmp_path / "hub")(rgb), original(rgb))
    file = tmp_path / "hub" / "model.safetensors"
    tensors = published_names(load_file(file))
    assert "backbone.encoder.layer.0.attention.attention.query.weight" in tensors
    save_file(tensors, str(file), {"format": "pt"})
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**config, "max_depth": None}))
    assert torch.equal(loaded(tmp_path / "hub")(rgb), original(rgb))


def test_square_of_the_trained_size_takes_the_table_as_it_is(rgb: Tensor) -> None:
    network = DepthAnything(original_network())
    table = network.model.backbone.embeddings
    tokens = torch.zeros(1, GRID * GRID + 1, DIM)
    assert torch.equal(table.interpolate_pos_encoding(tokens, 70, 70), table.position_embeddings)


def original_network() -> Any:
    from transformers import DepthAnythingForDepthEstimation

    return DepthAnythingForDepthEstimation(small_config())


@pytest.mark.parametrize(
    ("width", "depth", "fused", "levels", "parameters"),
    [
        (384, 12, 64, [48, 96, 192, 384], 24_785_089),
        (768, 12, 128, [96, 192, 384, 768], 97_470_785),
        (1024, 24, 256, [256, 512, 1024, 1024], 335_315_649),
    ],
)
def test_published_sizes(width: int, depth: int, fused: int, levels: list[int], parameters: int) -> None:
    """Every original key of every size finds its place, and the parameters are as many as published."""
    from transformers import DepthAnythingForDepthEstimation

    shapes = original_shapes(width, depth, fused, levels, 37)
    with torch.device("meta"):
        model = DepthAnythingForDepthEstimation(depth_config(width))
        renamed = from_original_depth_keys({k: torch.empty(v) for k, v in shapes.items()})
    own = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("mask_token")}
    assert {k: tuple(v.shape) for k, v in renamed.items()} == own
    last = {384: 12, 768: 12, 1024: 24}[width]
    assert model.config.backbone_config.out_indices == {12: [3, 6, 9, 12], 24: [5, 12, 18, 24]}[last]
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


def test_network_size_is_rounded_to_patches() -> None:
    network = DepthAnything(original_network())
    assert network.network_size(480, 854) == (518, 924)  # 921.6 wide
    assert network.network_size(1080, 607) == (924, 518)  # 921.7 high
    assert network.network_size(144, 256) == (518, 924)
    network.train()
    assert not any(m.training for m in network.modules())


def test_refusals(tmp_path: Path) -> None:
    state = original_state()
    without, extra, shaped = dict(state), dict(state), dict(state)
    del without["depth_head.scratch.layer1_rn.weight"]
    extra["depth_head.readout_projects.0.0.weight"] = torch.zeros(1)
    shaped["pretrained.norm.weight"] = torch.zeros(7)
    cases = (without, "missing neck"), (extra, "readout_projects"), (shaped, "layernorm")
    for wrong, text in cases:
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=text):
            load_depth_anything(tmp_path / "wrong.pth", config=small_config())
    torch.save(state, tmp_path / "small.pth")
    with pytest.raises(InputError, match="its keys: pretrained"):
        load_depth_anything(tmp_path / "small.pth")
    with pytest.raises(InputError, match="of width 32, not base"):
        load_depth_anything(tmp_path / "small.pth", "base", small_config())
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "folder").mkdir()
    torch.save({"state": 3}, tmp_path / "nested.pth")
    for name in ("text.pth", "absent.pth", "folder", "nested.pth"):
        with pytest.raises(InputError):
            load_depth_anything(tmp_path / name, config=small_config())
    metric = small_config()
    metric.depth_estimation_type = "metric"
    from transformers import DepthAnythingForDepthEstimation

    DepthAnythingForDepthEstimation(metric).save_pretrained(tmp_path / "metric")
    with pytest.raises(InputError, match="metric depth"):
        load_depth_anything(tmp_path / "metric")
