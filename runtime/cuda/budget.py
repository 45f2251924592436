"""Device memory of a bundle's Gaussians and images, counted from the very buffers without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import InputError
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
    """Bytes.

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

    def milliseconds(self, run: Callable[[], None]) -> float:
        raise InputError("Nothing runs on a device that only counts.")

    def record(self) -> Any:
        raise InputError("Nothing runs on a device that only counts.")

    def synchronize(self) -> None:
        pass


def budget(bundle: Bundle) -> Budget:
    """What one stream of this bundle needs with the first file of each stage.

    Activations and workspace of the engines, and the CUDA context, come on top: only a built plan knows them.
    """
    device = CountingDevice()
    first = {stage: bundle.variants(stage)[0] for stage in bundle.stage_names}
    inputs: dict[str, tuple[int, ...]] = {
        s: first[s].inputs[0].shape for s in ("depth", "condition") if s in first
    }
    condition = first["condition"].outputs[0].shape if "condition" in first else None
    CudaScene(device, bundle.model, inputs, condition)
    weights = {}
    for stage, variant in first.items():
        files = [variant.path] + ([variant.weights] if variant.weights is not None else [])
        weights[stage] = sum(path.stat().st_size for path in files)
    return Budget(device.device_bytes, device.pinned_bytes, weights)


def board_bytes(name: str) -> int:
    """Memory of a board.

    Raises:
        InputError: it is none of `BOARDS`.
    """
    if name not in BOARDS:
        raise InputError(f"There is no board {name!r}.", f"Use one of {', '.join(BOARDS)}.")
    return BOARDS[name] << 30
