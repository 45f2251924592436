"""The naming rule of weights and inputs, pinned by the check sums stored with the golden data."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from keyed_weights import keyed_frames, keyed_tensor, normalise_depth

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "golden_pair.npz")
META = json.loads(str(GOLDEN["meta_json"]))["self_check"]


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder_proj.weight", (192, 192)),
        ("decoder.transformer_decoder.cls_embedding", (1, 2, 768)),
        ("gs_predictor.encoder.transformer_encoder.layernorm1.weight", (768,)),
        ("condition_encoder.model.blocks.0.ls1.gamma", (768,)),
        ("gs_predictor.predictor.gs_layer.rgb.bias", (3,)),
    ],
)
def test_weights(name: str, shape: tuple[int, ...]) -> None:
    assert _crc(keyed_tensor(name, shape)) == META[name]


@pytest.mark.parametrize("seed", ["a", "b"])
def test_frames(seed: str) -> None:
    rgb, depth = keyed_frames(seed)
    assert (_crc(rgb), _crc(depth)) == (META[f"rgb/{seed}"], META[f"depth/{seed}"])
    assert _crc(normalise_depth(depth)) == META[f"depth_norm/{seed}"]
