"""The scaling report: JSON, rows, text and the picture."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...commands import report
from ...machine import describe_machine
from ...runtime.bundle import Bundle
from ..identity import describe_bundle, state
from ..markdown import columns, listed, markdown
from ..passes import MODE, Clip
from ..plot import COLOURS, Canvas, Panel, Series, figure, wrapped
from ..plot import INK as CHAIN_COLOUR
from .measure import AXES, MEASURED, Sweep, measure
from .sizes import Size

FORMAT, VERSION = "streamsplat-scaling", 1
_WORDS = {
    "pixels": "pixels of the model",
    "gap": "frames from key frame to key frame",
    "frames": "frames of the stream",
    "streams": "streams at once",
}
_DRAWN = ("encode", "deform", "render")


def run(
    sweep: Sweep,
    bundle: Bundle,
    bundles: Mapping[Size, Bundle | str],
    uri: str,
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Everything, ready for JSON."""
    clip, before = Clip(uri, None), state()
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "software": report.software("onnxruntime"),
        "bundle": describe_bundle(bundle),
        "protocol": {
            "input": {"uri": clip.uri, "width": clip.width, "height": clip.height, "fps": clip.rate},
            "base": asdict(sweep.base),
            "rounds": rounds,
            "threads": threads or "all cores",
            "mode": MODE,
            "sizes": "the bundle's own weights exported at each size, with as many more or fewer Gaussians",
            "ms_per_frame": "time in " + ", ".join(report.CHAIN) + " over output frames",
        },
        "points": measure(sweep, bundles, uri, rounds, threads),
        "state": {"before": before, "after": state()},
    }


def value(point: Mapping[str, Any], axis: str) -> float:
    """Where a point stands on an axis."""
    return float(point["height"] * point["width"] if axis == "pixels" else point[axis])


def chain(point: Mapping[str, Any]) -> float:
    """Milliseconds per output frame, the fastest round."""
    return float(min(one["chain_ms_per_frame"] for one in point["rounds"]))


def header() -> list[str]:
    """Column names."""
    stages = [f"{stage} p50 ms" for stage in _DRAWN]
    return ["size, gap, frames, streams", "chain ms/frame", "by wall clock", *stages, "resident MiB"]


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """One per point, in the order of the axes; the fastest round and, in brackets, the slowest."""
    found = []
    for point in sorted(
        result["points"], key=lambda p: [(axis not in p["axes"], value(p, axis)) for axis in AXES]
    ):
        name = f"{point['width']}x{point['height']}, {point['gap']}, {point['frames']}, {point['streams']}"
        if point["status"] != MEASURED:
            found.append([name, *["-"] * (len(header()) - 1)])
            continue
        wall = [one["wall_ms_per_frame"] for one in point["rounds"]]
        chains = [one["chain_ms_per_frame"] for one in point["rounds"]]
        found.append(
            [
                name,
                f"{min(chains):.1f} (to {max(chains):.1f})",
                f"{min(wall):.1f}",
                *(f"{point['stages'][stage]['p50_ms']:.2f}" for stage in _DRAWN),
                f"{point['rounds'][-1]['resident_mib']:.0f}",
            ]
        )
    return found


def reasons(result: Mapping[str, Any]) -> list[str]:
    """Why points are missing."""
    return [
        f"{point['width']}x{point['height']}, {point['frames']} frames: not run: {point['reason']}"
        for point in result["points"]
        if point["status"] != MEASURED
    ]


def words(result: Mapping[str, Any]) -> str:
    """Machine, bundle and state."""
    machine, bundle, protocol = result["machine"], result["bundle"], result["protocol"]
    loads = [result["state"][when]["load_average"][0] for when in ("before", "after")]
    return (
        f"cost per frame of bundle `{bundle['name']}`, ONNX Runtime fp32, {machine['cpu']}, "
        f"{machine['cores_usable']} cores, threads: {protocol['threads']}; {protocol['rounds']} rounds, "
        f"load average {loads[0]} before, {loads[1]} after; {protocol['sizes']}; commit "
        f"{result['software']['commit']}"
    )


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """For a Markdown document."""
    return [words(result) + ".", "", *markdown(header(), rows(result)), *listed(reasons(result))]


def text(result: Mapping[str, Any]) -> list[str]:
    """For a terminal."""
    table = columns([header(), *rows(result)])
    return [words(result).replace("`", ""), "", *table, *listed(reasons(result))]


def draw(result: Mapping[str, Any]) -> Canvas:
    """uint8 [h, 1280, 3]: one panel per axis; the chain, and what its stages add to a frame."""
    panels = []
    for axis in AXES:
        points = [p for p in result["points"] if axis in p["axes"] and p["status"] == MEASURED]
        series = [Series("chain", [(value(p, axis), chain(p)) for p in points], CHAIN_COLOUR)]
        for stage, colour in zip(_DRAWN, COLOURS, strict=False):
            shares = [(value(p, axis), p["stages"][stage]["ms_per_frame"]) for p in points]
            series.append(Series(stage, shares, colour))
        panels.append(Panel(f"against {_WORDS[axis]}", _WORDS[axis], "ms per frame", series))
    base = result["protocol"]["base"]
    point = (
        f"Else {base['width']}x{base['height']}, a key frame every {base['gap']} frames, {base['frames']} "
        f"frames, {base['streams']} stream. The chain: the fastest round; stages: mean over rounds, per "
        "output frame."
    )
    title = f"Scaling of {result['bundle']['name']} on {result['machine']['cpu']}"
    return figure(title, [*wrapped(point), *wrapped(words(result).replace("`", ""))], panels)
