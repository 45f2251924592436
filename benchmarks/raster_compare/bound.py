"""What any rasterizer must do for a case, counted, and how fast this machine does that, measured.

    bytes           = N * 40 + T * H * W * 20
    multiply-adds   = T * B * 7
    lower bound     = max(bytes / copy rate, multiply-adds / multiply-add rate)

N Gaussians are read once (three floats each of mean, scale and colour, one of opacity), and T images of H
x W pixels written (colour, depth, alpha). B is the number of (Gaussian, pixel) pairs that must be
blended: alpha at least 1/255 and the pixel not yet opaque. Each takes at least seven operations of a
multiply-add unit: the product of the two factors of alpha, the weight, the transmittance, three colours
and a depth. Projection, sorting, binning and everything that is not blended count as nothing.

B is counted by the dense float64 renderer in a sample of pixels (its standard error is stated), which is
also what the images of all methods are compared with. The copy rate is that of a copy of as many bytes,
so that what fits into a cache is copied from there; the multiply-add rate is that of a float32 matrix
product. Both are the best of all rounds of the run at that number of threads: a bound from a rate that is
too high is still a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...runtime.rasterizer import Splats
from .methods import Case, Image, dense_inputs

FORMULA = (
    "bound: max(bytes / copy rate, multiply-adds / multiply-add rate); bytes = N * 40 + T * H * W * 20; "
    "multiply-adds = T * 7 * pairs that must be blended (alpha >= 1/255, pixel not yet opaque), counted in a "
    "sample of pixels; rates: a copy of as many bytes and a float32 matrix product, the best of the same run"
)
MULTIPLY_ADDS = 7
PIXELS = 256
_SIDE = 512  # of the matrix product

Key = TypeVar("Key")


@dataclass(frozen=True)
class Truth:
    """Some pixels of a scene by the dense renderer in float64.

    Attributes:
        pixels: int64 [P] numbers, row by row. image: of these. fragile: bool [P], see `DenseImage`.
        blended: mean number of Gaussians blended per pixel. error: its standard error from sampling.
    """

    pixels: np.ndarray
    image: Image
    fragile: np.ndarray
    blended: float
    error: float

    @classmethod
    def of(cls, case: Case, scene: Splats, most: int = PIXELS) -> Truth:
        """At `most` pixels, drawn without replacement with a fixed seed."""
        import torch

        from ...training import dense_renderer

        total = case.height * case.width
        pixels = np.sort(np.random.default_rng(0).choice(total, min(most, total), replace=False))
        with torch.no_grad():
            dense = dense_renderer.render(
                *dense_inputs(scene, torch.float64), case.height, case.width, pixels=torch.from_numpy(pixels)
            )
        assert dense.fragile is not None
        blended = dense.blended.numpy()
        correction = 1 - len(pixels) / total  # of a sample without replacement: none where it is everything
        return cls(
            pixels,
            Image(*(part.numpy() for part in dense[:3])),
            dense.fragile.numpy(),
            float(blended.mean()),
            float(np.sqrt(blended.var(ddof=1) / len(pixels) * correction)),
        )

    def difference(self, image: Image) -> dict[str, float | int]:
        """The largest of rgb, depth and alpha: at all sampled pixels, and at those that are not fragile."""
        errors = np.zeros(len(self.pixels))
        for got, want in zip(image, self.image, strict=True):
            chosen = got.reshape(-1, *got.shape[2:])[self.pixels].astype(np.float64)
            errors = np.maximum(errors, np.abs(chosen - want).reshape(len(errors), -1).max(1))
        solid = errors[~self.fragile]
        return {
            "pixels": len(errors),
            "fragile": int(self.fragile.sum()),
            "largest": float(errors.max()),
            "largest_where_not_fragile": float(solid.max()) if len(solid) else 0.0,
        }


def bytes_moved(case: Case) -> int:
    """Gaussians read once and images written."""
    return case.gaussians * 40 + case.times * case.height * case.width * 20


def multiply_adds(case: Case, truth: Truth) -> float:
    """Of blending."""
    return MULTIPLY_ADDS * case.times * truth.blended * case.height * case.width


class Rates:
    """The best rates seen in this run. `observe` takes some milliseconds and belongs into every round."""

    def __init__(self) -> None:
        self.multiply_adds_per_second: dict[int, float] = {}  # by threads
        self.copy_bytes_per_second: dict[tuple[int, int], float] = {}  # by threads and bytes

    def observe(self, case: Case) -> None:
        """One matrix product and one copy of the case's bytes, at its number of threads."""
        import torch

        torch.set_num_threads(case.threads)
        a, b = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
        self._best(self.multiply_adds_per_second, case.threads, _SIDE**3 / _seconds(lambda: torch.mm(a, b)))
        moved = bytes_moved(case)
        source, target = torch.ones(moved // 8), torch.ones(moved // 8)  # half is read, half is written
        rate = moved / _seconds(lambda: target.copy_(source))
        self._best(self.copy_bytes_per_second, (case.threads, moved), rate)

    @staticmethod
    def _best(rates: dict[Key, float], key: Key, rate: float) -> None:
        rates[key] = max(rate, rates.get(key, 0.0))

    def bound_ms(self, case: Case, truth: Truth) -> dict[str, float]:
        """Both terms and the larger of them, milliseconds."""
        moved = bytes_moved(case)
        copying = 1e3 * moved / self.copy_bytes_per_second[case.threads, moved]
        blending = 1e3 * multiply_adds(case, truth) / self.multiply_adds_per_second[case.threads]
        return {"copy_ms": copying, "multiply_adds_ms": blending, "ms": max(copying, blending)}


def _seconds(action: Callable[[], object]) -> float:
    """The shorter of two calls; the first one also warms caches and threads."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best
