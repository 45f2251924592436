"""Tables in Markdown and as text."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first column is text and whose other columns are numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def listed(lines: Sequence[str]) -> list[str]:
    """A list with an empty line before it; nothing for no lines."""
    return ["", *(f"- {line}" for line in lines)] if lines else []


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same as text for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
