"""Power and energy while something runs: NVML's GPUs, and the INA3221 monitors of a Jetson.

The kernel's driver offers per channel a label, millivolts and milliamperes under `hwmon` (Linux,
Documentation/hwmon/ina3221.rst). Rails of a Jetson overlap: where one measures the whole module (`VDD_IN`),
the total is that one alone, and their sum elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from ..identity import NOT_MEASURED
from .nvml import Nvml

INTERVAL = 0.1  # seconds between readings
_WHOLE_MODULE = "VDD_IN"
_UNCONNECTED = ("NC", "")


class Rail(Protocol):
    """Something whose power can be read."""

    name: str

    def watts(self) -> float | None:
        """Power now; None where it cannot be read at this moment."""

    def joules(self) -> float | None:
        """A counter of energy; None where there is none."""


@dataclass
class InaRail:
    """One channel of an INA3221."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float | None:
        try:
            return int(self.volts.read_text()) * int(self.amperes.read_text()) / 1e6
        except (OSError, ValueError):
            return None

    def joules(self) -> float | None:
        return None


def jetson_rails(root: Path = Path("/sys")) -> list[InaRail]:
    """The channels in use of every INA3221, in the order of their chips; none where there is no such chip."""
    rails = []
    for chip in sorted((root / "class" / "hwmon").glob("hwmon*")):
        if read_text(chip / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            label = read_text(chip / f"in{channel}_label")
            volts, amperes = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            switched_off = read_text(chip / f"in{channel}_enable") == "0"
            if label not in _UNCONNECTED and not switched_off and volts.exists() and amperes.exists():
                rails.append(InaRail(label, volts, amperes))
    return rails


def find_rails(nvml: Nvml, root: Path = Path("/sys")) -> tuple[list[Rail], str]:
    """Everything whose power can be read here; where that is nothing, the reason."""
    rails: list[Rail] = [gpu for gpu in nvml.gpus if gpu.watts() is not None]
    rails += jetson_rails(root)
    if rails:
        return rails, ""
    problem = nvml.problem or "NVML: the GPU does not tell its power"
    return [], f"{problem}; INA3221: no such chip under {root}/class/hwmon"


@dataclass
class _Trace:
    """What one rail said, and when."""

    seconds: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    counter: list[float] = field(default_factory=list)


class PowerMeter:
    """Reads all rails in a thread between entering and leaving.

    Args:
        rails: see `find_rails`. problem: why there is none.
        interval: seconds between readings.
    """

    def __init__(self, rails: Sequence[Rail], problem: str = "", interval: float = INTERVAL) -> None:
        self._rails, self._problem, self._interval = rails, problem, interval
        self._traces = [_Trace() for _ in rails]
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerMeter:
        if self._rails:
            self._read(counters=True)
            self._thread = threading.Thread(target=self._run, name="power", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._read(counters=True)

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._read()

    def _read(self, counters: bool = False) -> None:
        for rail, trace in zip(self._rails, self._traces, strict=True):
            watts = rail.watts()
            if watts is not None:
                trace.seconds.append(time.perf_counter())
                trace.watts.append(watts)
            joules = rail.joules() if counters else None
            if joules is not None:
                trace.counter.append(joules)

    def result(self, frames: int) -> dict[str, Any]:
        """Per rail mean and highest power, energy of the whole time and per frame; and of all together."""
        rails = {}
        for rail, trace in zip(self._rails, self._traces, strict=True):
            if len(trace.watts) >= 2 and trace.seconds[-1] > trace.seconds[0]:
                rails[rail.name] = _summary(trace, frames)
        if not rails:
            reason = self._problem or "no rail answered twice"
            return {"mean_w": NOT_MEASURED, "joules_per_frame": NOT_MEASURED, "reason": reason}
        counted = [_WHOLE_MODULE] if _WHOLE_MODULE in rails else list(rails)
        return {
            "mean_w": sum(rails[name]["mean_w"] for name in counted),
            "joules_per_frame": sum(rails[name]["joules_per_frame"] for name in counted),
            "counted": counted,
            "rails": rails,
        }


def _summary(trace: _Trace, frames: int) -> dict[str, Any]:
    seconds, watts = np.array(trace.seconds), np.array(trace.watts)
    if len(trace.counter) == 2:
        energy, method = trace.counter[1] - trace.counter[0], "energy counter"
    else:
        energy = float(((watts[1:] + watts[:-1]) / 2 * np.diff(seconds)).sum())
        method = "power integrated over time (trapezia)"
    return {
        "mean_w": energy / float(seconds[-1] - seconds[0]),
        "max_w": float(watts.max()),
        "joules": energy,
        "joules_per_frame": energy / frames,
        "method": method,
        "samples_w": [round(float(value), 3) for value in watts],
    }


def read_text(path: Path) -> str:
    """A file of /sys without white space around; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
