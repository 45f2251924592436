"""The chain with and without INT8 files as rows; needs nothing but the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..markdown import columns, markdown

FORMAT, VERSION = "streamsplat-int8-chain", 1


def _words(result: Mapping[str, Any]) -> str:
    machine, protocol, bundle = result["machine"], result["protocol"], result["bundle"]
    loads = [result["state"][when]["load_average"][0] for when in ("before", "after")]
    return (
        f"bundle `{bundle['name']}` at {bundle['width']}x{bundle['height']} on {protocol['clip']}; an "
        f"interval is a key frame and {protocol['gap']} frames rendered; x: median of the ratio over the "
        f"turns; {machine['cpu']}, {machine['cores_usable']} cores, load average {loads[0]} before, "
        f"{loads[1]} after, {result['state']['before']['scheduling']} scheduling; {result['date'][:10]}, "
        f"commit {result['software']['commit']}"
    )


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    rows = [["", "INT8 files taken", "interval with fp32 files, ms", "with those taken"]]
    for entry in result["engines"]:
        plain, taken = entry["interval"]["fp32"], entry["interval"]["taken"]
        rows.append(
            [
                entry["stages"]["fp32"]["encode"].split(",")[0],
                ", ".join(entry["files"].values()) or "none",
                f"{plain['milliseconds']:.1f}",
                f"x{taken['ratio']:.3f}",
            ]
        )
    return rows


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """For a Markdown document."""
    rows = _rows(result)
    return [_words(result) + ".", "", *markdown(rows[0], rows[1:])]


def text(result: Mapping[str, Any]) -> list[str]:
    """For a terminal."""
    return [_words(result).replace("`", ""), "", *columns(_rows(result))]
