"""What the documents say, for their tests: pages, blocks of code, and command lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
DEMO_BUNDLE = "demo/tiny.bundle"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "console") for line in block.replace("\\\n", "").splitlines()]
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]
