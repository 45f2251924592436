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
too high is still a bound. Where a method runs on a GPU, torch measures that processor's rates as well: a
rasterizer is compared with the bound of where it runs.
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
_SIDE = {"cpu": 512, "cuda": 4096}  # of the matrix product: large enough to fill the processor

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
    """The best rates seen in this run. `observe` takes some milliseconds and belongs into every round.

    Attributes:
        multiply_adds_per_second: by processor ("cpu" or "cuda") and threads (0 on a GPU).
        copy_bytes_per_second: the same, and by bytes.
    """

    def __init__(self) -> None:
        self.multiply_adds_per_second: dict[tuple[str, int], float] = {}
        self.copy_bytes_per_second: dict[tuple[str, int, int], float] = {}

    def observe(self, case: Case, processor: str = "cpu") -> None:
        """One matrix product and one copy of the case's bytes, on the CPU at its number of threads."""
        import torch

        threads = case.threads if processor == "cpu" else 0
        if threads:
            torch.set_num_threads(threads)

        def seconds(action: Callable[[], object]) -> float:
            return _seconds(action, torch.cuda.synchronize if processor == "cuda" else lambda: None)

        side = _SIDE[processor]
        a = torch.ones(side, side, device=processor)
        b = a.clone()
        self._best(
            self.multiply_adds_per_second, (processor, threads), side**3 / seconds(lambda: torch.mm(a, b))
        )
        moved = bytes_moved(case)
        source = torch.ones(moved // 8, device=processor)  # half is read, half is written
        target = source.clone()
        rate = moved / seconds(lambda: target.copy_(source))
        self._best(self.copy_bytes_per_second, (processor, threads, moved), rate)

    @staticmethod
    def _best(rates: dict[Key, float], key: Key, rate: float) -> None:
        rates[key] = max(rate, rates.get(key, 0.0))

    def bounds_ms(self, case: Case, truth: Truth) -> dict[str, dict[str, float]]:
        """By processor that was observed for the case: both terms and the larger of them, milliseconds."""
        moved, found = bytes_moved(case), {}
        for processor, threads in (("cpu", case.threads), ("cuda", 0)):
            if (processor, threads, moved) in self.copy_bytes_per_second:
                copying = 1e3 * moved / self.copy_bytes_per_second[processor, threads, moved]
                rate = self.multiply_adds_per_second[processor, threads]
                blending = 1e3 * multiply_adds(case, truth) / rate
                found[processor] = {
                    "copy_ms": copying,
                    "multiply_adds_ms": blending,
                    "ms": max(copying, blending),
                }
        return found


def _seconds(action: Callable[[], object], finish: Callable[[], object]) -> float:
    """The shorter of two calls; the first one also warms caches and threads."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        action()
        finish()
        best = min(best, time.perf_counter() - start)
    return best
