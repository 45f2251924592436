"""The files of the page. A fixed table, read once: nothing that a client sends ever becomes a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page, and what it is served as."""

    content_type: str
    body: bytes


def load_assets() -> dict[str, Asset]:
    """By the path of the URL: "/" is the page, "/NAME" a file beside it."""
    table = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            name = "/" if path.name == "index.html" else f"/{path.name}"
            table[name] = Asset(_TYPES[path.suffix], path.read_bytes())
    return table
