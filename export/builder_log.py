"""What a TensorRT builder says: its log, kept where it matters, and its progress as a bar."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "cannot allocate", "bad_alloc")


class BuildLog:
    """Collects a builder's messages.

    Attributes:
        logger: to be passed to the builder; keep this object alive as long as the builder.
        errors: messages of severity error and worse.
        layer_lines: the lines of the verbose log that describe layers of the engine.
    """

    def __init__(self, module: Any) -> None:
        self.errors: list[str] = []
        self.layer_lines: list[str] = []
        severity = module.ILogger.Severity
        serious = (severity.INTERNAL_ERROR, severity.ERROR)
        errors, layers = self.errors, self.layer_lines

        class Logger(module.ILogger):
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, level: Any, text: str) -> None:
                if level in serious:
                    errors.append(" ".join(text.split()))
                elif "LayerType: " in text:
                    layers.extend(text.splitlines())

        self.logger = Logger()

    @property
    def out_of_memory(self) -> str:
        """The message that says that memory ran out; empty where none does."""
        for message in self.errors:
            if any(word in message.lower() for word in _MEMORY):
                return message
        return ""


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Python's cyclic collector rests; also usable as a decorator.

    TensorRT calls the logger with a lock of its own held. Were the collector to run inside that call, it
    could free the builder of an earlier build (the traceback of a failed one holds it in a cycle), whose
    destructor waits for the same lock: the process would stop for ever.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def progress_monitor(module: Any, config: Any, title: str, visible: bool) -> Iterator[None]:
    """Show the builder's phases as one bar: steps done of the steps announced so far. Ctrl-C ends the build.

    Raises:
        KeyboardInterrupt: after the builder has stopped.
    """
    bar = tqdm(total=0, desc=title, unit="step", disable=not visible, leave=False)
    interrupted = []

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.left: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.left[phase] = steps
            bar.total += steps
            bar.set_postfix_str(phase)

        def phase_finish(self, phase: str) -> None:
            bar.update(self.left.pop(phase, 0))

        def step_complete(self, phase: str, step: int) -> bool:
            """False asks the builder to stop: an exception must not pass through its C++ frames."""
            try:
                if self.left.get(phase, 0) > 0:
                    self.left[phase] -= 1
                    bar.update(1)
            except KeyboardInterrupt:
                interrupted.append(phase)
            return not interrupted

    monitor = Monitor()
    config.progress_monitor = monitor
    try:
        yield
    finally:
        bar.close()
        config.progress_monitor = None
    if interrupted:
        raise KeyboardInterrupt
