"""Processes that a library leaves behind end with the command: also those whose parent has ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, subprocess
from streamsplat_edge.commands.offspring import ended_with_this

def runs(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True

# The shell ends at once, and leaves a process that has one of its own.
SHELL = "(sleep 600 >/dev/null & echo $!; exec sleep 600 >/dev/null) & echo $!"

earlier = subprocess.Popen(["sleep", "600"])
try:
    with ended_with_this():
        left = subprocess.run(SHELL, shell=True, stdout=subprocess.PIPE, text=True).stdout
        started = [subprocess.Popen(["sleep", "600"]).pid, *map(int, left.split())]
        print([runs(number) for number in started])
        raise SystemExit(7)
finally:
    print([runs(number) for number in started], earlier.poll())
    earlier.kill()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans can be adopted on Linux alone")
def test_what_was_started_inside_is_killed_and_nothing_else() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert result.returncode == 7, result.stderr
    assert result.stdout.splitlines() == ["[True, True, True]", "[False, False, False] None"]
