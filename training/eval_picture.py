"""Contact sheet of an evaluation: frames in between as they are, as rendered, and as baselines make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runtime.compose import AMBER, DIM, INK, PAPER, TEAL, Colour, resize
from ..runtime.font import draw_text, text_size
from .data.sample import U8
from .metrics import psnr

ERROR_GAIN = 4
_WIDEST = 384  # pixels of a panel; larger frames are shown smaller
_GAP, _GUTTER, _MARGIN = 8, 176, 16
_LABEL = 80  # height of the words beside a row
_CAPTIONS = ("TRUTH", "RENDERED", "BLEND", "OPTICAL FLOW", f"ERROR x{ERROR_GAIN}")


@dataclass(frozen=True)
class Example:
    """One frame in between.

    Attributes:
        clip: its clip. kind: "typical" or "worst".
        number: frame number in the source. t: time in (0, 1) between the key frames.
        truth, rendered, blend, flow: uint8 [H, W, 3].
    """

    clip: str
    kind: str
    number: int
    t: float
    truth: U8
    rendered: U8
    blend: U8
    flow: U8


def picture_of(examples: Sequence[Example], title: str, result: dict[str, Any]) -> U8:
    """Rows of examples, columns of `_CAPTIONS`, PSNR on every picture, averages in the head. uint8 [h, w, 3].

    The error is |rendered - truth| times 4, on black.
    """
    height, width = examples[0].truth.shape[:2]
    scale = min(1.0, _WIDEST / width)
    height, width = round(height * scale), round(width * scale)
    top, pitch = 96, max(height, _LABEL) + _GAP
    sheet = np.full(
        (
            top + len(examples) * pitch + _MARGIN,
            _GUTTER + len(_CAPTIONS) * (width + _GAP) + _MARGIN,
            3,
        ),
        PAPER,
        np.uint8,
    )
    draw_text(sheet, _MARGIN, 16, title, INK, 3)
    draw_text(sheet, _MARGIN, 48, _averages(result["average"]), DIM, 2)
    for column, caption in enumerate(_CAPTIONS):
        draw_text(sheet, _GUTTER + column * (width + _GAP), top - 20, caption, INK, 2)
    for row, example in enumerate(examples):
        y = top + row * pitch
        _label(sheet, y, example)
        error = ERROR_GAIN * np.abs(example.rendered.astype(np.int16) - example.truth)
        pictures = (
            example.truth,
            example.rendered,
            example.blend,
            example.flow,
            np.minimum(error, 255).astype(np.uint8),
        )
        best = max(psnr(image, example.truth) for image in pictures[1:4])
        for column, image in enumerate(pictures):
            x = _GUTTER + column * (width + _GAP)
            sheet[y : y + height, x : x + width] = resize(image, width, height)
            if 0 < column < 4:
                value = psnr(image, example.truth)
                _chip(sheet, x + 2, y + 2, f"{value:.1f}", AMBER if value == best else INK)
    return sheet


def _averages(average: dict[str, Any]) -> str:
    words = {"key": "key frames", "between": "in between", "blend": "blend", "dis": "optical flow"}
    return "average dB: " + ", ".join(
        f"{word} {average[name]:.2f}" for name, word in words.items() if name in average
    )


def _label(sheet: U8, y: int, example: Example) -> None:
    colour = TEAL if example.kind == "typical" else AMBER
    lines = ((example.clip[:13], INK), (example.kind.upper(), colour), (f"frame {example.number}", DIM),
             (f"{example.t:.0%} of pair", DIM))  # fmt: skip
    for i, (text, ink) in enumerate(lines):
        draw_text(sheet, _MARGIN, y + 20 * i, text, ink, 2)


def _chip(sheet: U8, x: int, y: int, text: str, colour: Colour) -> None:
    """Text on a dark ground, readable on any picture."""
    width, height = text_size(text, 2)
    sheet[y : y + height + 6, x : x + width + 8] = PAPER
    draw_text(sheet, x + 4, y + 3, text, colour, 2)
