"""What a library starts, and may leave behind, ends with this process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.02
_PATIENCE = 5.0  # seconds, for the system to end what was killed


@contextmanager
def ended_with_this() -> Iterator[None]:
    """Kills on leaving whatever was started inside, directly or not, and still runs.

    Inside, processes whose parent has ended become children of this one (Linux; elsewhere nothing is done).
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = _children()
    _adopt_orphans(True)
    try:
        yield
    finally:
        _kill_children(before)
        _adopt_orphans(False)


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _kill_children(spared: set[int]) -> None:
    """Until there is none: those of a child that was killed come here."""
    end = time.monotonic() + _PATIENCE
    while (children := _children() - spared) and time.monotonic() < end:
        for child in children:
            with suppress(OSError):  # its Popen has waited for it meanwhile
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, os.WNOHANG)
        time.sleep(_POLL_SECONDS)


def _children() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            # The name before it, in parentheses, may hold anything.
            parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(folder.name))
    return found
