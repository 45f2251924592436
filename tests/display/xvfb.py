"""A screen that nobody sees: the X server Xvfb, whose OpenGL is Mesa's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def screen(width: int, height: int) -> Iterator[str]:
    """The server's DISPLAY; the test is skipped where there is no Xvfb."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("no Xvfb (Debian: apt install xvfb libgl1-mesa-dri)")
    ready, told = os.pipe()
    try:
        server = subprocess.Popen(
            [program, "-displayfd", str(told), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"],
            pass_fds=[told],
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(told)  # so that reading ends when the server does
    try:
        with os.fdopen(ready) as answer:
            number = answer.readline().strip()
        if not number:
            pytest.skip("Xvfb does not start")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(timeout=30)
