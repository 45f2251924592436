"""Hook of MkDocs: what pages link to outside `docs/` goes along into the site, under `files/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)\)")  # pages lie flat in docs/, so one step up is the repository


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """Adds the files. One that is missing is left to the check of links, which names the page."""
    docs = Path(config.docs_dir)
    for page in sorted(docs.glob("*.md")):
        for name in _OUTSIDE.findall(page.read_text()):
            source = docs.parent / name
            if source.is_file() and files.get_file_from_path(_place(name)) is None:
                files.append(File.generated(config, _place(name), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(lambda found: f"]({_place(found[1])})", markdown)


def _place(name: str) -> str:
    """As text: a page of its own would need the pages that it links to in turn."""
    return f"files/{name}" if not name.endswith(".md") else f"files/{name}.txt"
