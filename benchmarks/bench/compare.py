"""Comparison with the JSON of an earlier run: what became slower, larger or worse, and by how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .measure import MEASURED

FORMAT, VERSION = "streamsplat-bench", 1
RELATIVE = 0.05  # a change below this share counts as the same
DECIBELS = 0.1


def read(path: Path) -> dict[str, Any]:
    """An earlier result.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).", "Give a bench.json.") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT or result.get("version") != VERSION:
        raise InputError(f"{path}: is no result of `bench` of this version.", "Give a bench.json.")
    return result


def compare(now: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """What changed, per backend that both measured.

    Returns:
        differences: of machine, bundle or protocol, for which the times cannot be compared as they are.
        rows: backend, measure, earlier, now, change (relative, or dB), verdict.
    """
    before = {b["name"]: b for b in earlier["backends"] if b["status"] == MEASURED}
    rows = []
    for backend in now["backends"]:
        if backend["status"] == MEASURED and backend["name"] in before:
            rows += _rows(backend, before[backend["name"]])
    lost = [
        b["name"]
        for b in now["backends"]
        if b["status"] not in (MEASURED, "left out") and b["name"] in before
    ]
    return {
        "earlier_date": earlier["date"],
        "differences": _differences(now, earlier),
        "rows": rows,
        "no_longer_measured": lost,
        "regressions": sum(row["verdict"] == "regressed" for row in rows) + len(lost),
    }


def _rows(now: dict[str, Any], before: dict[str, Any]) -> list[dict[str, Any]]:
    old, new = _measures(before), _measures(now)
    rows = []
    for name, (value, larger_is_better, decibels) in new.items():
        was = old[name][0] if name in old else None
        if value is None or was is None:
            continue
        change = value - was if decibels else value / was - 1 if was else 0.0
        limit = DECIBELS if decibels else RELATIVE
        better = change if larger_is_better else -change
        verdict = "improved" if better > limit else "regressed" if better < -limit else "same"
        rows.append(
            {"backend": now["name"], "measure": name, "earlier": was, "now": value, "change": change}
            | {"unit": "dB" if decibels else "relative", "verdict": verdict}
        )
    return rows


def _measures(backend: dict[str, Any]) -> dict[str, tuple[float | None, bool, bool]]:
    """Name -> value, whether more is better, whether the change is in dB."""
    joules = backend["power"]["joules_per_frame"]
    found: dict[str, tuple[float | None, bool, bool]] = {
        "frames per second": (backend["throughput"]["fps"], True, False),
        "peak MiB": (backend["memory"]["peak_mib"], False, False),
        "J/frame": (joules if isinstance(joules, (int, float)) else None, False, False),
        "PSNR key frames": (backend["psnr_db"]["key_frames"]["mean"], True, True),
        "PSNR in between": (backend["psnr_db"]["in_between"]["mean"], True, True),
    }
    for stage, values in backend["latency_ms"].items():
        if values.get("count"):
            found[f"{stage} p50 ms"] = (values["p50"], False, False)
    found["capture_to_present p99 ms"] = (backend["latency_ms"]["capture_to_present"]["p99"], False, False)
    return found


def _differences(now: dict[str, Any], earlier: dict[str, Any]) -> list[str]:
    def facts(result: dict[str, Any]) -> dict[str, Any]:
        protocol = result["protocol"]
        return {
            "CPU": result["machine"]["cpu"],
            "cores": result["machine"]["cores_usable"],
            "GPUs": result["cuda"]["gpus"],
            "files of the bundle": result["bundle"]["files"],
            **{name: protocol[name] for name in ("input", "gap", "frames", "threads", "warm_up_frames")},
        }

    ours, theirs = facts(now), facts(earlier)
    return [f"other {name} than in the earlier run" for name in ours if ours[name] != theirs[name]]


def lines(comparison: dict[str, Any]) -> list[str]:
    """The comparison as text; what regressed is marked."""
    head = f"compared with the run of {comparison['earlier_date']}: {comparison['regressions']} regressions"
    out = [head, *(f"  careful: {text}" for text in comparison["differences"])]
    for row in comparison["rows"]:
        change = f"{row['change']:+.2f} dB" if row["unit"] == "dB" else f"{100 * row['change']:+.1f} %"
        if row["verdict"] != "same":
            mark = "REGRESSED" if row["verdict"] == "regressed" else "improved"
            where = f"{row['backend']}, {row['measure']}"
            out.append(f"  {mark:<10}{where:<48}{row['earlier']:.2f} -> {row['now']:.2f} ({change})")
    return out + [f"  REGRESSED {name}: no longer measured" for name in comparison["no_longer_measured"]]
