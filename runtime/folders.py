"""Folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def swap_in(scratch: Path, target: Path) -> None:
    """Rename a finished folder to its name; an older one is moved aside, and back on failure.

    Killed in between, the process leaves both: the older one as `.NAME.PID.old`.

    Raises:
        OSError: the system refuses; `target` is what it was.
    """
    if not target.exists():
        scratch.rename(target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed process of this number, and replaced since
    target.rename(aside)
    try:
        scratch.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
