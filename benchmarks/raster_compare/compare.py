"""The sweeps: every case rendered by every method, in rounds, after a check that they agree."""

from __future__ import annotations

import datetime
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...commands import report
from ...machine import describe_cuda, describe_machine
from ...runtime.errors import StreamSplatError
from ..identity import state
from ..rasterizer import make_scene
from .bound import FORMULA, Rates, Truth, multiply_adds
from .methods import Case, Method, Prepared

FORMAT, VERSION = "streamsplat-raster-compare", 1
MEASURED, NOT_RUN, DISAGREES = "measured", "not run", "disagrees"
AXES = ("gaussians", "pixels", "sigma_px", "threads", "times")
_ROUND_SECONDS = 0.02  # a fast method renders several times per round
_MOST_PER_ROUND, _MOST_SAMPLES = 10, 200
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Sweep:
    """Cases that differ from the base in one thing each.

    Attributes:
        base: belongs to every axis. gaussians, sizes (height, width), sigmas, threads, times: the values.
    """

    base: Case
    gaussians: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    threads: tuple[int, ...]
    times: tuple[int, ...]

    def cases(self) -> Iterator[tuple[Case, list[str]]]:
        """Every case once, with the axes it belongs to."""
        found: dict[Case, list[str]] = {self.base: list(AXES)}
        varied = [("gaussians", replace(self.base, gaussians=n)) for n in self.gaussians]
        varied += [("pixels", replace(self.base, height=h, width=w)) for h, w in self.sizes]
        varied += [("sigma_px", replace(self.base, sigma_px=sigma)) for sigma in self.sigmas]
        varied += [("threads", replace(self.base, threads=count)) for count in self.threads]
        varied += [("times", replace(self.base, times=count)) for count in self.times]
        for axis, case in varied:
            axes = found.setdefault(case, [])
            if axis not in axes:
                axes.append(axis)
        yield from found.items()


def full(cores: int) -> Sweep:
    """What is published: half a Gaussian per pixel, as in the preset `small`, where nothing else is said."""
    powers = [1 << n for n in range(10) if 1 << n <= cores]
    return Sweep(
        Case(4608, 72, 128, 2.0, cores, 1),
        gaussians=(288, 1152, 4608, 18432, 73728),
        sizes=((36, 64), (72, 128), (144, 256), (288, 512), (576, 1024)),
        sigmas=(0.5, 1.0, 2.0, 4.0, 8.0),
        threads=tuple(sorted({*powers, cores})),
        times=(1, 2, 6, 16),
    )


def quick(cores: int) -> Sweep:
    """A few small cases, to see that everything works."""
    return Sweep(
        Case(288, 36, 64, 2.0, cores, 1), (288, 1152), ((36, 64), (72, 128)), (2.0, 4.0), (cores,), (1, 2)
    )


def compare(sweep: Sweep, methods: Sequence[Method], seconds: float) -> dict[str, Any]:
    """The whole report, ready for JSON.

    Args:
        seconds: per case; at least three rounds are made.
    """
    before = state()
    rates = Rates()
    measured: list[tuple[Case, Truth, dict[str, Any]]] = []
    for case, axes in sweep.cases():
        print(
            f"{case.gaussians} Gaussians, {case.width}x{case.height}, sigma {case.sigma_px:g} px, ",
            end="",
            file=sys.stderr,
        )
        print(f"{case.threads} threads, {case.times} times ...", file=sys.stderr, flush=True)
        truth, rows = measure(case, methods, rates, seconds)
        measured.append((case, truth, {"axes": axes, **asdict(case), "methods": rows}))
    cases = []
    for case, truth, row in measured:
        work = {
            "blended_per_pixel": truth.blended,
            "standard_error": truth.error,
            "pixels_counted": len(truth.pixels),
            "multiply_adds": multiply_adds(case, truth),
        }
        # Only now: the rates are the best of the whole run.
        cases.append(row | {"work": work, "bounds": rates.bounds_ms(case, truth)})
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "cuda": describe_cuda(),
        "software": report.software("torch", "gsplat", "cupy-cuda13x")
        | {"python": platform.python_version()},
        "state": {"before": before, "after": state()},
        "protocol": {
            "base": asdict(sweep.base),
            "rounds": "one process; in each round every method in turn, then the rates",
            "inside_the_clock": "from Gaussians in world space to finished float images, nothing removed; "
            "GPU methods by the host's clock until the device has finished",
            "cpu_p50_ms": "CPU time of the process, all threads: what others do on the machine is not in it",
            "seconds_per_case": seconds,
            "agreement": "largest difference of rgb, depth and alpha from the dense renderer in float64, "
            "in a sample of pixels, before anything is timed",
        },
        "methods": {m.name: {"title": m.title, "tolerance": m.tolerance} for m in methods},
        "formula": FORMULA,
        "rates": {
            "multiply_adds_per_second": {
                f"{p}, {t} threads": rate for (p, t), rate in rates.multiply_adds_per_second.items()
            },
            "copy_bytes_per_second": {
                f"{p}, {t} threads, {size} bytes": rate
                for (p, t, size), rate in rates.copy_bytes_per_second.items()
            },
        },
        "cases": cases,
    }


def measure(
    case: Case, methods: Sequence[Method], rates: Rates, seconds: float
) -> tuple[Truth, list[dict[str, Any]]]:
    """One case: the truth and a row per method."""
    scene = make_scene(case.gaussians, case.height, case.width, case.sigma_px)
    truth = Truth.of(case, scene)
    rows: list[dict[str, Any]] = []
    ready: list[tuple[dict[str, Any], Prepared, list[tuple[float, float]]]] = []
    on_gpu = False
    for method in methods:
        row: dict[str, Any] = {"method": method.name}
        rows.append(row)
        try:
            prepared = method.prepare(case, scene)
            prepared.run()  # also the warm-up
        except StreamSplatError as error:
            row |= {"status": NOT_RUN, "reason": str(error)}
            continue
        row["agreement"] = truth.difference(prepared.image())
        off = row["agreement"]["largest_where_not_fragile"]
        if not off <= method.tolerance:
            row |= {
                "status": DISAGREES,
                "reason": f"differs by {off:.1e}, more than {method.tolerance:.0e}",
            }
            continue
        ready.append((row, prepared, []))
        on_gpu |= not method.on_cpu
    processors = ["cpu", "cuda"] if on_gpu and _torch_sees_a_gpu() else ["cpu"]
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for _, prepared, samples in ready:
            samples += _one_round(prepared)
        for processor in processors:
            rates.observe(case, processor)
        if all(len(samples) >= _MOST_SAMPLES for *_, samples in ready):
            break
    for row, _, samples in ready:
        walls = [wall for wall, _ in samples]
        row |= {"status": MEASURED, "rounds": rounds, **_percentiles(walls)}
        row["cpu_p50_ms"] = float(np.median([cpu for _, cpu in samples]))
        row["samples_ms"] = [float(f"{wall:.4g}") for wall in walls]
    return truth, rows


def _torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _one_round(prepared: Prepared) -> list[tuple[float, float]]:
    """Milliseconds of some calls: by the clock, and of all cores together."""
    samples: list[tuple[float, float]] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while not samples or (len(samples) < _MOST_PER_ROUND and time.perf_counter() < end):
        cpu, start = time.process_time(), time.perf_counter()
        prepared.run()
        wall = time.perf_counter() - start
        samples.append((wall * 1e3, (time.process_time() - cpu) * 1e3))
    return samples


def _percentiles(samples: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = (float(value) for value in np.percentile(samples, (50, 90, 99)))
    return {"count": len(samples), "min_ms": min(samples), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
