"""What options accept: each function reads a text, or raises ArgumentTypeError saying what is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .machine import usable_cores


class Given(argparse.Action):
    """Stores the value, and the option in `given`: also who gives a default expects something of it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.option_strings[0]}


def whole(text: str, minimum: int) -> int:
    """A whole number of at least `minimum`."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be {minimum} or more")
    return value


def count(text: str) -> int:
    """0 or more."""
    return whole(text, 0)


def threads(text: str) -> int:
    """0 (all cores) or more; beyond the cores there are, as many as these, with a note."""
    wanted, cores = count(text), usable_cores()
    if wanted > cores:
        have = f"{cores} cores" if cores > 1 else "1 core"
        print(f"note: --threads {wanted}: this process may use {have}; {cores} will run", file=sys.stderr)
    return min(wanted, cores)


def positive(text: str) -> int:
    """1 or more."""
    return whole(text, 1)


def rate(text: str) -> float:
    """Frames per second."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:  # refuses NaN as well
        raise argparse.ArgumentTypeError("must be a number of frames per second, more than 0, at most 1000")
    return value
