"""Latency recording: every sample kept (or the last `capacity`), percentiles on demand, nothing removed."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np


def summarise(samples_ms: np.ndarray) -> dict[str, float]:
    """Statistics of latency samples in milliseconds: count, min, p50, p90, p95, p99, max, mean, std, cv.

    Percentiles interpolate linearly; std is the population's; cv is std / mean. Returns {"count": 0} for no
    samples.
    """
    samples = np.asarray(samples_ms, np.float64)
    if samples.size == 0:
        return {"count": 0}
    p50, p90, p95, p99 = np.percentile(samples, (50, 90, 95, 99))
    mean, std = float(samples.mean()), float(samples.std())
    values = {
        "count": int(samples.size),
        "min": float(samples.min()),
        "p50": float(p50),
        "p90": float(p90),
        "p95": float(p95),
        "p99": float(p99),
        "max": float(samples.max()),
        "mean": mean,
        "std": std,
        "cv": std / mean if mean > 0 else 0.0,
    }
    return values


class Laps:
    """Stopwatch over the parts of one piece of work, each from the end of the one before.

    Args:
        settle: waits until the device has done what was started, so that its time belongs to this part.

    Attributes:
        milliseconds: by the name of the part, in order.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._last = time.perf_counter()
        self.milliseconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """A part has been started, and ends when the device has done it."""
        self._settle()
        self.note(name)

    def note(self, name: str) -> None:
        """A part ends now, whatever the device is still doing."""
        now = time.perf_counter()
        self.milliseconds[name] = (now - self._last) * 1e3
        self._last = now


class LatencyRecorder:
    """Collects latencies per stage.

    Args:
        capacity: keep only the last so many samples of each stage, so that an endless stream needs constant
            memory; None keeps all, which is what a benchmark needs.
    """

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is not None and capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._capacity = capacity
        self._samples: dict[str, array[float]] = {}
        self._seen: dict[str, int] = {}

    def add(self, stage: str, milliseconds: float) -> None:
        """Record one sample. A NaN is a defect of the caller and raises ValueError."""
        if math.isnan(milliseconds):
            raise ValueError(f"latency of {stage} is NaN")
        samples = self._samples.setdefault(stage, array("d"))
        seen = self._seen.get(stage, 0)
        if self._capacity is not None and len(samples) == self._capacity:
            samples[seen % self._capacity] = milliseconds
        else:
            samples.append(milliseconds)
        self._seen[stage] = seen + 1

    def update(self, latencies_ms: Mapping[str, float]) -> None:
        """Record one sample for each of several stages."""
        for stage, value in latencies_ms.items():
            self.add(stage, value)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time a block. A block that raises is not recorded."""
        start = time.perf_counter()
        yield
        self.add(stage, (time.perf_counter() - start) * 1e3)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names that were recorded, in the order of their first samples."""
        return tuple(self._samples)

    def samples(self, stage: str) -> np.ndarray:
        """Raw samples in milliseconds, oldest first, as a copy."""
        samples = np.array(self._samples.get(stage, ()), np.float64)
        if self._capacity is not None and len(samples) == self._capacity:
            samples = np.roll(samples, -(self._seen[stage] % self._capacity))
        return samples

    def recent(self, stage: str, count: int) -> np.ndarray:
        """The last `count` samples in milliseconds, in any order; cheap however many are kept."""
        samples = self._samples.get(stage, array("d"))
        if self._capacity is None or len(samples) < self._capacity:
            return np.array(samples[-count:], np.float64)
        end = self._seen[stage] % self._capacity
        first = max(0, end - count)
        missing = min(count - (end - first), len(samples) - end)
        return np.array(samples[first:end] + samples[len(samples) - missing :], np.float64)

    def seen(self, stage: str) -> int:
        """Samples recorded over the whole life, kept or not."""
        return self._seen.get(stage, 0)

    def summary(self) -> dict[str, dict[str, float]]:
        """`summarise` of every stage; `count` is the number of samples the percentiles rest on."""
        return {stage: summarise(self.samples(stage)) for stage in self._samples}
