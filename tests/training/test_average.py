"""The mean of several weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from streamsplat_edge.runtime.bundle import sha256_of
from streamsplat_edge.training.average import main
from streamsplat_edge.training.checkpoint import load_weights, read_config, save_weights
from streamsplat_edge.training.config import ModelConfig
from streamsplat_edge.training.model import StreamSplat

SMALL = ModelConfig(
    name="small-test", height=16, width=32, patch=8, dim=32, head_dim=8, encoder_depth=1, decoder_depth=1,
    upsample_windows=(16, 32),
)  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_weights(StreamSplat(SMALL), path, {})
    return [str(path) for path in paths]


def test_every_weight_is_the_mean(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    assert main([*files, "-o", str(out)]) == 0
    states = [load_file(file) for file in files]
    mean = load_file(out)
    assert mean.keys() == states[0].keys()
    for name, value in mean.items():
        want = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=1e-7)
    load_weights(StreamSplat(SMALL), out)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["average_of_sha256"]) == [sha256_of(Path(f)) for f in files]


def test_the_last_span_of_depth_holds(files: list[str], tmp_path: Path) -> None:
    out, other = tmp_path / "mean.safetensors", tmp_path / "other.safetensors"
    save_weights(StreamSplat(replace(SMALL, depth_span=0.3)), other, {})
    assert main([files[0], str(other), "-o", str(out)]) == 0
    assert read_config(out) == replace(SMALL, depth_span=0.3)


def test_what_cannot_be_averaged(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mean.safetensors"
    other = tmp_path / "other.safetensors"
    save_weights(StreamSplat(replace(SMALL, dim=64)), other, {})
    for arguments, said in (
        (files[:1], "two files or more"),
        ([files[0], str(other)], "another model"),
        ([files[0], str(tmp_path / "none.safetensors")], "not a readable"),
    ):
        assert main([*arguments, "-o", str(out)]) == 2
        assert said in capsys.readouterr().err and not out.exists()
    out.write_bytes(b"mine")
    assert main([*files, "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err and out.read_bytes() == b"mine"
    assert main([*files, "-o", str(out), "--force"]) == 0 and len(load_file(out)) > 10
