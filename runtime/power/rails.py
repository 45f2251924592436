"""What has a power that can be read here: NVML's GPUs, and the INA3221 monitors of a Jetson.

The kernel's driver offers per channel a label, millivolts and milliamperes under `hwmon` (Linux,
Documentation/hwmon/ina3221.rst).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .nvml import Nvml

WHOLE_MODULE = "VDD_IN"
"""Rails of a Jetson overlap: where this one is there it measures the whole module, the others parts of it."""

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


def counted(names: list[str]) -> list[str]:
    """Those of the rails that a total adds up: the whole module alone where it is measured, else all."""
    return [WHOLE_MODULE] if WHOLE_MODULE in names else names


def read_text(path: Path) -> str:
    """A file of /sys without white space around; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
