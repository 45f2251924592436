"""Mean and highest power and the energy of a stretch of time, over all rails, in constant memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from .nvml import NOT_MEASURED
from .rails import Rail, counted

INTERVAL = 0.1  # seconds between readings


@dataclass
class _Trace:
    """What one rail said: the sums, and where wanted every reading."""

    began: float = 0.0
    at: float = 0.0
    last: float = 0.0
    joules: float = 0.0
    highest: float = 0.0
    readings: int = 0
    counter: list[float] = field(default_factory=list)
    samples: list[float] | None = None

    def add(self, at: float, watts: float) -> None:
        if self.readings:
            self.joules += (watts + self.last) / 2 * (at - self.at)
        else:
            self.began = at
        self.at, self.last, self.highest = at, watts, max(self.highest, watts)
        self.readings += 1
        if self.samples is not None:
            self.samples.append(round(watts, 3))

    @property
    def seconds(self) -> float:
        return self.at - self.began

    def summary(self, frames: int) -> dict[str, Any]:
        energy, method = self.joules, "power integrated over time (trapezia)"
        if len(self.counter) == 2:
            energy, method = self.counter[1] - self.counter[0], "energy counter"
        values = {
            "mean_w": energy / self.seconds,
            "max_w": self.highest,
            "joules": energy,
            "joules_per_frame": energy / frames if frames else None,
            "method": method,
            "readings": self.readings,
        }
        return values if self.samples is None else values | {"samples_w": self.samples}


class PowerMeter:
    """Reads all rails in a thread between entering and leaving.

    Args:
        rails: see `find_rails`. problem: why there is none.
        interval: seconds between readings.
        keep: every reading, too, not only the sums; a stream may run for days.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        rails: Sequence[Rail],
        problem: str = "",
        interval: float = INTERVAL,
        *,
        keep: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._rails, self._problem, self._interval, self._clock = rails, problem, interval, clock
        self._traces = [_Trace(samples=[] if keep else None) for _ in rails]
        self._counted = set(counted([rail.name for rail in rails]))
        self._highest = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerMeter:
        if self._rails:
            self.read(counters=True)
            self._thread = threading.Thread(target=self._run, name="power", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """The last reading. Calling twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.set()
            thread.join()
            self.read(counters=True)

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.read()

    def read(self, counters: bool = False) -> None:
        """One reading of every rail; `counters`: of the energy counters, too, at both ends."""
        total, complete = 0.0, True
        for rail, trace in zip(self._rails, self._traces, strict=True):
            watts = rail.watts()
            if watts is not None:
                trace.add(self._clock(), watts)
            if rail.name in self._counted:
                total, complete = total + (watts or 0.0), complete and watts is not None
            joules = rail.joules() if counters else None
            if joules is not None:
                trace.counter.append(joules)
        if complete:  # a total without one of its parts would be no total
            self._highest = max(self._highest, total)

    def result(self, frames: int) -> dict[str, Any]:
        """What was measured until `stop`, for JSON.

        Args:
            frames: that were made meanwhile.

        Returns:
            mean_w, max_w (highest reading), joules and joules_per_frame over the rails `counted`, and the
            same of each of the `rails`. Where nothing could be read: "not measured" each, and a `reason`.
        """
        rails = {
            rail.name: trace.summary(frames)
            for rail, trace in zip(self._rails, self._traces, strict=True)
            if trace.readings >= 2 and trace.seconds > 0
        }
        if not rails:
            reason = self._problem or "no rail answered twice"
            names = ("mean_w", "max_w", "joules", "joules_per_frame")
            return {name: NOT_MEASURED for name in names} | {"reason": reason}
        parts = counted(list(rails))
        whole = self._highest if set(parts) == self._counted and self._highest else NOT_MEASURED
        joules = sum(rails[name]["joules"] for name in parts)
        return {
            "mean_w": sum(rails[name]["mean_w"] for name in parts),
            "max_w": whole,
            "joules": joules,
            "joules_per_frame": joules / frames if frames else None,
            "counted": parts,
            "rails": rails,
        }
