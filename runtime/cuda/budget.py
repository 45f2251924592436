"""Device memory of a bundle's Gaussians and images, counted from the very buffers without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..bundle_schema import ModelConfig
from ..errors import DeviceMemoryError, InputError
from .presets import PRESETS, Preset
from .scene import CudaScene

BOARDS = {
    "orin-nano-4": 4,
    "orin-nano-8": 8,
    "orin-nx-8": 8,
    "orin-nx-16": 16,
    "agx-orin-32": 32,
    "agx-orin-64": 64,
    "agx-thor": 128,
}
"""GiB of memory per Jetson module, which CPU and GPU share."""


@dataclass(frozen=True)
class Budget:
    """What one stream needs of a GPU's memory, in bytes.

    Attributes:
        scene: ring of key frames, motion and fade, rasterizer, inputs. pinned: host memory beside it, which
            on a Jetson is the same memory.
        weights: per stage, of the file in the bundle (a plan of the same precision is about as large).
    """

    scene: int
    pinned: int
    weights: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return self.scene + self.pinned + sum(self.weights.values())


class CountingDevice:
    """A `Device` that has no memory and counts what it is asked for."""

    description, kind, index, queue = "counts", "none", 0, 0

    def __init__(self) -> None:
        self.device_bytes = self.pinned_bytes = 0

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = np.broadcast_to(np.zeros((), dtype), shape)  # one element, whatever the shape
        self.device_bytes += array.nbytes
        return array

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = np.broadcast_to(np.zeros((), dtype), shape)
        self.pinned_bytes += array.nbytes
        return array

    def shared(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        array = self.zeros(shape, dtype)  # once: on all `BOARDS`, GPU and CPU have the same memory
        return array, array

    def adopt(self, array: Any) -> Any:
        return array

    def address(self, array: Any) -> int:
        return 0

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: np.ndarray) -> None:
        raise InputError("Nothing runs on a device that only counts.")

    def copy(self, target: Any, source: Any) -> None:
        raise InputError("Nothing runs on a device that only counts.")

    def capture(self, enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        raise InputError("Nothing runs on a device that only counts.")

    def follow_default(self) -> None:
        raise InputError("Nothing runs on a device that only counts.")

    def milliseconds(self, run: Callable[[], None]) -> float:
        raise InputError("Nothing runs on a device that only counts.")

    def record(self) -> Any:
        raise InputError("Nothing runs on a device that only counts.")

    def synchronize(self) -> None:
        pass


def budget(bundle: Bundle) -> Budget:
    """What one stream of this bundle needs with the first file of each stage that is not for CPUs alone.

    Activations and workspace of the engines, and the CUDA context, come on top: only a built plan knows them.
    """
    first = {
        s: next(v for v in bundle.variants(s) if any(v.pays(engine, "cuda") for engine in v.engines))
        for s in bundle.stage_names
    }
    inputs: dict[str, tuple[int, ...]] = {
        s: first[s].inputs[0].shape for s in ("depth", "condition") if s in first
    }
    condition = first["condition"].outputs[0].shape if "condition" in first else None
    weights = {}
    for stage, variant in first.items():
        files = [variant.path] + ([variant.weights] if variant.weights is not None else [])
        weights[stage] = sum(path.stat().st_size for path in files)
    return _counted(bundle.model, inputs, condition, weights)


def preset_budget(preset: Preset) -> Budget:
    """What one stream of a preset needs, with weights in fp32."""
    return _counted(preset.model, preset.inputs, preset.condition, {"all stages": 4 * preset.parameters})


def _counted(
    model: ModelConfig,
    inputs: Mapping[str, tuple[int, ...]],
    condition: tuple[int, ...] | None,
    weights: dict[str, int],
) -> Budget:
    device = CountingDevice()
    CudaScene(device, model, inputs, condition)
    return Budget(device.device_bytes, device.pinned_bytes, weights)


def explained(error: DeviceMemoryError, bundle: Bundle) -> DeviceMemoryError:
    """The same error, with what the bundle needs, and which presets would fit."""
    need = budget(bundle)
    message = (
        f"{error.message} A stream of {bundle.name} needs at least {_mib(need.total)}: Gaussians and images "
        f"{_mib(need.scene)}, pinned {_mib(need.pinned)}, weights {_mib(sum(need.weights.values()))}; "
        "activations of the engines and the CUDA context come on top."
    )
    return DeviceMemoryError(message, f"{error.hint} {_advice(error.available)}".strip(), error.available)


def _advice(available: int | None) -> str:
    """Which presets would fit into so many bytes, with weights in fp32."""
    needs = {name: preset_budget(preset).total for name, preset in PRESETS.items()}
    if available is None:
        return f"Presets need at least: {_listed(needs)}."
    fit = {name: need for name, need in needs.items() if need <= available}
    others = {name: need for name, need in needs.items() if name not in fit}
    parts = [f"would fit into the {_mib(available)} there: {_listed(fit) or 'no preset'}"]
    if others:
        parts.append(f"would not: {_listed(others)}")
    return f"By what they need at least (fp32), {'; '.join(parts)}."


def _listed(needs: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({_mib(need)})" for name, need in sorted(needs.items(), key=lambda n: n[1]))


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def board_bytes(name: str) -> int:
    """Memory of a Jetson module, in bytes.

    Raises:
        InputError: it is none of `BOARDS`.
    """
    if name not in BOARDS:
        raise InputError(f"There is no board {name!r}.", f"Use one of {', '.join(BOARDS)}.")
    return BOARDS[name] << 30
