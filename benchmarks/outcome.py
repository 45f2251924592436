"""How a benchmark ends: its text on stdout and its JSON in a file, or what went wrong on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..commands.report import finite
from ..runtime.errors import StreamSplatError
from ..runtime.video import write_bytes

Result = dict[str, Any]


def write_json(result: Result, path: Path | None) -> None:
    """Write a result, numbers that JSON has no words for as null; nothing without a path.

    Raises:
        OutputError: the disk refuses.
    """
    if path is not None:
        write_bytes(path, (json.dumps(finite(result), indent=1) + "\n").encode())


def carried_out(
    measure: Callable[[], Result], text: Callable[[Result], Sequence[str]], path: Path | None
) -> int:
    """Measure, print and write; returns the exit code, 2 where `measure` or writing raised an error of ours.

    Args:
        measure: gives the result, ready for JSON. text: of it, in lines. path: of the JSON; None writes none.
    """
    try:
        result = measure()
        print("\n".join(text(result)))
        write_json(result, path)
    except StreamSplatError as error:
        print(error.told, file=sys.stderr)
        return 2
    return 0
