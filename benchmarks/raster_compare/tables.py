"""The comparison as text and as rows: one row per case, then why something is missing."""

from __future__ import annotations

from typing import Any

from .compare import MEASURED

_NONE = "-"


def header(result: dict[str, Any]) -> list[str]:
    """Column names."""
    titles = [about["title"] for about in result["methods"].values()]
    return [
        "Gaussians, image, sigma, threads, images",
        *(f"{title}, ms" for title in titles),
        "bound, ms",
        "ours / bound",
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
        best = [
            row["min_ms"] for row in case["methods"] if row["method"] == "cpp" and row["status"] == MEASURED
        ]
        bound = case["bound"]["ms"]
        found.append([name, *cells, f"{bound:.3g}", f"{best[0] / bound:.1f}" if best else _NONE])
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


def text(result: dict[str, Any]) -> list[str]:
    """Everything for a terminal."""
    lines = [header(result), *rows(result)]
    widths = [max(len(line[column]) for line in lines) + 2 for column in range(len(lines[0]))]
    table = [
        line[0].ljust(widths[0]) + "".join(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    return [*table, "", "median (minimum)", *agreement(result), *reasons(result), result["formula"]]
