"""The contact sheet: one picture that explains a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from .compose import AMBER, CAPTIONS, DIM, INK, PAPER, PICTURES, TEAL, Image, chip, fill, resize
from .font import ADVANCE, draw_text, text_size
from .moments import Moment


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
    gap, gutter = 12, 176
    if aspect is None:
        aspect = moments[0].source.shape[1] / moments[0].source.shape[0] if moments else 16 / 9
    width = round(panel_height * min(2.2, max(0.5, aspect)))
    sheet_width = gutter + 4 * (width + gap) + gap
    lines = [line for fact in facts for line in _wrapped(fact, sheet_width - 48)]
    foot = _wrapped(
        "Key frames pass through the network; frames in between are the same Gaussians, moved and faded.",
        sheet_width - 48,
    )
    top = 24 + 36 + 26 * len(lines) + 22
    bottom = top + 30 + len(moments) * (panel_height + gap) + 8
    sheet = np.full((bottom + 26 * len(foot) + 6, sheet_width, 3), PAPER, np.uint8)
    draw_text(sheet, 24, 24, title, INK, 4)
    for i, line in enumerate(lines):
        draw_text(sheet, 24, 70 + 26 * i, line, DIM, 2)
    captions = [CAPTIONS[name] for name in PICTURES]
    remarks = ("", "", "near = bright", "camera turned")
    for column, (caption, remark) in enumerate(zip(captions, remarks, strict=True)):
        x = gutter + column * (width + gap)
        end = draw_text(sheet, x, top + 4, caption, INK, 2)
        if remark and end + 12 + text_size(remark, 2)[0] <= x + width:
            draw_text(sheet, end + 12, top + 4, remark, DIM, 2)
    for row, moment in enumerate(moments):
        y = top + 30 + row * (panel_height + gap)
        _row_label(sheet, y, moment)
        for column, name in enumerate(PICTURES):
            x = gutter + column * (width + gap)
            sheet[y : y + panel_height, x : x + width] = resize(moment.picture(name), width, panel_height)
        x = gutter + 3 * (width + gap) + width
        chip(sheet, x - 4, y + 4, moment.angles, INK, 2)
    for i, line in enumerate(foot):
        draw_text(sheet, 24, bottom + 26 * i, line, DIM, 2)
    return sheet


def _wrapped(text: str, pixels: int) -> list[str]:
    """Lines of text of scale 2 that are no wider."""
    return textwrap.wrap(text, pixels // (2 * ADVANCE))


def _row_label(sheet: Image, y: int, moment: Moment) -> None:
    colour = AMBER if moment.key else TEAL
    fill(sheet, 24, y, 4, 96, colour)
    draw_text(sheet, 38, y + 2, "KEY FRAME" if moment.key else "IN BETWEEN", colour, 2)
    if not moment.key:
        draw_text(sheet, 38, y + 26, f"{moment.phase:.0%} of pair", DIM, 2)
    draw_text(sheet, 38, y + 50, f"t {moment.timestamp:.2f} s", INK, 2)
    draw_text(sheet, 38, y + 74, "exact" if moment.psnr == float("inf") else f"{moment.psnr:.1f} dB", INK, 2)
