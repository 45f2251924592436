"""The report as text, as Markdown and as CSV: one table over all backends with a status column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from ..identity import NOT_MEASURED
from ..markdown import markdown
from ..passes import latency_lines
from .measure import MEASURED

COLUMNS = (
    *("backend", "status", "fps", "encode p50 ms", "deform p50 ms", "render p50 ms"),
    *("capture to present p50 ms", "p99 ms", "late", "dropped", "peak MiB", "slope bytes/frame"),
    *("mean W", "J/frame", "PSNR key dB", "PSNR between dB", "pairs/frame"),
)
_NONE = "-"  # a backend that was not measured has no cells


def row(backend: dict[str, Any]) -> list[str]:
    """The cells of one backend, in the order of `COLUMNS`."""
    head = [backend["name"], backend["status"]]
    if backend["status"] != MEASURED:
        return head + [_NONE] * (len(COLUMNS) - len(head))
    latency, live, power = backend["latency_ms"], backend["paced"], backend["power"]
    seen = latency["capture_to_present"]
    gain = backend["memory"]["slope"]

    def middle(stage: str) -> str:
        if stage in ("encode", "deform") and latency.get("graph", {}).get("count"):
            return "in graph"  # what is left of its own are the first key frames of scenes
        values = latency.get(stage, {})
        return f"{values['p50']:.2f}" if values.get("count") else NOT_MEASURED

    return [
        *head,
        f"{backend['throughput']['fps']:.2f}",
        *(middle(stage) for stage in ("encode", "deform", "render")),
        f"{seen['p50']:.1f}",
        f"{seen['p99']:.1f}",
        *(str(live[name]) if isinstance(live, dict) else NOT_MEASURED for name in ("late", "dropped")),
        f"{backend['memory']['peak_mib']:.0f}",
        f"{gain['bytes_per_frame']:+.0f} ± {gain['interval_95']:.0f}"
        if isinstance(gain, dict)
        else NOT_MEASURED,
        *(_decimal(power[name], 3) for name in ("mean_w", "joules_per_frame")),
        *(_decimal(backend["psnr_db"][kind]["mean"], 2) for kind in ("key_frames", "in_between")),
        f"{backend['gaussians']['tile_pairs_per_frame']:.0f}",
    ]


def _decimal(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else NOT_MEASURED


def reasons(result: dict[str, Any]) -> list[str]:
    """Why backends have no numbers, and what stands behind "not measured"; then all warnings."""
    lines = []
    for backend in result["backends"]:
        name = backend["name"]
        if backend["status"] != MEASURED:
            lines.append(f"{name}: {backend['status']}: {backend['reason']}")
            continue
        if "reason" in backend["power"]:
            lines.append(f"{name}: power {NOT_MEASURED}: {backend['power']['reason']}")
        if isinstance(backend["memory"]["slope"], str):
            lines.append(f"{name}: slope of memory {backend['memory']['slope']}")
        lines += [f"{name}: {m} {backend[m]}" for m in ("ssim", "lpips") if isinstance(backend[m], str)]
        lines += [f"{name}: warning: {text}" for text in backend["warnings"]]
    if result["protocol"]["paced"] is None:
        lines.append(f"late and dropped frames {NOT_MEASURED}: --paced was not given")
    return lines


def overview(result: dict[str, Any]) -> list[str]:
    """Machine, state and protocol in words."""
    machine, bundle, protocol = result["machine"], result["bundle"], result["protocol"]
    source = protocol["input"]
    gpus = ", ".join(gpu["name"] for gpu in result["cuda"]["gpus"]) or "no NVIDIA GPU"
    return [
        f"machine     {machine['device'] or machine['cpu'] or machine['architecture']}, "
        f"{machine['cores_usable']} cores, {machine['distribution'] or machine['system']}; {gpus}; "
        f"commit {result['software']['commit']}",
        f"bundle      {bundle['name']} (preset {bundle['preset']}), {bundle['width']}x{bundle['height']}, "
        f"{bundle['gaussians_per_key_frame']:,} Gaussians per key frame",
        f"clip        {source['uri']}, {source['width']}x{source['height']} at {source['fps']:.4g} fps, "
        f"key frame every {protocol['gap']} frames, {protocol['warm_up_frames']} frames warm-up; "
        f"{protocol['mode']}",
        f"state       load {result['state']['load_average']} before, scheduling "
        f"{result['state']['scheduling']}, governor {result['state']['cpu_governor']}, "
        f"power mode {result['state']['power_mode']}",
    ]


def table(result: dict[str, Any]) -> list[list[str]]:
    """Header and rows."""
    return [list(COLUMNS), *(row(backend) for backend in result["backends"])]


def text(result: dict[str, Any]) -> list[str]:
    """Everything for a terminal. The table stands on its side there: a column per measured
    backend; the others follow with their status and its reason."""
    lines = [*overview(result), ""]
    for backend in result["backends"]:
        if backend["status"] == MEASURED:
            lines += [f"{backend['title']}: {backend['stages']['encode']}"]
            lines += ["  " + line for line in latency_lines(backend["latency_ms"])] + [""]
    names, *rows = (line for line in table(result) if line[1] in (COLUMNS[1], MEASURED))
    width = max(len(name) for name in names) + 2
    for at, name in enumerate(names):
        cells = [cells[at] for cells in rows]
        lines.append(name.ljust(width) + "".join(cell.rjust(20) for cell in cells))
    return [*lines, "", *reasons(result)]


def document(result: dict[str, Any]) -> str:
    """The table in Markdown with everything that explains it."""
    listed = [f"- {line}" for line in [*overview(result), *reasons(result)]]
    first, *rows = table(result)
    return "\n".join([*markdown(first, rows), "", *listed]) + "\n"


def summary_csv(result: dict[str, Any]) -> str:
    """The table as CSV."""
    return _csv(table(result))


def samples_csv(result: dict[str, Any]) -> str:
    """Every raw sample of every measured backend."""
    return _csv(_samples(result))


def _samples(result: dict[str, Any]) -> Iterator[list[Any]]:
    yield ["backend", "mode", "stage", "number", "milliseconds"]
    for backend in result["backends"]:
        if backend["status"] != MEASURED:
            continue
        for stage, values in backend["samples_ms"].items():
            for number, value in enumerate(values):
                yield [backend["name"], "free", stage, number, value]
        if isinstance(backend["paced"], dict):
            for number, value in enumerate(backend["paced"]["samples_ms"]):
                yield [backend["name"], "paced", "capture_to_present", number, value]


def _csv(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
