"""LPIPS networks that are quick: a sixteenth of the channels and random weights that let signals through."""

from __future__ import annotations

import pytest
import torch

from streamsplat_edge.training import perceptual
from streamsplat_edge.training.perceptual import LPIPS

REAL = dict(perceptual._CONVOLUTIONS)


def narrow(monkeypatch: pytest.MonkeyPatch, net: str) -> LPIPS:
    """The network; until the end of the test `LPIPS` and `load_lpips` make and take such ones."""
    layers = tuple((out // 16, *rest) for out, *rest in REAL[net])
    monkeypatch.setitem(perceptual._CONVOLUTIONS, net, layers)
    torch.manual_seed(7)
    model = LPIPS(net)
    for name, value in model.state_dict().items():
        if name.endswith("weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        else:
            value.uniform_(0, 0.3)
    return model
