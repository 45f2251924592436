"""The engine interface: a stage file loaded for one device, run on buffers that the caller owns."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...machine import usable_cores
from ..bundle import StageVariant, TensorSpec
from ..errors import EngineError, InputError, MismatchError
from ..onnx_references import check_self_contained

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = ["BoundEngine", "Engine", "ForwardingEngine", "TensorSpec", "check_specs", "thread_count"]

# Each takes memory for its stack: a hundred thousand of them take all there is, in minutes.
_THREADS_MAX = 1024

# Bindings kept per engine and caller. A stream alternates between a handful of buffer sets; a caller who
# passes fresh arrays every time must not make the cache (which keeps the arrays alive) grow.
_BINDINGS = 16


class Engine(ABC):
    """One stage, whatever computes it. Use as a context manager or call `close`.

    Attributes:
        stage: its name in the bundle.
        inputs, outputs: what `run` takes and fills, as in the bundle's manifest.
        description: engine, version, device, precision and threads in one line, for statistics.
        precision: the precision that runs (which may be lower than the file's, when that was asked for).
        graph_refusal: why a CUDA graph cannot hold a run of it; None where one can, which then is all that a
            run does.
    """

    stage: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    description: str
    precision: str
    graph_refusal: str | None = "it does not run in the device's stream"

    @abstractmethod
    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Run the stage, reading `inputs` and overwriting `outputs` in place."""

    def reserve(self, callers: int) -> None:  # noqa: B027 - not every engine keeps anything
        """Prepare for so many callers of `run`, each with buffers of its own."""

    def close(self) -> None:  # noqa: B027
        """Release the engine. Calling twice is harmless."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BoundEngine(Engine):
    """A stage file loaded for one device, which runs on arrays that it checks and binds once."""

    def __init__(self, variant: StageVariant, memory: Device | None = None) -> None:
        """`memory`: arrays lie on this device, and `run` returns before they are written."""
        check_self_contained(variant.path, variant.weights)
        self.stage = variant.stage
        self.inputs = variant.inputs
        self.outputs = variant.outputs
        self._memory = memory
        self._bound: OrderedDict[tuple[int, ...], tuple[list[Any], Callable[[], None]]] = OrderedDict()
        self._capacity = _BINDINGS
        self._closed = False

    def reserve(self, callers: int) -> None:
        """Keep bindings for so many callers with buffers of their own: none is bound anew each time."""
        self._capacity = max(self._capacity, callers * _BINDINGS)

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Run the stage, reading `inputs` and overwriting `outputs` in place, without copies on a CPU.

        Args: NumPy arrays; or arrays of the device that the engine was made for, which are never copied, and
            then the stage is only started, in the device's order.

        The arrays are checked and bound when first seen, so calling again with the same arrays (their
        contents may change) costs neither checks nor allocation.

        Raises:
            InputError: a tensor is missing, or has another shape, dtype or layout than the specification.
            EngineError: the engine failed or is closed.
        """
        if self._closed:
            raise EngineError(f"The engine of stage `{self.stage}` is closed.", "Open the stream again.")
        try:
            arrays = [inputs[spec.name] for spec in self.inputs] + [
                outputs[spec.name] for spec in self.outputs
            ]
        except KeyError as error:
            raise InputError(f"Stage `{self.stage}`: tensor {error.args[0]!r} was not given.") from None
        key = tuple(map(id, arrays))  # unambiguous, since the cache keeps the arrays alive
        entry = self._bound.get(key)
        if entry is None:
            for i, (spec, array) in enumerate(zip(self.inputs + self.outputs, arrays, strict=True)):
                _check_array(self.stage, spec, array, i >= len(self.inputs), self._memory is not None)
            split = len(self.inputs)
            entry = (arrays, self._bind(arrays[:split], arrays[split:]))
            self._bound[key] = entry
            if len(self._bound) > self._capacity:
                self._bound.popitem(last=False)
        else:
            self._bound.move_to_end(key)
        entry[1]()

    @abstractmethod
    def _bind(self, inputs: list[Any], outputs: list[Any]) -> Callable[[], None]:
        """A function that runs the stage on exactly these arrays (in the order of the specifications)."""

    def close(self) -> None:
        """Release the engine, once the device has done what was started: after an error it may be at it."""
        if self._memory is not None and not self._closed:
            with contextlib.suppress(EngineError):  # a lost device runs nothing any more
                self._memory.synchronize()
        self._closed = True
        self._bound.clear()


class ForwardingEngine(Engine):
    """Stands before another engine, to see or to change what passes. Closing it closes that one."""

    graph_refusal = "what passes through it is looked at every time"

    def __init__(self, inner: Engine) -> None:
        self.inner, self.stage = inner, inner.stage
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.precision, self.description = inner.precision, inner.description

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self.inner.run(inputs, outputs)

    def reserve(self, callers: int) -> None:
        self.inner.reserve(callers)

    def close(self) -> None:
        self.inner.close()


def _check_array(stage: str, spec: TensorSpec, array: Any, writable: bool, on_device: bool) -> None:
    where = f"Stage `{stage}`, tensor `{spec.name}`"
    if not on_device and not isinstance(array, np.ndarray):
        raise InputError(f"{where}: a numpy array is needed, not {type(array).__name__}.")
    if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
        raise InputError(f"{where}: {array.dtype}{list(array.shape)} was given, {spec} is needed.")
    writeable = on_device or array.flags.writeable  # device arrays always are
    if not array.flags.c_contiguous or (writable and not writeable):
        raise InputError(f"{where}: the array must be C-contiguous{' and writable' if writable else ''}.")


def check_specs(
    variant: StageVariant,
    kind: str,
    declared: tuple[TensorSpec, ...],
    found: Mapping[str, tuple[str, tuple[object, ...]]],
) -> None:
    """Compare a manifest's tensors with those of the loaded file (name to dtype and shape).

    A first axis that the file leaves free (its size is no positive number) fits every batch.

    Raises:
        MismatchError: they differ; the message names the tensor.
    """
    hint = "The manifest does not describe this file: export the bundle again."
    if found.keys() != {spec.name for spec in declared}:
        names = ", ".join(sorted(spec.name for spec in declared))
        raise MismatchError(
            f"{variant.path.name} has the {kind}s {', '.join(sorted(found))}; the manifest says {names}.",
            hint,
        )
    for spec in declared:
        dtype, shape = found[spec.name]
        free = bool(shape) and not (isinstance(shape[0], int) and shape[0] > 0)
        if free and shape[1:] == spec.shape[1:]:
            shape = spec.shape
        if dtype != spec.dtype or shape != spec.shape:
            raise MismatchError(
                f"{variant.path.name}: {kind} `{spec.name}` is {dtype}{shape}; the manifest says {spec}.",
                hint,
            )


def thread_count(threads: int) -> int:
    """The number of threads to use: 0 means every core this process may run on.

    Raises:
        EngineError: no whole number, a negative one, or more than any machine has cores.
    """
    if not isinstance(threads, (int, np.integer)) or not 0 <= threads <= _THREADS_MAX:
        raise EngineError(
            f"threads is {threads!r}.", f"Use 0 (all cores) or a whole number up to {_THREADS_MAX}."
        )
    return int(threads) or usable_cores()
