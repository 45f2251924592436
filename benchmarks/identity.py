"""What was measured, and what the machine was doing: named beside every result of a benchmark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..machine import command_lines, scheduling
from ..runtime.bundle import Bundle
from ..runtime.power import NOT_MEASURED


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Name, size, and files with their hashes, precision recipe, shapes and plans."""
    model = bundle.model
    files = {
        f"{stage}/{variant.path.name}": {
            "sha256": variant.sha256,
            "precision": variant.precision,
            "inputs": {spec.name: list(spec.shape) for spec in variant.inputs},
            "plans": {plan.path.name: plan.entry.sha256 for plan in variant.plans},
        }
        for stage in bundle.stage_names
        for variant in bundle.variants(stage)
    }
    return {
        "name": bundle.name,
        "preset": model.preset,
        "width": model.width,
        "height": model.height,
        "gaussians_per_key_frame": model.gaussians,
        "files": files,
    }


def _system(path: str) -> str:
    try:
        return Path(path).read_text().strip() or NOT_MEASURED
    except OSError:
        return NOT_MEASURED


def state() -> dict[str, Any]:
    """What the machine is doing besides: clocks, temperature, load. Read from /sys and /proc."""
    zone = _system("/sys/class/thermal/thermal_zone0/temp")
    try:
        load: Any = [round(value, 2) for value in os.getloadavg()]
    except OSError:
        load = NOT_MEASURED
    return {
        "cpu_governor": _system("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cpu_khz": _system("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "temperature_c": round(int(zone) / 1e3, 1) if zone.lstrip("-").isdigit() else NOT_MEASURED,
        "load_average": load,
        "power_mode": ", ".join(command_lines("nvpmodel", "-q")) or f"{NOT_MEASURED}: no nvpmodel",
        "scheduling": scheduling(),
    }
