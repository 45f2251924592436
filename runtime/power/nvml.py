"""NVIDIA GPUs through NVML (`nvidia-ml-py`, where it is installed): identity, state, power, throttling."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

NOT_MEASURED = "not measured"

# Why clocks were lowered, by the end of NVML's names; idling and settings of the user are no throttling.
_THROTTLING = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "temperature (driver)",
    "HwThermalSlowdown": "temperature (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
}


class Gpu:
    """One GPU. What it does not answer is `None` or "not measured", never 0."""

    def __init__(self, api: Any, handle: Any, index: int) -> None:
        self._api, self._handle = api, handle
        self.name = f"GPU {index} ({_text(api.nvmlDeviceGetName(handle))}), GPU alone"

    def watts(self) -> float | None:
        """Power of the board now (newer GPUs: over the last second)."""
        value = self._ask(lambda: self._api.nvmlDeviceGetPowerUsage(self._handle))
        return None if value is None else value / 1e3

    def joules(self) -> float | None:
        """A counter of energy; None where the GPU has none."""
        value = self._ask(lambda: self._api.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if value is None else value / 1e3

    def memory_mib(self) -> float | None:
        """Memory in use on the whole device, of all processes."""
        info = self._ask(lambda: self._api.nvmlDeviceGetMemoryInfo(self._handle))
        return None if info is None else info.used / 2**20

    def throttling(self) -> list[str]:
        """Reasons for which clocks are lowered now."""
        mask = self._ask(lambda: self._api.nvmlDeviceGetCurrentClocksEventReasons(self._handle)) or 0
        return [
            words
            for name, words in _THROTTLING.items()
            if mask & getattr(self._api, f"nvmlClocksEventReason{name}")
        ]

    def state(self) -> dict[str, Any]:
        """Clocks, temperature, power limit, and how many other processes compute on it."""
        api, handle = self._api, self._handle
        processes = self._ask(lambda: api.nvmlDeviceGetComputeRunningProcesses(handle))
        limit = self._ask(lambda: api.nvmlDeviceGetEnforcedPowerLimit(handle))
        values = {
            "sm_mhz": self._ask(lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_SM)),
            "memory_mhz": self._ask(lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_MEM)),
            "temperature_c": self._ask(
                lambda: api.nvmlDeviceGetTemperature(handle, api.NVML_TEMPERATURE_GPU)
            ),
            "power_limit_w": None if limit is None else limit / 1e3,
            "other_processes": None
            if processes is None
            else sum(process.pid != os.getpid() for process in processes),
        }
        known = {name: NOT_MEASURED if value is None else value for name, value in values.items()}
        return {"name": self.name, **known, "throttling": self.throttling()}

    def _ask(self, question: Callable[[], Any]) -> Any:
        with contextlib.suppress(self._api.NVMLError):
            return question()
        return None


class Nvml:
    """The GPUs that NVML sees. `gpus` is empty where there is none, and `problem` then says why.

    Args:
        module: stands in for `pynvml` in tests.
    """

    def __init__(self, module: Any = None) -> None:
        self.gpus: list[Gpu] = []
        self.problem = ""
        self.driver: str | None = None
        try:
            api = importlib.import_module("pynvml") if module is None else module
        except ImportError:
            self.problem = "NVML: nvidia-ml-py is not installed (extra [gpu], or pip install nvidia-ml-py)"
            return
        try:
            api.nvmlInit()
            self.driver = _text(api.nvmlSystemGetDriverVersion())
            for index in range(api.nvmlDeviceGetCount()):
                self.gpus.append(Gpu(api, api.nvmlDeviceGetHandleByIndex(index), index))
        except api.NVMLError as error:
            self.problem = f"NVML: {error}"
        if not self.gpus and not self.problem:
            self.problem = "NVML: there is no GPU"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
