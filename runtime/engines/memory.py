"""Engines that run out of device memory, told apart from those that fail otherwise by what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cuda import driver
from ..errors import DeviceMemoryError, EngineError

if TYPE_CHECKING:
    from ..cuda.device import Device

# Of CUDA, cuBLAS and cuDNN, and of ONNX Runtime's arena.
_WORDS = ("out of memory", "outofmemory", "alloc_failed", "failed to allocate", "bad_alloc", "bad allocation")


def failure(message: str, hint: str, memory: Device | None) -> EngineError:
    """The error for what an engine said: `DeviceMemoryError` where it speaks of memory and runs on a GPU.

    Args:
        message: with the engine's own words. hint: for other failures. memory: the GPU; None is the host.
    """
    if memory is not None and any(word in message.lower() for word in _WORDS):
        return out_of_memory(message, memory.index)
    return EngineError(message, hint)


def out_of_memory(message: str, index: int = 0) -> DeviceMemoryError:
    """The error, with what is free on the device, if it can be asked."""
    device = driver.cuda_device(index)
    free = None if device is None else device.free_bytes
    told = "how much is free cannot be read" if free is None else f"{free / 2**20:.0f} MiB are free"
    return DeviceMemoryError(
        f"{message.rstrip('.')} ({told}).",
        "Close what else uses the GPU, or use a smaller preset or a lower precision.",
        free,
    )
