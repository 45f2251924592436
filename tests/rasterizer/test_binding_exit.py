"""What the bindings say when the interpreter ends."""

from __future__ import annotations

import subprocess
import sys

LEFT_ALIVE = """
import ctypes
from streamsplat_edge import _core
rasterizer = _core.Rasterizer.__new__(_core.Rasterizer)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(rasterizer))
"""


def test_objects_alive_at_the_end_are_not_reported_to_users() -> None:
    """An interrupt leaves such objects in tracebacks."""
    ended = subprocess.run([sys.executable, "-c", LEFT_ALIVE], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
