"""Checks of dataclasses that are filled from files: every field has the type its annotation says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_types(instance: Any) -> None:
    """Compare the fields of a dataclass instance with their annotations.

    Understands bool, int, float (an int passes, infinity and NaN do not), str, dict, Literal, and tuples of
    these.

    Raises:
        ValueError: names the first field that does not fit, what it should be, and what it is.
    """
    for name, kind in get_type_hints(type(instance)).items():
        value = getattr(instance, name)
        if not _fits(value, kind):
            raise ValueError(f"field {name!r} must be {_in_words(kind)}, not {value!r}")


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse a name that is not among `known`.

    Raises:
        ValueError: names the unknown one and the closest known one.
    """
    known = list(known)
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            rest = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"unknown {what} {name!r} ({rest})")


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin is tuple:
        items = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if len(items) == 2 and items[1] is Ellipsis:
            return all(_fits(v, items[0]) for v in value)
        return len(value) == len(items) and all(map(_fits, value, items))
    if origin is dict:
        return isinstance(value, dict)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def _in_words(kind: Any) -> str:
    origin, items = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, items))
    if origin is tuple:
        if len(items) == 2 and items[1] is Ellipsis:
            return f"a list, each entry {_in_words(items[0])}"
        return f"a list of {len(items)}, each {_in_words(items[0])}"
    return "a table" if origin is dict else _WORDS[kind]
