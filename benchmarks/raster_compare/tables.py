"""The comparison as text and as rows: one row per case, then why something is missing."""

from __future__ import annotations

from typing import Any

from ..markdown import columns, listed, markdown
from .compare import MEASURED

_NONE = "-"


def header(result: dict[str, Any]) -> list[str]:
    """Column names."""
    titles = [about["title"] for about in result["methods"].values()]
    return [
        "Gaussians, image, sigma, threads, images",
        *(f"{title}, ms" for title in titles),
        "ours, C++: CPU time, ms",
        "bound of the CPU, ms",
        "ours, C++ / bound",
    ]


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Median and, in brackets, minimum of every method; what was not measured is a dash."""
    found = []
    for case in result["cases"]:
        cells = [
            f"{row['p50_ms']:.3g} ({row['min_ms']:.3g})" if row["status"] == MEASURED else _NONE
            for row in case["methods"]
        ]
        name = (
            f"{case['gaussians']:,}, {case['width']}x{case['height']}, {case['sigma_px']:g} px, "
            f"{case['threads']}, {case['times']}"
        )
        own = next((row for row in case["methods"] if row["method"] == "cpp" and "min_ms" in row), None)
        bound = case["bounds"]["cpu"]["ms"]
        cpu, ratio = (f"{own['cpu_p50_ms']:.3g}", f"{own['min_ms'] / bound:.1f}") if own else (_NONE, _NONE)
        found.append([name, *cells, cpu, f"{bound:.3g}", ratio])
    return found


def reasons(result: dict[str, Any]) -> list[str]:
    """Each method and reason once, with the number of cases."""
    counts: dict[tuple[str, str], int] = {}
    for case in result["cases"]:
        for row in case["methods"]:
            if row["status"] != MEASURED:
                key = (row["method"], f"{row['status']}: {row['reason']}")
                counts[key] = counts.get(key, 0) + 1
    return [
        f"{result['methods'][name]['title']}: {why} ({number} of {len(result['cases'])} cases)"
        for (name, why), number in counts.items()
    ]


def agreement(result: dict[str, Any]) -> list[str]:
    """The largest difference of every method that ran, over all cases."""
    lines = []
    for name, about in result["methods"].items():
        seen = [
            row["agreement"]
            for case in result["cases"]
            for row in case["methods"]
            if row["method"] == name and "agreement" in row
        ]
        if seen:
            solid = max(one["largest_where_not_fragile"] for one in seen)
            largest = max(one["largest"] for one in seen)
            pixels, fragile = (sum(one[key] for one in seen) for key in ("pixels", "fragile"))
            lines.append(
                f"{about['title']}: differs from the dense renderer in float64 by at most {solid:.1e}; "
                f"by {largest:.1e} with the {fragile} of {pixels} pixels where a decision hangs on rounding"
            )
    return lines


def words(result: dict[str, Any]) -> str:
    """Machine and state."""
    machine, state, protocol = result["machine"], result["state"], result["protocol"]
    loads = [state[when]["load_average"][0] for when in ("before", "after")]
    return (
        f"rasterizers in one run, {machine['cpu']}, {machine['cores_usable']} cores, load average {loads[0]} "
        f"before, {loads[1]} after, {state['before']['scheduling']} scheduling; "
        f"{protocol['seconds_per_case']:g} s per case, methods in turn; commit "
        f"{result['software']['commit']}. Median and, in brackets, minimum"
    )


def table_lines(result: dict[str, Any]) -> list[str]:
    """For a Markdown document."""
    notes = [*agreement(result), *reasons(result), result["formula"].replace("*", "\\*")]
    return [words(result) + ".", "", *markdown(header(result), rows(result)), *listed(notes)]


def text(result: dict[str, Any]) -> list[str]:
    """For a terminal."""
    notes = [*agreement(result), *reasons(result), result["formula"]]
    return [words(result), "", *columns([header(result), *rows(result)]), *listed(notes)]
