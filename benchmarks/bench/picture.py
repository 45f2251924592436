"""The picture of a report: per backend, every stage's latency distribution beside its share of a frame.

Left, on a logarithmic scale common to all: the brighter, the more samples; ticks at p50 (long) and p99.
Right, on a linear scale common to all: milliseconds per output frame; each stage begins where the one before
ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...commands.report import CHAIN, GRAPHS
from ...runtime.compose import AMBER, DIM, INK, PAPER, TEAL
from ...runtime.font import draw_text
from .measure import MEASURED

Canvas = npt.NDArray[np.uint8]

WIDTH = 1280
_ROWS = (*CHAIN, "capture_to_present")  # those of graphs only where a backend has them
_PITCH, _BAR = 18, 12  # pixels from row to row, and of a bar
_LABEL, _PLOT, _GAP = 176, 500, 60  # width of the names, of each plot, and of what is between them
_HEAD, _TITLE, _MARGIN = 74, 34, 16
_GROUND = (34, 36, 41)


def draw(result: dict[str, Any]) -> Canvas:
    """uint8 [h, 1280, 3]. Backends that were not measured are named in a line each."""
    measured = [b for b in result["backends"] if b["status"] == MEASURED]
    others = [b for b in result["backends"] if b["status"] != MEASURED]
    graphs = any(b["samples_ms"].get(stage) for b in measured for stage in GRAPHS)
    rows = [stage for stage in _ROWS if graphs or stage not in GRAPHS]
    panel = _TITLE + _PITCH * len(rows) + _MARGIN
    height = _HEAD + panel * len(measured) + _PITCH * len(others) + _MARGIN
    canvas = np.full((height, WIDTH, 3), PAPER, np.uint8)
    machine, bundle = result["machine"], result["bundle"]
    device = machine["device"] or machine["cpu"] or machine["architecture"]
    draw_text(canvas, _MARGIN, 14, f"{bundle['name']} on {device}", INK, 2)
    low, high = _decades(measured)
    longest = max((sum(shares(b).values()) for b in measured), default=1.0)
    left, right = _LABEL, _LABEL + _PLOT + _GAP
    scale = f"latency, {_short(low)} to {_short(high)} ms, logarithmic"
    draw_text(canvas, left, 46, scale, DIM)
    draw_text(canvas, right, 46, f"milliseconds per frame, 0 to {longest:.1f}", DIM)
    y = _HEAD
    for backend in measured:
        fps = backend["throughput"]["fps"]
        draw_text(canvas, _MARGIN, y, f"{backend['title']}: {fps:.1f} frames per second", TEAL, 2)
        _distributions(canvas, left, y + _TITLE, backend, rows, low, high)
        _waterfall(canvas, right, y + _TITLE, backend, rows, longest)
        y += panel
    for backend in others:
        text = f"{backend['title']}: {backend['status']}: {backend['reason']}"
        draw_text(canvas, _MARGIN, y, text.replace("`", "'"), DIM)  # the font has no back quote
        y += _PITCH
    return canvas


def shares(backend: dict[str, Any]) -> dict[str, float]:
    """Milliseconds per output frame of every stage of the chain, in order: what adds up to a frame."""
    frames, samples = backend["frames"]["total"], backend["samples_ms"]
    return {stage: sum(samples[stage]) / frames for stage in CHAIN if samples.get(stage)}


def _decades(measured: list[dict[str, Any]]) -> tuple[float, float]:
    """Powers of ten around all samples."""
    values = [v for b in measured for stage in _ROWS for v in b["samples_ms"].get(stage, ()) if v > 0]
    if not values:
        return 1.0, 10.0
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _distributions(
    canvas: Canvas, x: int, y: int, backend: dict[str, Any], rows: Sequence[str], low: float, high: float
) -> None:
    decades = math.log10(high / low)

    def column(value: float) -> int:
        return min(_PLOT - 1, max(0, int(math.log10(max(value, low) / low) / decades * _PLOT)))

    for number, stage in enumerate(rows):
        top = y + number * _PITCH
        draw_text(canvas, _MARGIN, top + 1, stage.replace("_", " "), DIM)
        canvas[top : top + _BAR, x : x + _PLOT] = _GROUND
        for decade in range(1, round(decades)):
            canvas[top : top + _BAR, x + round(decade / decades * _PLOT)] = DIM
        samples = backend["samples_ms"].get(stage)
        if not samples:
            draw_text(canvas, x + 4, top + 2, "not part of this model", DIM)
            continue
        counts = np.bincount([column(value) for value in samples], minlength=_PLOT)
        for at in np.flatnonzero(counts):
            # The root keeps single outliers visible beside the bulk.
            weight = 0.35 + 0.65 * math.sqrt(counts[at] / counts.max())
            colour = (1 - weight) * np.array(_GROUND) + weight * np.array(TEAL)
            canvas[top : top + _BAR, x + at : x + at + 2] = colour.astype(np.uint8)
        values = backend["latency_ms"][stage]
        canvas[top - 2 : top + _BAR + 2, x + column(values["p50"])] = INK
        canvas[top : top + _BAR, x + column(values["p99"])] = AMBER


def _waterfall(
    canvas: Canvas, x: int, y: int, backend: dict[str, Any], rows: Sequence[str], longest: float
) -> None:
    begin = 0.0
    parts = shares(backend)
    for number, stage in enumerate(row for row in rows if row in CHAIN):
        top = y + number * _PITCH
        canvas[top : top + _BAR, x : x + _PLOT] = _GROUND
        if stage in parts:
            first, last = (round(v / longest * _PLOT) for v in (begin, begin + parts[stage]))
            canvas[top : top + _BAR, x + first : x + max(last, first + 1)] = AMBER
            text = f"{parts[stage]:.2f}"
            at = last + 4 if last + 40 < _PLOT else first - 6 * len(text) - 4
            draw_text(canvas, x + at, top + 2, text, INK)
            begin += parts[stage]


def _short(value: float) -> str:
    return f"{value:g}"
