"""The contact sheet: one picture that explains a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from .compose import AMBER, CAPTIONS, DIM, INK, PAPER, PICTURES, TEAL, Image, chip, fill, resize
from .font import ADVANCE, HEIGHT, draw_text, text_size
from .moments import Moment

_REMARKS = {"depth": "near = bright", "novel": "camera turned"}
_FOOT = "Key frames pass through the network; frames in between are the same Gaussians, moved and faded."
_TITLE, _TEXT = 4, 2  # scales of the font
# In pixels.
_MARGIN = 24
_LINE = 26  # from one line of text to the next
_LABEL_LINE = 24  # the same beside a row of pictures
_LABELS = 176  # margin and labels, left of the pictures
_GAP = 12  # between pictures


def contact_sheet(
    moments: Sequence[Moment],
    title: str,
    facts: Sequence[str],
    *,
    panel_height: int = 198,
    aspect: float | None = None,
) -> Image:
    """One picture that explains a run: a row per moment, a column per view, titles and measurements.

    Args:
        moments: rows from top to bottom.
        title: the headline.
        facts: a line each under the headline, or several where the sheet is narrow (what was run, how fast,
            how well).
        panel_height: pixels of one picture.
        aspect: width over height of the input as it is to be shown; None is that of its pixels.
    """
    if aspect is None:
        aspect = moments[0].source.shape[1] / moments[0].source.shape[0] if moments else 16 / 9
    width = round(panel_height * min(2.2, max(0.5, aspect)))
    columns = {name: _LABELS + i * (width + _GAP) for i, name in enumerate(PICTURES)}
    sheet_width = max(columns.values()) + width + 2 * _GAP
    lines = [line for fact in facts for line in _wrapped(fact, sheet_width - 2 * _MARGIN)]
    foot = _wrapped(_FOOT, sheet_width - 2 * _MARGIN)
    facts_y = _MARGIN + HEIGHT * _TITLE + 10
    captions_y = facts_y + len(lines) * _LINE + 16
    rows_y = captions_y + _LINE
    foot_y = rows_y + len(moments) * (panel_height + _GAP) + 8
    sheet = np.full((foot_y + len(foot) * _LINE + 6, sheet_width, 3), PAPER, np.uint8)
    draw_text(sheet, _MARGIN, _MARGIN, title, INK, _TITLE)
    _paragraph(sheet, facts_y, lines)
    for name, x in columns.items():
        _caption(sheet, x, captions_y, name, width)
    for row, moment in enumerate(moments):
        y = rows_y + row * (panel_height + _GAP)
        _row_label(sheet, y, moment)
        for name, x in columns.items():
            sheet[y : y + panel_height, x : x + width] = resize(moment.picture(name), width, panel_height)
        chip(sheet, columns["novel"] + width - 4, y + 4, moment.angles, INK, _TEXT)
    _paragraph(sheet, foot_y, foot)
    return sheet


def _wrapped(text: str, pixels: int) -> list[str]:
    """Lines of text that are no wider."""
    return textwrap.wrap(text, pixels // (_TEXT * ADVANCE))


def _paragraph(sheet: Image, y: int, lines: Sequence[str]) -> None:
    for i, line in enumerate(lines):
        draw_text(sheet, _MARGIN, y + i * _LINE, line, DIM, _TEXT)


def _caption(sheet: Image, x: int, y: int, picture: str, width: int) -> None:
    """The name of a column and, where there is room, a remark."""
    end = draw_text(sheet, x, y, CAPTIONS[picture], INK, _TEXT)
    remark = _REMARKS.get(picture, "")
    if remark and end + _GAP + text_size(remark, _TEXT)[0] <= x + width:
        draw_text(sheet, end + _GAP, y, remark, DIM, _TEXT)


def _row_label(sheet: Image, y: int, moment: Moment) -> None:
    colour = AMBER if moment.key else TEAL
    lines = (
        ("KEY FRAME" if moment.key else "IN BETWEEN", colour),
        ("" if moment.key else f"{moment.phase:.0%} of pair", DIM),
        (f"t {moment.timestamp:.2f} s", INK),
        ("exact" if moment.psnr == float("inf") else f"{moment.psnr:.1f} dB", INK),
    )
    fill(sheet, _MARGIN, y, 4, len(lines) * _LABEL_LINE, colour)
    for i, (text, ink) in enumerate(lines):
        draw_text(sheet, _MARGIN + 14, y + 2 + i * _LABEL_LINE, text, ink, _TEXT)
