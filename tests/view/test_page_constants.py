"""What the page says again in JavaScript is what the runtime says in Python."""

from __future__ import annotations

import json
import re

from streamsplat_edge.runtime import depth_colours
from streamsplat_edge.runtime.view import packing
from streamsplat_edge.runtime.view.assets import load_assets


def script(name: str) -> str:
    return load_assets()[f"/{name}"].body.decode()


def test_colours_of_depth() -> None:
    (stops,) = re.findall(r"const DEPTH_STOPS = \[(.*?)\n\];", script("renderer.js"), re.S)
    assert json.loads(f"[{stops.strip().rstrip(',')}]") == [list(stop) for stop in depth_colours._DEPTH_STOPS]


def test_version_and_kinds_of_messages() -> None:
    text = script("wire.js")
    assert f"export const VERSION = {packing.VERSION};" in text
    kinds = dict(re.findall(r'(\d): "(\w+)"', text))
    named = {"keyFrame": packing.KEY_FRAME, "pair": packing.PAIR, "picture": packing.PICTURE}
    assert {name: int(number) for number, name in kinds.items()} == named | {"exact": packing.EXACT}
