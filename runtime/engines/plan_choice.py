"""Which of a stage's TensorRT plans runs on this machine, and whether it may.

A plan runs with the version and on the GPU it was built for. Two settings widen that, as NVIDIA documents
them: `version_compatible` to later versions of the same major release of TensorRT, `hardware_compatible` to
all GPUs from compute capability 8.0 on. TensorRT-RTX has neither: its plans are of one version, and name the
compute capabilities they were made for.
"""

from __future__ import annotations

import os

from ..bundle import Plan, StageVariant
from ..bundle_schema import PlanEntry
from ..cuda import driver
from ..errors import EngineError

TRUST_VARIABLE = "STREAMSPLAT_TRUST_PLANS"
"""Environment variable; 1 lets plans bring code that runs on the host."""


def choose_plan(variant: StageVariant, runtime: str, version: str, device: driver.DeviceInfo) -> Plan:
    """The first plan whose key fits this machine and whose file is whole.

    Raises:
        EngineError: no plan does; the message says what differs, the hint which command builds one.
    """
    reasons = []
    for plan in variant.plans:
        if plan.entry.runtime == runtime:
            reason = _refusal(plan, version, device)
            if not reason:
                return plan
            reasons.append(reason)
    raise EngineError(
        f"Stage `{variant.stage}` has no {runtime} plan for this machine: "
        f"{'; '.join(reasons) or 'it has none'}.",
        rebuild_hint(variant, runtime),
    )


def host_code_allowed(entry: PlanEntry) -> bool:
    """Whether the plan needs to run code of its own on the host; False for most, which need not be trusted.

    Raises:
        EngineError: it does, and the user has not said that it may.
    """
    if not _widened(entry, "version_compatible"):
        return False
    if os.environ.get(TRUST_VARIABLE) != "1":
        raise EngineError(
            f"{entry.file} was built with --version-compatible and brings code that runs on the host.",
            f"Set {TRUST_VARIABLE}=1 if you trust whoever made the bundle, or build a plan of your own.",
        )
    return True


def rebuild_hint(variant: StageVariant, runtime: str) -> str:
    """The command that makes a plan for this machine."""
    return (
        f"Build it: streamsplat-edge build {variant.path.parent} --runtime {runtime} "
        f"--precision {variant.precision}"
    )


def _widened(entry: PlanEntry, setting: str) -> bool:
    return entry.runtime == "tensorrt" and entry.settings.get(setting) is True


def _refusal(plan: Plan, version: str, device: driver.DeviceInfo) -> str:
    """Why the plan does not run here; empty where it does."""
    entry = plan.entry
    if entry.version != version and not (
        _widened(entry, "version_compatible") and _is_later(version, entry.version)
    ):
        return f"built with {entry.runtime} {entry.version}, here is {version}"
    if not (_widened(entry, "hardware_compatible") and _numbers(device.capability) >= (8, 0)):
        if entry.device not in ("any", device.name):
            return f"built on {entry.device}, here is {device.name}"
        if device.capability not in entry.compute_capability.split(", "):
            return f"built for compute capability {entry.compute_capability}, here is {device.capability}"
    problem = plan.problem()
    return f"{entry.file} {problem}" if problem else ""


def _is_later(version: str, built: str) -> bool:
    here, there = _numbers(version), _numbers(built)
    return here[:1] == there[:1] and here >= there


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version ("10.13.2.post1" is 10, 13, 2)."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
