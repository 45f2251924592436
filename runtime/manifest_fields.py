"""Reading untrusted JSON: strict decoding, and one reader per kind of value that names the field it refuses.

Every reader takes a decoded value and the dotted name of its field, returns what the manifest means by it,
and raises `BundleError` for anything else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from .errors import BundleError

VERSION = 1
MANIFEST_NAME = "bundle.json"
REEXPORT = "Re-export the bundle with `streamsplat-edge export`."


def fail(field: str, problem: str, hint: str = REEXPORT) -> BundleError:
    """A refusal that names the manifest field."""
    return BundleError(f"{MANIFEST_NAME}: field `{field}` {problem}.", hint)


def show(value: object) -> str:
    """A value for a message, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def as_object(value: object, field: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """A JSON object; with `keys`, exactly these fields."""
    if not isinstance(value, dict):
        raise fail(field, f"must be an object, not {show(value)}")
    if keys is not None:
        wanted = set(keys)
        where = "" if field == "(top level)" else f"{field}."
        for key in sorted(value.keys() - wanted):
            raise fail(
                where + key,
                f"is unknown to bundle version {VERSION}",
                "Remove it, or install the streamsplat-edge version that wrote this bundle.",
            )
        for key in sorted(wanted - value.keys()):
            raise fail(where + key, "is missing")
    return value


def as_list(value: object, field: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise fail(field, f"must be a list, not {show(value)}")
    return value


def as_text(value: object, field: str, pattern: str = r".+") -> str:
    """A printable string that matches `pattern` as a whole."""
    # Not printable: control sequences for the terminal that shows the name, or halves of characters.
    if not isinstance(value, str) or not re.fullmatch(pattern, value) or not value.isprintable():
        detail = "a non-empty printable string" if pattern == r".+" else f"a string of the form {pattern}"
        raise fail(field, f"must be {detail}, not {show(value)}")
    return value


def as_choice(value: object, field: str, allowed: tuple[str, ...]) -> str:
    """One of the `allowed` strings."""
    if not isinstance(value, str) or value not in allowed:
        raise fail(field, f"must be one of {', '.join(allowed)}, not {show(value)}")
    return value


def as_integer(value: object, field: str, maximum: int = 2**62) -> int:
    """A whole number from 1 to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise fail(field, f"must be an integer of at least 1, not {show(value)}")
    if value > maximum:
        raise fail(field, f"must be at most {maximum}, not {show(value)}")
    return value


def as_number(value: object, field: str, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise fail(field, f"must be a number from {low:g} to {high:g}, not {show(value)}")
    return float(value)


def as_sequence(
    value: object, field: str, length: int, read: Callable[[object, str], Any]
) -> tuple[Any, ...]:
    """A JSON list of `length` entries, each read by `read(entry, its field)`."""
    items = as_list(value, field)
    if len(items) != length:
        raise fail(field, f"must have {length} entries, not {len(items)}")
    return tuple(read(item, f"{field}[{i}]") for i, item in enumerate(items))


def as_file_name(value: object, field: str) -> str:
    """A relative POSIX path that by its wording stays inside the bundle (links: see `Bundle.load`)."""
    name = as_text(value, field)
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name
    if not inside or "\0" in name or path.as_posix() != name or path.name in ("", MANIFEST_NAME):
        raise fail(
            field,
            f"must name a file inside the bundle folder, not {show(name)}",
            "Do not use this bundle unless you trust its origin: its manifest points outside its folder.",
        )
    return name


def as_sha256(value: object, field: str) -> str:
    """A SHA-256 in hexadecimal."""
    return as_text(value, field, r"[0-9a-f]{64}")


def decode_json(text: str, source: str) -> object:
    """Strict JSON: repeated keys and numbers that are none are refused, a syntax error says where.

    Raises:
        BundleError: the text is not (complete) JSON.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            names = [key for key, _ in items]
            raise fail(next(key for key in names if names.count(key) > 1), "appears twice")
        return result

    def constant(name: str) -> float:
        raise BundleError(f"{source}: {name} is not a JSON number.", REEXPORT)

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits)

    def integer(digits: str) -> int:
        if len(digits) > 20:  # Python refuses thousands of digits with an error of its own
            raise BundleError(f"{source}: the integer {digits[:20]}... is out of range.", REEXPORT)
        return int(digits)

    try:
        return json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number, parse_int=integer
        )
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) or "Unterminated" in error.msg
        problem = "is cut short" if at_end else "is not valid JSON"
        raise BundleError(
            f"{source} {problem} (line {error.lineno}, column {error.colno}: {error.msg}).",
            "Copy or download the bundle again.",
        ) from None
    except RecursionError:
        raise BundleError(f"{source} is nested too deeply.", "Copy or download the bundle again.") from None


def finite_json(value: object, field: str) -> None:
    """Raise `BundleError` when a value cannot be written as strict JSON (wrong type, NaN, infinity)."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise fail(field, f"has a key that is not a string: {show(key)}", "Use string keys.")
            finite_json(item, f"{field}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            finite_json(item, f"{field}[{i}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise fail(field, f"is {value}, which JSON cannot hold", "Write a finite number or leave it out.")
    elif value is not None and not isinstance(value, (str, int, bool)):
        raise fail(field, f"has type {type(value).__name__}", "Convert it to a plain Python value.")
