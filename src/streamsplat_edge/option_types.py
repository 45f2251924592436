"""What options accept: each function reads a text, or raises ArgumentTypeError saying what is wrong."""

from __future__ import annotations

import argparse


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
