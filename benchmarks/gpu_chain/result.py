"""The result as text and as Markdown."""

from __future__ import annotations

from typing import Any

from ..markdown import columns, listed, markdown

MEASURED = "measured"
_HEADER = ("one key frame and its images, ms", "min", "p50", "p90", "p99", "per frame", "x published", "dB")


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A row per method that was measured."""
    found = []
    for row in result["methods"]:
        if row["status"] != MEASURED:
            continue
        numbers = (row[f"{name}_ms"] for name in ("min", "p50", "p90", "p99", "per_source_frame_p50"))
        ratio, decibels = row.get("times_published"), row.get("worst_db_against_published")
        found.append(
            [
                row["title"],
                *(f"{value:.2f}" for value in numbers),
                "1" if ratio is None else f"{ratio:.2f}",
                "-" if decibels is None else f"{decibels:.1f}",
            ]
        )
    return found


def overview(result: dict[str, Any]) -> str:
    """What was measured, on what, and whether the goal is reached."""
    model, protocol = result["model"], result["protocol"]
    gpus = ", ".join(gpu["name"] for gpu in result["cuda"]["gpus"]) or "no GPU"
    return (
        f"preset `{model['preset']}` at {model['width']}x{model['height']}, pictures of "
        f"{protocol['width']}x{protocol['height']}, {protocol['gap']} images per key frame, "
        f"{protocol['rounds']} rounds of {protocol['key_frames']} key frames; {gpus}, "
        f"{result['machine']['cpu']}; commit {result['software']['commit']}; {verdict(result)}"
    )


def verdict(result: dict[str, Any]) -> str:
    """The fastest of ours against the published way."""
    ours = [row for row in result["methods"] if "times_published" in row]
    if not ours:
        return "nothing to compare with the published way"
    best = max(ours, key=lambda row: float(row["times_published"]))
    reached = "reached" if best["times_published"] >= result["goal"] else "not reached"
    return (
        f"goal of {result['goal']:g} times the published way {reached}: "
        f"{best['times_published']:.2f} by {best['title']}"
    )


def reasons(result: dict[str, Any]) -> list[str]:
    """What did not run, and why."""
    return [
        f"{row['title']}: {row['status']}: {row['reason']}" for row in result["methods"] if "reason" in row
    ]


def text(result: dict[str, Any]) -> list[str]:
    """For a terminal."""
    return [overview(result), *columns([list(_HEADER), *rows(result)]), *reasons(result)]


def table_lines(result: dict[str, Any]) -> list[str]:
    """For the page of measurements."""
    return [f"{overview(result)}.", "", *markdown(_HEADER, rows(result)), *listed(reasons(result))]
