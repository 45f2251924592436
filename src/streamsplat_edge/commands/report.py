"""The measurements of a run, as JSON for programs and as a table for people."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from .._version import __version__
from ..machine import source_commit
from ..runtime.power import NOT_MEASURED

FORMAT, VERSION = "streamsplat-stats", 1
_PSNR_CAP = 100.0  # dB; an identical image has no finite value and JSON no infinity
# Order of the table; anything else a pipeline measures follows after these.
_ORDER = (
    *("decode", "scene_cut", "preprocess", "depth", "condition", "encode", "deform", "lifecycle"),
    *("capture", "graph", "render"),
    *("measure", "novel view", "compose", "write", "save", "finish", "capture_to_present"),
)
GRAPHS = ("capture", "graph")  # instead of the networks and the lifecycle, on a GPU
CHAIN = ("preprocess", "depth", "condition", "encode", "deform", "lifecycle", *GRAPHS, "render")
_MEANING = {
    "decode": "per frame, in its own thread",
    "scene_cut": "per frame",
    "preprocess": "per key frame",
    "depth": "per key frame",
    "condition": "per key frame",
    "encode": "per key frame",
    "deform": "per pair of key frames",
    "lifecycle": "per key frame",
    "capture": "per key frame computed stage by stage and captured as a CUDA graph",
    "graph": "per key frame: networks and lifecycle as one CUDA graph",
    "render": "per frame",
    "measure": "per frame: PSNR",
    "save": "per frame: what --save asked for",
    "novel view": "per frame: second render for the picture",
    "compose": "per frame: layout of the output",
    "write": "per frame: encoding the output",
    "finish": "once: what the encoder still held",
    "capture_to_present": "per frame: captured to written, with the wait for the next key frame",
}


@dataclass
class Tally:
    """Count, mean and extremes of values, in constant memory: a camera may run for days."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    def summary(self) -> dict[str, float | int | None]:
        """count, mean, min, max; the latter three None without values."""
        if not self.count:
            return {"count": 0, "mean": None, "min": None, "max": None}
        return {"count": self.count, "mean": self.total / self.count, "min": self.low, "max": self.high}


class Quality:
    """PSNR against the input at model resolution, key frames and frames in between apart."""

    def __init__(self) -> None:
        self.key, self.between = Tally(), Tally()

    def add(self, decibels: float, key: bool) -> None:
        (self.key if key else self.between).add(min(decibels, _PSNR_CAP))

    def summary(self) -> dict[str, Any]:
        return {
            "definition": "mean over frames of PSNR, 8-bit image against the input at model resolution",
            "key_frames": self.key.summary(),
            "in_between": self.between.summary(),
        }


def software(*engines: str) -> dict[str, str | None]:
    """Versions of everything that takes part in a run, the distributions of `engines` among it."""
    found: dict[str, str | None] = {
        "streamsplat_edge": __version__,
        "commit": source_commit(),
        "python": platform.python_version(),
    }
    for name in ("numpy", "av", *engines):
        for distribution in (name, f"{name}-gpu", f"{name}-cu13", f"{name}-cu12"):
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                found[name] = None
    return found


def ordered(latencies: Mapping[str, Any]) -> list[str]:
    """Stage names in the order in which a frame passes them."""
    known = [stage for stage in _ORDER if stage in latencies]
    return known + [stage for stage in latencies if stage not in known]


