"""What machine this is: named beside every measurement. Reads /proc; no dependency, never raises."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

# CPU features that decide which code runs fast.
_FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


def _read(path: str) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text(errors="replace").strip("\x00\n ")
    return ""


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _arm_part(cpu: dict[str, str]) -> str | None:
    """Linux gives Arm cores no name, but numbers: of an Orin 0x41 (Arm) and 0xd42 (Cortex-A78AE)."""
    numbers = cpu.get("CPU implementer"), cpu.get("CPU part")
    return "implementer {}, part {}".format(*numbers) if all(numbers) else None


def cpu_flags() -> frozenset[str]:
    """What the first processor can do, in the words of Linux; empty where the system does not say."""
    cpu = _cpuinfo()
    return frozenset((cpu.get("flags") or cpu.get("Features") or "").split())


def cpu_quota() -> float | None:
    """CPUs that the control group allows (a container's limit), None where unlimited or unknown."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    with contextlib.suppress(ValueError, ZeroDivisionError):
        return int(quota) / int(period)
    with contextlib.suppress(ValueError, ZeroDivisionError):
        value = int(_read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
        return value / int(_read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")) if value > 0 else None
    return None


def _memory_gib(field: str) -> float | None:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith(field + ":"):
            with contextlib.suppress(ValueError, IndexError):
                return round(int(line.split()[1]) / 2**20, 1)
    return None


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def scheduling() -> str:
    """`real-time` under `chrt -f` or `-r`: other programs keep off the cores, nearly an idle machine."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    return "real-time" if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR) else "ordinary"


def describe_machine() -> dict[str, Any]:
    """Name and features of CPU, memory and operating system; None where it cannot be read."""
    cpu, flags = _cpuinfo(), cpu_flags()
    load = None
    with contextlib.suppress(OSError):
        load = [round(v, 2) for v in os.getloadavg()]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "architecture": platform.machine(),
        "device": _read("/proc/device-tree/model") or None,
        "cpu": cpu.get("model name") or cpu.get("Model") or _arm_part(cpu) or platform.processor() or None,
        "cpu_features": [f for f in _FEATURES if f in flags],
        "cores_usable": usable_cores(),
        "cores_total": os.cpu_count(),
        "cpu_quota": cpu_quota(),
        "memory_gib": _memory_gib("MemTotal"),
        "memory_available_gib": _memory_gib("MemAvailable"),
        "load_average": load,
    }


def _distribution() -> str | None:
    with contextlib.suppress(OSError, AttributeError):
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    return None


def source_commit() -> str | None:
    """The commit of the checkout this code runs from ("-dirty" when changed), None when installed."""
    from . import runtime

    root = Path(runtime.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def command_lines(*command: str) -> list[str]:
    """Lines that a program prints; empty where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return []
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.strip().splitlines() if result.returncode == 0 else []


def describe_cuda() -> dict[str, Any]:
    """NVIDIA GPUs by nvidia-smi, or by the driver where that is missing; the release of nvcc, and of a
    Jetson's software."""
    gpus = []
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    for line in command_lines("nvidia-smi", query, "--format=csv,noheader"):
        fields = [field.strip() for field in line.split(",")]
        gpus.append(dict(zip(("name", "driver", "compute_capability", "memory"), fields, strict=False)))
    compiler = command_lines("nvcc", "--version")
    return {
        "gpus": gpus or _gpus_of_driver(),
        "nvcc": compiler[-1] if compiler else None,
        "jetson_release": _jetson(),
    }


def _gpus_of_driver() -> list[dict[str, str]]:
    """Containers may have the driver without its tools, and JetPack 5 has no nvidia-smi."""
    from .runtime.cuda.driver import cuda_device

    gpus: list[dict[str, str]] = []
    while (found := cuda_device(len(gpus))) is not None:
        gpus.append({"name": found.name, "compute_capability": found.capability})
    return gpus


def _jetson() -> str | None:
    return _read("/etc/nv_tegra_release").partition("\n")[0].strip() or None
