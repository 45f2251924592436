"""What the study found, as rows; needs nothing but the JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..markdown import columns, listed, markdown

FORMAT, VERSION = "streamsplat-calibration", 1
SETTLED = 2.0
"""dB within which frames count as good as those of the largest number of samples: the worst of some fifty
frames moves by more than one where ranges hardly differ."""

Row = Mapping[str, Any]


def header(result: Mapping[str, Any]) -> list[str]:
    """Column names."""
    largest = max((row["samples"] for row in result["rows"]), default=0)
    return [
        "method, samples",
        "subsets",
        "worst frame dB",
        "mean dB",
        "swung view dB",
        f"ranges against {largest} samples",
    ]


def groups(result: Mapping[str, Any]) -> Iterator[tuple[str, str, int, list[Row]]]:
    """(precision, method, samples, rows of its subsets), methods together, larger numbers last."""
    names = dict.fromkeys((row["precision"], row["method"]) for row in result["rows"])
    for precision, method in sorted(names, key=lambda name: name[0] != "int8"):
        own = [row for row in result["rows"] if (row["precision"], row["method"]) == (precision, method)]
        for samples in sorted({row["samples"] for row in own}):
            yield precision, method, samples, [row for row in own if row["samples"] == samples]


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """One per method and number of samples."""
    found = []
    for precision, method, samples, own in groups(result):
        far = [row["log2"]["mean"] for row in own if "log2" in row]
        found.append(
            [
                f"{precision.upper()} {method}, {samples}",
                str(len(own)),
                *(_span([row["psnr_db"][name] for row in own], 1) for name in ("worst", "mean", "novel")),
                _span(far, 3) if far else "-",
            ]
        )
    return found


def by_method(result: Mapping[str, Any]) -> dict[str, list[tuple[int, list[Row]]]]:
    """Of INT8: method -> (samples, rows of its subsets), larger numbers last."""
    found: dict[str, list[tuple[int, list[Row]]]] = {}
    for precision, method, samples, own in groups(result):
        if precision == "int8":
            found.setdefault(method, []).append((samples, own))
    return found


def enough(result: Mapping[str, Any]) -> dict[str, int]:
    """Method -> samples from which on no subset is worse than the largest number by more than `SETTLED`."""
    found = {}
    for method, sizes in by_method(result).items():
        best, found[method] = sizes[-1][1][0]["psnr_db"], sizes[-1][0]
        for samples, own in reversed(sizes):
            if any(row["psnr_db"][name] < best[name] - SETTLED for row in own for name in best):
                break
            found[method] = samples
    return found


def ranking(result: Mapping[str, Any], name: str) -> list[tuple[float, str]]:
    """(dB, method) in INT8 with the largest number of samples, best first; `name` is worst, mean or novel."""
    methods = by_method(result)
    return sorted(((sizes[-1][1][0]["psnr_db"][name], m) for m, sizes in methods.items()), reverse=True)


def settled(result: Mapping[str, Any]) -> list[str]:
    """What the rows say about INT8, in words."""
    counts = enough(result)
    if not counts:
        return []
    each = ", ".join(f"{method} {samples}" for method, samples in counts.items())
    lines = [
        "INT8: samples from which on worst frame, mean and swung view of every subset are within "
        f"{SETTLED:g} dB of those of the largest number: {each}"
    ]
    for name, words in (("worst", "worst frame"), ("mean", "mean"), ("novel", "swung view")):
        order = ", ".join(f"{method} {value:.1f}" for value, method in ranking(result, name))
        lines.append(f"INT8, largest number of samples, {words} in dB, best first: {order}")
    return lines


def _span(values: Sequence[float], digits: int) -> str:
    """Lowest to highest, or the one number that both are."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def words(result: Mapping[str, Any]) -> str:
    """What was measured on which machine."""
    machine, bundle, protocol = result["machine"], result["bundle"], result["protocol"]
    layers = max((row["layers"] for row in result["rows"]), default=0)
    calibrated, measured = protocol["calibrated_on"], protocol["measured_on"]
    digest = next(iter(bundle["files"].values()))["sha256"][:8] if bundle["files"] else ""
    return (
        f"bundle `{bundle['name']}` at {bundle['width']}x{bundle['height']} (first file {digest}), {layers} "
        f"layers quantised, none given back; {sum(calibrated.values())} pairs of key frames of "
        f"{len(calibrated)} videos; frames of {sum(measured.values())} pairs of {', '.join(measured)}, which "
        f"were not calibrated on, against fp32; percentile {protocol['percentile']:g}; subsets of one size "
        f"share no pair (lowest to highest of them); ranges: mean of abs(log2 of the ratio)"
        f"{'' if result['complete'] else '; NOT COMPLETE'}; {machine['cpu']}, {result['date'][:10]}, commit "
        f"{result['software']['commit']}"
    )


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """For a Markdown document."""
    table = markdown(header(result), table_rows(result))
    return [words(result) + ".", "", *table, *listed(settled(result))]


def text(result: Mapping[str, Any]) -> list[str]:
    """For a terminal."""
    table = columns([header(result), *table_rows(result)])
    return [words(result).replace("`", ""), "", *table, *listed(settled(result))]
