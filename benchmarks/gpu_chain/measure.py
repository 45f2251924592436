"""The measurement: all methods in turn, round by round, over the same key frames."""

from __future__ import annotations

import datetime
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...commands import report
from ...machine import describe_cuda, describe_machine
from ...runtime.compose import psnr
from ...runtime.errors import StreamSplatError
from ...runtime.power import Nvml
from ..identity import state
from .methods import Bench, Method, Runner
from .result import MEASURED

FORMAT, VERSION = "streamsplat-gpu-chain", 1
GOAL = 4.0  # of the issue: this many times the published way, end to end per new frame
NOT_RUN, FAILED = "not run", "failed"
_SECONDS = 1 / 30  # from frame to frame of the source


@dataclass(frozen=True)
class Protocol:
    """What every method does.

    Attributes:
        height, width: of the pictures that come in. gap: source frames, and images, per key frame.
        key_frames: timed per round. rounds: timed; one more before them is not.
    """

    height: int = 1080
    width: int = 1920
    gap: int = 3
    key_frames: int = 12
    rounds: int = 10


@dataclass
class _Row:
    method: Method
    runner: Runner
    samples: list[float] = field(default_factory=list)  # ms per key frame
    images: list[np.ndarray] = field(default_factory=list)  # of one round


def pictures(protocol: Protocol) -> list[np.ndarray]:
    """Smooth colours that wander, uint8 [h, w, 3], one per key frame."""
    rng = np.random.default_rng(0)
    coarse = rng.random((10, 17, 3))
    rows = np.linspace(0, 8, protocol.height)
    columns = np.linspace(0, 15, protocol.width)
    made = []
    for number in range(protocol.key_frames + 1):
        y, x = rows[:, None] + 0.02 * number, columns[None, :] + 0.03 * number
        top, left = y.astype(int), x.astype(int)
        down, right = (y - top)[..., None], (x - left)[..., None]
        corners = [coarse[top + i, left + j] for i in (0, 1) for j in (0, 1)]
        upper = corners[0] * (1 - right) + corners[1] * right
        lower = corners[2] * (1 - right) + corners[3] * right
        made.append(((upper * (1 - down) + lower * down) * 255).astype(np.uint8))
    return made


def one_round(row: _Row, frames: Sequence[np.ndarray], protocol: Protocol, *, timed: bool) -> None:
    """A stream over all pictures. Inside the clock: from a picture on the host to its interval's images."""
    row.runner.reset()
    row.images = []
    for number, picture in enumerate(frames):
        now = number * protocol.gap * _SECONDS
        times = [now - i * _SECONDS for i in range(protocol.gap)][::-1] if number else []
        start = time.perf_counter()
        images = row.runner.key_frame(picture, now, times)
        elapsed = (time.perf_counter() - start) * 1e3
        if timed and number:  # the first key frame has no pair
            row.samples.append(elapsed)
        row.images += images


def measure(
    methods: Sequence[Method], bench: Bench, protocol: Protocol, say: Callable[[str], None]
) -> dict[str, Any]:
    """The whole report, ready for JSON.

    Args:
        say: told what goes on.
    """
    frames, nvml = pictures(protocol), Nvml()
    before = [state(), *(gpu.state() for gpu in nvml.gpus)]
    results: dict[str, dict[str, Any]] = {}
    rows: list[_Row] = []
    for method in methods:
        say(f"{method.title} ...")
        results[method.name] = {"method": method.name, "title": method.title, "ours": method.ours}
        start = time.perf_counter()
        try:
            row = _Row(method, method.opener(bench))
            one_round(row, frames, protocol, timed=False)
        except Exception as error:  # compilers of others: one that breaks must not end the comparison
            results[method.name] |= _failure(error)
            continue
        results[method.name] |= {"status": MEASURED, "ready_seconds": time.perf_counter() - start}
        rows.append(row)
    for number in range(protocol.rounds):
        say(f"round {number + 1} of {protocol.rounds}")
        for row in list(rows):
            try:
                one_round(row, frames, protocol, timed=True)
            except Exception as error:
                results[row.method.name] |= _failure(error)
                rows.remove(row)
    base = next((row for row in rows if not row.method.ours), None)
    for row in rows:
        results[row.method.name] |= _numbers(row, protocol) | _against(row, base)
        row.runner.close()
    software = ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx", "cupy-cuda13x")
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "cuda": describe_cuda(),
        "software": report.software(*software),
        "state": {"before": before, "after": [state(), *(gpu.state() for gpu in nvml.gpus)]},
        "model": {"preset": bench.loaded.config.name, "height": bench.loaded.config.height}
        | {"width": bench.loaded.config.width},
        "protocol": vars(protocol)
        | {
            "inside_the_clock": "from a new picture on the host to the images of its interval on the host, "
            "rendered to 8 bits; nothing removed. Outside: decoding, loading, one round to warm up",
            "rounds_are": "one process; in each round every method in turn, over the same pictures",
        },
        "goal": GOAL,
        "methods": list(results.values()),
    }


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, StreamSplatError):
        return {"status": NOT_RUN, "reason": str(error)}
    traceback.print_exception(error)
    lines = str(error).strip().splitlines()
    return {"status": FAILED, "reason": f"{type(error).__name__}: {lines[0] if lines else 'no message'}"}


def _numbers(row: _Row, protocol: Protocol) -> dict[str, Any]:
    p50, p90, p99 = (float(value) for value in np.percentile(row.samples, (50, 90, 99)))
    return {
        "stages": dict(row.runner.description),
        "count": len(row.samples),
        "min_ms": min(row.samples),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "per_source_frame_p50_ms": p50 / protocol.gap,
        "samples_ms": [float(f"{value:.5g}") for value in row.samples],
    }


def _against(row: _Row, base: _Row | None) -> dict[str, Any]:
    """How many times the published way's speed, and how far the images are from its."""
    if base is None or row is base:
        return {}
    decibels = [psnr(ours, theirs) for ours, theirs in zip(row.images, base.images, strict=True)]
    ratio = float(np.median(base.samples) / np.median(row.samples))
    return {"times_published": ratio, "worst_db_against_published": min(decibels)}


def stderr(text: str) -> None:
    """A `say`."""
    print(text, file=sys.stderr, flush=True)
