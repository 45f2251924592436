"""Resident memory of this process, and whether it grows."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

_T95 = 1.96
_BLOCKS = 8
_T95_BLOCKS = 2.447  # of 7 differences


def resident_mib() -> float:
    """Resident memory of this process, from /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """The largest resident set of this process so far.

    From /proc, and not from getrusage, whose value a process inherits from the one that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status does not say VmHWM")


class Samples:
    """Resident memory over a run of any length, in constant memory itself.

    Where there is no more room every second one is left out, and from then on they are taken half as often.

    Args:
        every: frames from sample to sample, at first. capacity: samples kept, even.
    """

    def __init__(self, every: int, capacity: int = 512) -> None:
        self.every = every
        self._kept = np.zeros((capacity, 2))
        self._count = 0

    def add(self, frames: int) -> None:
        """Called after every frame with how many there were."""
        if frames % self.every:
            return
        self._kept[self._count] = frames, resident_mib()
        self._count += 1
        if self._count == len(self._kept):
            self._kept[: self._count // 2] = self._kept[1::2].copy()
            self._count //= 2
            self.every *= 2

    def rows(self) -> list[list[float]]:
        """[frames, MiB] of every sample kept."""
        return [[int(frames), mib] for frames, mib in self._kept[: self._count].tolist()]


def slope(memory: list[list[float]]) -> dict[str, float] | None:
    """Least squares over the second half of the samples: bytes per frame, half-width of the 95 % interval.

    Memory comes in pages and arenas, so that it grows in steps: samples are not independent, and an interval
    that takes them for such is far too narrow. The one here is the wider of that and of the interval by the
    differences between the means of eight blocks (Student's t), which a single step does not fool.
    """
    half = np.array(memory[len(memory) // 2 :], np.float64)
    if len(half) < _BLOCKS:
        return None
    x, y = half[:, 0] - half[:, 0].mean(), half[:, 1] * 2**20
    gain = float((x * (y - y.mean())).sum() / (x * x).sum())
    residual = y - y.mean() - gain * x
    independent = _T95 * math.sqrt(float((residual**2).sum()) / (len(half) - 2) / float((x * x).sum()))
    means = np.array([block.mean(0) for block in np.array_split(np.stack([x, y], 1), _BLOCKS)])
    steps = np.diff(means[:, 1]) / np.diff(means[:, 0])
    interval = max(independent, _T95_BLOCKS * float(steps.std(ddof=1)) / math.sqrt(len(steps)))
    return {
        "bytes_per_frame": gain,
        "interval_95": interval,
        "mib_per_100000_frames": gain * 1e5 / 2**20,
        "interval_95_mib_per_100000_frames": interval * 1e5 / 2**20,
        "samples": len(half),
    }
