"""Lines on logarithmic axes, drawn with what the other pictures use: NumPy and the project's own font."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.compose import AMBER, DIM, INK, PAPER, TEAL, Colour
from ..runtime.font import draw_text, text_size

Canvas = npt.NDArray[np.uint8]

GROUND: Colour = (34, 36, 41)
GRID: Colour = (60, 63, 70)
VIOLET: Colour = (178, 140, 255)
GREEN: Colour = (140, 200, 96)
COLOURS: tuple[Colour, ...] = (TEAL, AMBER, VIOLET, GREEN)  # of series, in order
MARGIN, TITLE, FOOT, LEFT = 16, 20, 40, 52  # pixels around a panel's plot
_DOT, _DASH = 3, 6


@dataclass(frozen=True)
class Series:
    """One line of a panel: points (x, y), both positive, drawn from left to right."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: Colour
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `x_label` also says what was varied; lines may be missing points."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]


def figure(title: str, notes: Sequence[str], panels: Sequence[Panel], columns: int = 2) -> Canvas:
    """uint8 [h, 1280, 3]: the panels in rows of `columns`, a legend of all series, and notes below."""
    width, height, head, line = 1280, 300, 76, 16
    rows = -(-len(panels) // columns)
    canvas = np.full((head + rows * height + line * len(notes) + MARGIN, width, 3), PAPER, np.uint8)
    draw_text(canvas, MARGIN, 14, title, INK, 2)
    _legend(canvas, 48, [series for panel in panels for series in panel.series])
    each = width // columns
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        _draw(canvas, column * each, head + row * height, each, height, panel)
    for number, note in enumerate(notes):
        draw_text(canvas, MARGIN, head + rows * height + line * number, note, DIM)
    return canvas


def wrapped(text: str, characters: int = 205) -> list[str]:
    """A note in lines that fit the figure."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= characters:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _legend(canvas: Canvas, y: int, series: Iterable[Series]) -> None:
    x = MARGIN
    for one in {one.name: one for one in series}.values():
        _segment(canvas, (x, y + 4), (x + 24, y + 4), one.colour, one.dashed)
        x = draw_text(canvas, x + 30, y, one.name, one.colour) + 24


def _draw(canvas: Canvas, x: int, y: int, width: int, height: int, panel: Panel) -> None:
    left, top = x + LEFT, y + TITLE
    right, bottom = x + width - MARGIN, y + height - FOOT
    draw_text(canvas, left, y + 4, panel.title, INK)
    canvas[top:bottom, left:right] = GROUND
    points = [point for series in panel.series for point in series.points]
    if not points:
        draw_text(canvas, left + 8, top + 8, "nothing was measured", DIM)
        return
    across = Axis.around([point[0] for point in points], left, right, decades=False)
    up = Axis.around([point[1] for point in points], bottom, top, decades=True)
    for value in up.ticks():
        row = up.place(value)
        canvas[row, left:right] = GRID
        _right_aligned(canvas, left - 5, row - 4, f"{value:g}")
    for value in sorted({point[0] for point in points}):
        column = across.place(value)
        canvas[top:bottom, column] = GRID
        text = f"{value:,.10g}"
        draw_text(
            canvas, min(column - text_size(text)[0] // 2, right - text_size(text)[0]), bottom + 6, text, DIM
        )
    label = f"{panel.x_label}   (up: {panel.y_label}; both logarithmic)"
    draw_text(canvas, left, bottom + 22, label, DIM)
    for series in panel.series:
        places = [(across.place(px), up.place(py)) for px, py in sorted(series.points)]
        for start, end in itertools.pairwise(places):
            _segment(canvas, start, end, series.colour, series.dashed)
        for column, row in places:
            canvas[row - _DOT : row + _DOT + 1, column - _DOT : column + _DOT + 1] = series.colour


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` onto pixels from `first` to `last`, logarithmically."""

    low: float
    high: float
    first: int
    last: int

    @classmethod
    def around(cls, values: Sequence[float], first: int, last: int, *, decades: bool) -> Axis:
        """Around positive values: whole decades, or a little more than the values span."""
        low, high = min(values), max(values)
        if decades:
            low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        else:
            room = max((high / low) ** 0.06, 1.05)
            low, high = low / room, high * room
        return cls(low, high if high > low else low * 10, first, last)

    def place(self, value: float) -> int:
        """The pixel of a value; what is outside goes to the edge."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.first + min(1.0, max(0.0, share)) * (self.last - self.first))

    def ticks(self) -> list[float]:
        """Powers of ten."""
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]


def _segment(
    canvas: Canvas, start: tuple[int, int], end: tuple[int, int], colour: Colour, dashed: bool
) -> None:
    """A line two pixels high from (x, y) to (x, y)."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    at = np.arange(steps + 1)
    if dashed:
        at = at[at // _DASH % 2 == 0]
    columns = np.rint(start[0] + (end[0] - start[0]) * at / steps).astype(int)
    rows = np.rint(start[1] + (end[1] - start[1]) * at / steps).astype(int)
    for offset in (0, 1):
        canvas[np.minimum(rows + offset, canvas.shape[0] - 1), columns] = colour


def _right_aligned(canvas: Canvas, x: int, y: int, text: str) -> None:
    draw_text(canvas, x - text_size(text)[0], y, text, DIM)
