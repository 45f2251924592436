"""Whether the machine was held back meanwhile: by heat, by a power limit or by its control group."""

from __future__ import annotations

from pathlib import Path

from ...runtime.power import Nvml
from ...runtime.power.rails import read_text

_COUNTERS = {
    "the CPU was too hot (core)": "devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
    "the CPU was too hot (package)": "devices/system/cpu/cpu*/thermal_throttle/package_throttle_count",
}
_COOLING = "class/thermal/cooling_device*"


class ThrottleWatch:
    """Looks when made and when asked; counters tell what happened between, the rest is of the two moments.

    Args:
        nvml: GPUs to ask. sys, cgroup: where /sys and the control group of this process are.
    """

    def __init__(
        self, nvml: Nvml, sys: Path = Path("/sys"), cgroup: Path = Path("/sys/fs/cgroup/cpu.stat")
    ) -> None:
        self._nvml, self._sys, self._cgroup = nvml, sys, cgroup
        self._before = self._counts()
        self._now = self._moment()

    def reasons(self) -> list[str]:
        """Why the machine was slower than it could be; empty where nothing says so."""
        after = self._counts()
        grown = [name for name, value in after.items() if value > self._before.get(name, value)]
        return sorted({*grown, *self._now, *self._moment()})

    def _counts(self) -> dict[str, int]:
        counts = {}
        for name, pattern in _COUNTERS.items():
            values = [number for path in self._sys.glob(pattern) if (number := _number(path)) is not None]
            if values:
                counts[name] = sum(values)
        try:
            fields = dict(line.split() for line in self._cgroup.read_text().splitlines())
            counts["the control group's CPU quota was used up"] = int(fields["nr_throttled"])
        except (OSError, ValueError, KeyError):
            pass  # no control group, or one without a quota
        return counts

    def _moment(self) -> list[str]:
        reasons = [f"{gpu.name}: {reason}" for gpu in self._nvml.gpus for reason in gpu.throttling()]
        for device in sorted(self._sys.glob(_COOLING)):
            kind = read_text(device / "type")
            # Fans cool without slowing anything; these two take clocks away.
            if any(word in kind for word in ("cpufreq", "devfreq")) and (_number(device / "cur_state") or 0):
                reasons.append(f"{kind} lowers clocks")
        return reasons


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text.isdigit() else None
