"""LPIPS against a float64 NumPy network written from the paper's description, and its weight files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lpips_samples import narrow
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.perceptual import LPIPS, load_lpips

Array = NDArray[np.float64]


def convolution(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("ihwkl,oikl->ohw", windows, weight, optimize=True) + bias[:, None, None]


def pool(x: Array, window: int) -> Array:
    views = np.lib.stride_tricks.sliding_window_view(x, (window, window), axis=(1, 2))
    return np.asarray(views[:, ::2, ::2].max((-2, -1)))


# Layers as the papers describe the networks: "c" convolution (kernel, stride, padding), "p" max-pool of
# stride 2, "=" the features are compared.
NETWORKS = {
    "alex": [("c", 11, 4, 2), "=", ("p", 3), ("c", 5, 1, 2), "=", ("p", 3)] + [("c", 3, 1, 1), "="] * 3,
    "vgg": [("c", 3, 1, 1)] * 2 + ["="] + [("p", 2), *[("c", 3, 1, 1)] * 2, "="]
    + [("p", 2), *[("c", 3, 1, 1)] * 3, "="] * 3,
}  # fmt: skip


def reference(net: str, state: dict[str, Array], a: Array, b: Array) -> float:
    """LPIPS of two images [3, H, W] in [0, 1]."""
    shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
    scale = np.array([0.458, 0.448, 0.450])[:, None, None]
    x, y = ((2 * image - 1 - shift) / scale for image in (a, b))
    conv = compared = 0
    total = 0.0
    for layer in NETWORKS[net]:
        if layer == "=":
            u, v = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in (x, y))
            total += ((u - v) ** 2 * state[f"lin{compared}"][:, None, None]).sum(0).mean()
            compared += 1
        elif layer[0] == "p":
            x, y = pool(x, layer[1]), pool(y, layer[1])
        else:
            weight, bias = state[f"Conv_{conv}.weight"], state[f"Conv_{conv}.bias"]
            x, y = (np.maximum(0, convolution(f, weight, bias, *layer[2:])) for f in (x, y))
            conv += 1
    return float(total)


@pytest.mark.parametrize(("net", "size"), [("alex", (31, 40)), ("alex", (67, 64)), ("vgg", (16, 35))])
def test_lpips_equals_an_independent_computation(
    net: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = narrow(monkeypatch, net)
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 3, *size)), rng.uniform(size=(2, 3, *size))
    got = model(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    want = [reference(net, state, a[i], b[i]) for i in range(2)]
    assert got.shape == (2,) and min(want) > 1e-3
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-5)


def test_one_truth_against_several_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = narrow(monkeypatch, "alex")
    truth, images = torch.rand(1, 3, 48, 64), torch.rand(3, 3, 48, 64)
    got = model.distance(model.features(truth), model.features(images))
    torch.testing.assert_close(got, model(truth.expand(3, -1, -1, -1), images))
    assert not model(images, images).any()


def test_gradients_reach_the_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all features are zero, where the textbook norm has a gradient of NaN."""
    model = narrow(monkeypatch, "alex")
    with torch.no_grad():
        model.Conv_0.bias[:] = -100.0
    for image in (torch.rand(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)):
        x = image.requires_grad_()
        model(x, torch.rand(1, 3, 32, 32)).sum().backward()
        assert x.grad is not None and torch.isfinite(x.grad).all()
    assert not any(p.requires_grad for p in model.parameters())
    model = narrow(monkeypatch, "alex")
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    model(x, torch.rand(1, 3, 32, 32)).sum().backward()
    assert x.grad is not None and x.grad.any()


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_weight_file_tells_the_network(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = narrow(monkeypatch, net)
    names = set(model.state_dict())
    assert names == {f"lin{i}" for i in range(5)} | {
        f"Conv_{i}.{leaf}" for i in range(5 if net == "alex" else 13) for leaf in ("weight", "bias")
    }
    save_file(model.state_dict(), str(tmp_path / "w.safetensors"))
    loaded = load_lpips(tmp_path / "w.safetensors")
    a, b = torch.rand(2, 1, 3, 40, 40)
    assert loaded.net == net and torch.equal(loaded(a, b), model(a, b))


def test_real_widths_are_those_of_the_published_networks() -> None:
    for net, parameters in (("alex", 2469696 + 1152), ("vgg", 14714688 + 1472)):
        with torch.device("meta"):
            model = LPIPS(net)
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_unusable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="no such file") as error:
        load_lpips(path)
    assert "docs/evaluation.md" in error.value.hint
    path.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_lpips(path)
    good: dict[str, Tensor] = dict(narrow(monkeypatch, "alex").state_dict())
    changes: list[tuple[dict[str, Tensor], str]] = [
        ({k: v for k, v in good.items() if k != "lin3"}, "lin3 is missing"),
        (good | {"fc.weight": torch.zeros(1)}, "fc.weight is unknown"),
        (good | {"lin0": torch.zeros(5)}, r"lin0 is \[5\] instead of \[4\]"),
        (good | {"lin0": torch.full((4,), torch.nan)}, "lin0 holds values that are not finite"),
    ]
    for state, message in changes:
        save_file(state, str(path))
        with pytest.raises(InputError, match=message):
            load_lpips(path)


def test_images_that_do_not_fit_are_refused() -> None:
    model = LPIPS("alex")
    with pytest.raises(InputError, match="compares"):
        model(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 33))
    for shape in ((1, 3, 30, 64), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(InputError, match="cannot take images of the shape") as error:
            model(torch.rand(shape), torch.rand(shape))
        assert "at least 31 pixels" in error.value.hint
