"""The comparison as a picture: logarithmic axes per thing that was varied, with the lower bound."""

from __future__ import annotations

from typing import Any

from ...runtime.compose import DIM, INK
from ..plot import COLOURS, Canvas, Panel, Series, figure, wrapped
from .compare import AXES, MEASURED

_WORDS = {
    "gaussians": "Gaussians",
    "pixels": "pixels",
    "sigma_px": "sigma in pixels",
    "threads": "threads",
    "times": "images per call",
}


def value(case: dict[str, Any], axis: str) -> float:
    """Where a case stands on an axis."""
    return float(case["height"] * case["width"] if axis == "pixels" else case[axis])


def draw(result: dict[str, Any]) -> Canvas:
    """uint8 [h, 1280, 3]. The fastest runs, which a busy machine spoils least. A method that did not run
    anywhere has no line."""
    machine, base = result["machine"], result["protocol"]["base"]
    device = machine["device"] or machine["cpu"] or machine["architecture"]
    panels = []
    for axis in AXES:
        cases = [case for case in result["cases"] if axis in case["axes"]]
        series = [
            Series(
                about["title"],
                [
                    (value(case, axis), row["min_ms"])
                    for case in cases
                    for row in case["methods"]
                    if row["method"] == name and row["status"] == MEASURED
                ],
                colour,
            )
            for (name, about), colour in zip(result["methods"].items(), COLOURS, strict=False)
        ]
        for processor, colour in (("cpu", INK), ("cuda", DIM)):
            bounds = [
                (value(c, axis), c["bounds"][processor]["ms"]) for c in cases if processor in c["bounds"]
            ]
            series.append(Series(f"lower bound, {processor.upper()}", bounds, colour, True))
        panels.append(
            Panel(
                f"against {_WORDS[axis]}",
                _WORDS[axis],
                "fastest ms",
                [one for one in series if one.points],
            )
        )
    loads = [result["state"][when]["load_average"] for when in ("before", "after")]
    point = (
        f"Else {base['gaussians']:,} Gaussians, {base['width']}x{base['height']}, sigma {base['sigma_px']:g} "
        f"px, {base['threads']} threads, {base['times']} image per call; load average {loads[0][0]} before, "
        f"{loads[1][0]} after; {result['date'][:10]}, commit {result['software']['commit']}."
    )
    return figure(
        f"Rasterizers on {device}", [*wrapped(point), *wrapped(result["formula"])], panels, columns=2
    )
