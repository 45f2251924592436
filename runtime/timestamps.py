"""What may be a time stamp: seconds as a number of Python or NumPy."""

from __future__ import annotations

import numpy as np

from .errors import InputError


def check_seconds(value: object) -> float:
    """The time stamp as a float; whether it is finite and in order is for the caller to say.

    Raises:
        InputError: no number, or none that a float can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(
            f"A time stamp must be a number of seconds, not {type(value).__name__}.",
            "Pass a float; nanoseconds are divided by 1e9.",
        )
    try:
        return float(value)
    except OverflowError:
        raise InputError("A time stamp has more digits than a float holds.", "Use finite seconds.") from None