def finite(value: Any) -> Any:
    """The same value with NaN and infinity as None: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(stats: Mapping[str, Any]) -> list[str]:
    """The readable summary: what ran, how fast, how well."""
    settings, frames, fps = stats["settings"], stats["frames"], stats["fps"]
    sizes = (
        f"{settings['input_width']}x{settings['input_height']}) at {settings['width']}x{settings['height']}"
    )
    kinds = f"{frames['key']} key frames, {frames['in_between']} in between, {frames['cuts']} scene cuts"
    lines = [
        f"  {frames['total']} frames of {settings['input']} ({sizes}: {kinds}",
        f"  {settings['bundle_name']} on {stats['stages']['encode']}",
        f"  {stats['stages']['render']}",
        "",
        f"  {'stage':<20}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'max ms':>9}{'count':>8}",
    ]
    if stats["source"]["live"]:
        lines.insert(1, f"  {_live_line(stats)}")
    latencies = stats["latency_ms"]
    for stage in ordered(latencies):
        s = latencies[stage]
        if s.get("count"):
            numbers = "".join(f"{s[name]:>9.2f}" for name in ("p50", "p90", "p99", "max"))
            lines.append(f"  {stage:<20}{numbers}{s['count']:>8}  {_MEANING.get(stage, '')}".rstrip())
    lines += [
        "",
        f"  {fps['wall_clock']:.1f} frames per second by wall clock, everything included",
        f"  {fps['chain']:.1f} frames per second for the chain alone (preprocess to render)",
    ]
    quality = stats["psnr_db"]
    parts = [
        f"{words} {quality[name]['mean']:.2f} dB"
        for name, words in (("key_frames", "key frames"), ("in_between", "in between"))
        if quality[name]["count"]
    ]
    if parts:
        lines.append(f"  PSNR against the input: {', '.join(parts)}")
    per_frame = stats["per_frame"]
    lines.append(
        f"  per frame on average: {per_frame['alive']:,.0f} Gaussians alive, "
        f"{per_frame['rendered']:,.0f} rendered, {per_frame['tile_pairs']:,.0f} tile pairs"
    )
    power = stats["power"]
    if "reason" not in power:
        each = power["joules_per_frame"]
        lines.append(
            f"  power: {power['mean_w']:.1f} W on average, "
            + (f"{power['max_w']:.1f} W at most, " if power["max_w"] != NOT_MEASURED else "")
            + (f"{each:.3f} J per frame" if each is not None else "no frame")
            + f" ({', '.join(power['counted'])})"
        )
    return lines


def _live_line(stats: Mapping[str, Any]) -> str:
    """What a live source went through."""
    source, frames = stats["source"], stats["frames"]
    words = {
        "reconnects": "reconnects",
        "damaged": "damaged",
        "resync": "waiting for a key frame",
        "repaired_times": "time stamps repaired",
        "pauses": "pauses",
    }
    parts = [f"{source[name]:.0f} {text}" for name, text in words.items() if source.get(name)]
    outage = f", {source['outage_seconds']:.1f} s without it" if source.get("outage_seconds") else ""
    parts.insert(0, f"{frames['dropped']} frames dropped")
    return f"live ({source['policy']}): {', '.join(parts)}{outage}"


def headline(stats: Mapping[str, Any]) -> list[str]:
    """Three lines for the contact sheet: what went in, what ran it how fast, how well."""
    settings, fps, quality = stats["settings"], stats["fps"], stats["psnr_db"]
    name = settings["input"].rstrip("/").rsplit("/", 1)[-1]
    gaussians = stats["gaussians"]["per_key_frame"]
    first = (
        f"{name} {settings['input_width']}x{settings['input_height']} at {settings['input_rate']:.4g} fps, "
        f"shown at {settings['width']}x{settings['height']} by {gaussians:,} Gaussians per key frame, "
        f"a key frame every {settings['gap']} frames"
    )
    cpu = stats["machine"]["cpu"] or stats["machine"]["architecture"]
    second = (
        f"{fps['wall_clock']:.1f} frames per second, everything included, "
        f"on {stats['machine']['cores_usable']} cores of {cpu} ({settings['engine']})"
    )
    parts = [
        f"{quality[kind]['mean']:.1f} dB {words}"
        for kind, words in (("key_frames", "at key frames"), ("in_between", "in between"))
        if quality[kind]["count"]
    ]
    return [first, second, "PSNR against the input: " + ", ".join(parts)]
