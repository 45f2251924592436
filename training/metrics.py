"""Measures of a picture against the truth: PSNR, SSIM, LPIPS; at their own size and at 256x256 as published.

    PSNR = 10 log10(peak^2 / mean squared error)                        over all pixels and channels
    SSIM = mean over pixels and channels of
           (2 ma mb + c1) (2 sab + c2) / ((ma^2 + mb^2 + c1) (saa + sbb + c2))

with means m, variances and covariance s under a Gaussian window of sigma 1.5 and 11x11 pixels, c1 = 0.01^2,
c2 = 0.03^2 for values in [0, 1], over the pixels whose window lies inside the image (Z. Wang et al., "Image
Quality Assessment: From Error Visibility to Structural Similarity", 2004). That is what scikit-image computes
with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1`, which its
numbers in the tests pin down. scikit-image is not required for it: with what it brings along it would add
well over 100 MB, and take twice as long, for three lines of arithmetic.

The published evaluation looks at everything at 256x256. `at_paper_size` resizes as it does: bilinear, aspect
ignored, no antialiasing.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.errors import InputError
from .data.sample import F32, U8
from .perceptual import LPIPS

IDENTICAL = 100.0
PAPER_SIZE = 256
SSIM_WINDOW = 11
_SIGMA, _C1, _C2 = 1.5, 0.01**2, 0.03**2

DESCRIPTIONS = {
    "psnr": "dB, uint8 RGB at model resolution; identical frames count as 100",
    "ssim": "Gaussian window 11x11, sigma 1.5, population covariance, mean over RGB",
    "lpips": "version 0.1, smaller is better",
    "psnr_256": "as psnr, of both pictures resized to 256x256 (bilinear), not rounded again",
    "ssim_256": "as ssim, at 256x256",
    "lpips_256": "as lpips, at 256x256",
}


def psnr(a: NDArray[np.generic], b: NDArray[np.generic], peak: float = 255.0) -> float:
    """PSNR in dB of two images of the same shape with values in [0, peak]; at most 100."""
    # Not that of `runtime.compose`, which is of bytes alone, and infinite for equal images: their mean with
    # others would be. It also sums in float64, and so differs in the seventh digit from what was reported.
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return IDENTICAL if error == 0 else min(IDENTICAL, float(10 * np.log10(peak**2 / error)))


def ssim(a: F32, b: F32) -> float:
    """SSIM of two images [H, W, 3] with values in [0, 1], sides of at least 11 pixels.

    Raises:
        InputError: the shapes differ, or the window does not fit.
    """
    if a.shape != b.shape or min(a.shape[:2]) < SSIM_WINDOW:
        raise InputError(
            f"SSIM cannot compare {list(a.shape)} with {list(b.shape)}.",
            f"Give two images of one shape, with sides of at least {SSIM_WINDOW} pixels.",
        )

    def mean(x: F32) -> F32:
        edge = SSIM_WINDOW // 2
        blurred = cv2.GaussianBlur(x, (SSIM_WINDOW, SSIM_WINDOW), _SIGMA)
        return np.asarray(blurred[edge:-edge, edge:-edge], np.float32)

    ma, mb = mean(a), mean(b)
    variances = mean(a * a) - ma * ma + mean(b * b) - mb * mb
    covariance = mean(a * b) - ma * mb
    similarity = (2 * ma * mb + _C1) * (2 * covariance + _C2)
    similarity /= (ma * ma + mb * mb + _C1) * (variances + _C2)
    return float(similarity.mean(dtype=np.float64))


def to_unit(image: U8) -> F32:
    """uint8 -> float32 in [0, 1]."""
    return np.asarray(image, np.float32) / np.float32(255)


def at_paper_size(image: F32) -> F32:
    """float32 [H, W, 3] -> [256, 256, 3], bilinear."""
    return np.asarray(cv2.resize(image, (PAPER_SIZE, PAPER_SIZE), interpolation=cv2.INTER_LINEAR), np.float32)


class Meter:
    """All measures of several pictures of one moment.

    Args:
        lpips: None leaves LPIPS out.
    """

    def __init__(self, lpips: LPIPS | None = None) -> None:
        self._lpips = lpips
        measured = ("psnr", "ssim") if lpips is None else ("psnr", "ssim", "lpips")
        self.metrics: tuple[str, ...] = (*measured, *(f"{name}_{PAPER_SIZE}" for name in measured))

    def __call__(self, truth: U8, pictures: Mapping[str, U8]) -> dict[str, dict[str, float]]:
        """Each picture (uint8 [H, W, 3], as the truth) -> each of `metrics` -> its value."""
        names = list(pictures)
        native = [to_unit(image) for image in (truth, *pictures.values())]
        resized = [at_paper_size(image) for image in native]
        out: dict[str, dict[str, float]] = {name: {} for name in names}
        for images, suffix in ((native, ""), (resized, f"_{PAPER_SIZE}")):
            for name, image in zip(names, images[1:], strict=True):
                # The bytes themselves at native size: what has always been reported, to the last digit.
                pair = (pictures[name], truth, 255.0) if not suffix else (image, images[0], 1.0)
                out[name][f"psnr{suffix}"] = psnr(*pair)
                out[name][f"ssim{suffix}"] = ssim(image, images[0])
            if self._lpips is not None:
                for name, value in zip(names, self._perceptual(self._lpips, images), strict=True):
                    out[name][f"lpips{suffix}"] = value
        return out

    @staticmethod
    def _perceptual(lpips: LPIPS, images: list[F32]) -> list[float]:
        """LPIPS of all but the first image against the first, in one batch."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
            maps = lpips.features(batch)
            distances = lpips.distance([m[:1] for m in maps], [m[1:] for m in maps])
        return [float(value) for value in distances]
