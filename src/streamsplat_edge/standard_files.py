"""Standard input, output and errors as a shell may leave them: closed, on a full disk, without a reader."""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

from .runtime.errors import OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_closed() -> None:
    """Opens those that are closed (`2>&-`) on the null device.

    The next file to be opened, an output's perhaps, would get such a number, and hold what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def full(error: OSError) -> OutputError | None:
    """What to tell where writing to standard output failed; None where it is another error."""
    if error.errno not in _FULL or error.filename is not None:
        return None
    return OutputError(
        f"Standard output cannot be written: {error.strerror}.",
        "Free some space, or send it elsewhere. Files that were named as written are whole.",
    )


def give_up(file: TextIO) -> None:
    """What is left to be written goes nowhere, so that the interpreter's end does not complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, file.fileno())
    os.close(null)
