"""PSNR, SSIM and their relatives against other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lpips_samples import narrow

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.metrics import DESCRIPTIONS, Meter, at_paper_size, psnr, ssim


def pattern(height: int, width: int, phase: float) -> np.ndarray:
    """Float64 [height, width, 3] in [0, 1], the same on every machine."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return 0.5 + 0.3 * np.sin(0.21 * x + 0.13 * y * (c + 1) + phase) + 0.15 * np.cos(0.05 * x * y + c)


def as_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(255 * image).astype(np.uint8)


# scikit-image 0.26.0: structural_similarity(a, b, gaussian_weights=True, sigma=1.5, data_range=1.0,
# use_sample_covariance=False, channel_axis=-1), float64.
SSIM = [
    (24, 40, "shifted", 0.9225866795949941),
    (24, 40, "darker", 0.9529023450818125),
    (24, 40, "flat", 0.06514324817450971),
    (11, 11, "shifted", 0.9496654640995567),
]


@pytest.mark.parametrize(("height", "width", "kind", "value"), SSIM)
def test_ssim_is_that_of_scikit_image(height: int, width: int, kind: str, value: float) -> None:
    a = pattern(height, width, 0.0)
    b = {"shifted": pattern(height, width, 0.4), "darker": 0.8 * a, "flat": np.full_like(a, 0.5)}[kind]
    a, b = a.astype(np.float32), b.astype(np.float32)
    assert ssim(a, b) == pytest.approx(value, abs=2e-6) and ssim(b, a) == pytest.approx(value, abs=2e-6)
    assert ssim(a, a) == pytest.approx(1, abs=1e-6)


def test_ssim_refuses_what_it_cannot_compare() -> None:
    image = np.zeros((11, 12, 3), np.float32)
    for other in (image[:10], image[:, :11]):
        with pytest.raises(InputError, match="SSIM cannot compare") as error:
            ssim(other, image)
        assert "11 pixels" in error.value.hint
    with pytest.raises(InputError):
        ssim(image[:10], image[:10])


def test_psnr() -> None:
    grey = np.full((4, 5, 3), 100, np.uint8)
    assert psnr(grey, grey + 10) == pytest.approx(20 * np.log10(25.5))
    assert psnr(grey / 255, (grey + 10) / 255, peak=1.0) == pytest.approx(20 * np.log10(25.5), rel=1e-5)
    assert psnr(grey, grey) == 100


@pytest.mark.parametrize("size", [(48, 80), (288, 512)])
def test_the_paper_size_is_bilinear_without_antialiasing(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(size=(*size, 3)).astype(np.float32)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    want = torch.nn.functional.interpolate(x, (256, 256), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(at_paper_size(image), want[0].permute(1, 2, 0).numpy(), atol=2e-5)


def test_the_meter_measures_every_picture_at_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = narrow(monkeypatch, "alex")
    meter = Meter(lpips)
    truth = as_bytes(pattern(36, 48, 0.0))
    pictures = {"near": as_bytes(pattern(36, 48, 0.05)), "far": as_bytes(pattern(36, 48, 0.6))}
    found = meter(truth, pictures)
    assert set(found) == {"near", "far"} and set(meter.metrics) == set(DESCRIPTIONS)
    for name, picture in pictures.items():
        assert set(found[name]) == set(meter.metrics)
        assert found[name]["psnr"] == psnr(picture, truth)
        a, b = truth.astype(np.float32) / 255, picture.astype(np.float32) / 255
        for suffix, x, y in (("", a, b), ("_256", at_paper_size(a), at_paper_size(b))):
            assert found[name][f"psnr{suffix}"] == pytest.approx(-10 * np.log10(np.mean((x - y) ** 2)), 1e-4)
            assert found[name][f"ssim{suffix}"] == pytest.approx(ssim(x, y))
            x, y = (torch.from_numpy(v).permute(2, 0, 1)[None] for v in (x, y))
            assert found[name][f"lpips{suffix}"] == pytest.approx(lpips(x, y).item(), rel=1e-4)
    for metric in meter.metrics:
        better = found["near"][metric] > found["far"][metric]
        assert better != metric.startswith("lpips"), metric
    assert Meter().metrics == ("psnr", "ssim", "psnr_256", "ssim_256")
    assert Meter()(truth, pictures)["far"] == {m: found["far"][m] for m in Meter().metrics}
