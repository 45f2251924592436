"""What a library prints while it loads, apart from what the program's other threads print meanwhile."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any

# `sys.stdout` is the whole process's: of two threads that replace it at once, the second would put back what
# the first had put there, and the program's output would be lost from then on.
_one_at_a_time = threading.Lock()


class _Listener:
    """Stands for `sys.stdout`, and keeps what one thread writes to it."""

    def __init__(self, stdout: Any) -> None:
        self._stdout = stdout
        self._thread: int | None = threading.get_ident()
        self.said = io.StringIO()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return self.said.write(text)
        return len(text) if self._stdout is None else self._stdout.write(text)

    def end(self) -> None:
        """Whoever kept a reference writes to the real one from now on."""
        self._thread = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


@contextlib.contextmanager
def overheard() -> Iterator[io.StringIO]:
    """Collects what the calling thread prints. Prints of other threads go where they would have gone."""
    with _one_at_a_time:
        listener = _Listener(sys.stdout)
        with contextlib.redirect_stdout(listener):
            try:
                yield listener.said
            finally:
                listener.end()
