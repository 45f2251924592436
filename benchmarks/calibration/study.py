"""Ranges of several methods on several numbers of samples, and what each does to rendered frames.

One recording is made; smaller numbers of samples are even parts of it, so that they differ in nothing else.
Of a small number there are several parts: how much the result depends on which samples were taken is seen,
too.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ...calibration import activations, frames, qdq
from ...calibration import ranges as ranges_of
from ...calibration.activations import Activation
from ...calibration.forms import Clips
from ...calibration.frames import Score
from ...calibration.observe import clips_of, observe_parts, silent
from ...calibration.ranges import METHODS
from ...calibration.recipe import Decision, Recipe, keep_also
from ...calibration.sensitivity import literal_engines, read_scores, write_scores
from ...calibration.sources import decided
from ...commands import report
from ...machine import describe_machine
from ...runtime.errors import InputError
from ...runtime.video import write_bytes
from ..identity import describe_bundle, state
from .prepare import Prepared
from .result import FORMAT, VERSION

# What is kept of an earlier run is of the same code, or it is not used.
_CODE = hashlib.sha256(
    "".join(map(inspect.getsource, (activations, frames, qdq, ranges_of))).encode()
).hexdigest()


@dataclass(frozen=True)
class Subset:
    """`samples` pairs of a recording, evenly spaced in it. `number` counts the subsets of that size."""

    samples: int
    number: int
    pairs: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """What one row is about."""

    precision: str
    method: str
    subset: Subset


def run(
    prepared: Prepared,
    counts: Sequence[int],
    fp8_counts: Sequence[int],
    repeats: int,
    percentile: float,
    write: Callable[[dict[str, Any]], None],
    progress: bool = False,
) -> dict[str, Any]:
    """Everything, ready for JSON; `write` gets it after each row, the last time complete."""
    decisions = {p: decided(prepared.bundle.path, Recipe(), p)[1] for p in ("int8", "fp8")}
    chosen = subsets(len(prepared.recording), counts, repeats)
    rows = cells(chosen, fp8_counts)
    result: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "software": report.software("onnxruntime", "onnx"),
        "bundle": describe_bundle(prepared.bundle),
        "state": {"before": state()},
        "protocol": {
            **prepared.to_json(),
            "percentile": percentile,
            "quantised": "every layer that the default rules name, none given back; computed literally",
            "psnr": "rendered frames against those of the fp32 files: worst, mean of squared errors, and the "
            "worst in the swung view",
            "log2": "|log2| of the range over that of the largest number of samples, over what layers read",
        },
        "rows": [],
        "complete": False,
    }

    def done(found: list[dict[str, Any]]) -> None:
        result["rows"] = found
        result["complete"] = len(found) == len(rows)
        if result["complete"]:
            result["state"]["after"] = state()
        write(result)

    clips = ranges(prepared, decisions, rows, percentile, progress)
    measure(prepared, decisions, rows, clips, done, progress)
    return result


def subsets(total: int, counts: Iterable[int], repeats: int) -> list[Subset]:
    """Parts of a recording of `total` pairs, the largest first.

    Each takes one pair in so many, and a pair is in one of the parts of a size at most. Where counts divide
    one another, the first part of a size is in the first of the next.

    Args:
        counts: sizes. repeats: parts of each size, fewer where they would overlap.

    Raises:
        InputError: a size is larger than the recording.
    """
    found = []
    for count in sorted(set(counts), reverse=True):
        if count > total:
            raise InputError(
                f"{count} samples were asked for, {total} are recorded.", "Use smaller --counts."
            )
        step = total // count
        parts = min(repeats, step)
        for number in range(parts):
            start = number * step // parts
            found.append(Subset(count, number, tuple(start + step * i for i in range(count))))
    return found


def cells(found: Sequence[Subset], fp8_counts: Sequence[int]) -> list[Cell]:
    """All methods in INT8 on every subset, and in FP8 on those of the sizes named, larger ones first."""
    return [
        Cell(precision, method, subset)
        for subset in found
        for precision in ("int8", "fp8")
        if precision == "int8" or subset.samples in fp8_counts
        for method in METHODS
    ]


def ranges(
    prepared: Prepared,
    decisions: Mapping[str, Sequence[Decision]],
    rows: Sequence[Cell],
    percentile: float,
    progress: bool = False,
) -> list[dict[str, Clips]]:
    """The clips of every row, per stage. Those of a stage are kept in the work folder when they are done.

    Args:
        decisions: per precision. percentile: for that method.
    """
    found: list[dict[str, Clips]] = [{} for _ in rows]
    for stage in prepared.sources:
        layers = {
            precision: [d.layer for d in decided if d.stage == stage and d.quantise]
            for precision, decided in decisions.items()
        }
        if not any(layers.values()):
            continue
        names = {p: [layer.node for layer in chosen] for p, chosen in layers.items()}
        content = [_CODE, prepared.recording.key, stage, names, percentile, [_named(cell) for cell in rows]]
        path = prepared.work / f"ranges-{stage}-{_hash(content)}.json"
        if path.is_file():
            kept = json.loads(path.read_text())
            clips = [{node: tuple(values) for node, values in one.items()} for one in kept]
        else:
            clips = _ranges_of(prepared, stage, layers, rows, percentile, progress)
            write_bytes(path, json.dumps(clips).encode())
        for one, values in zip(found, clips, strict=True):
            if values:
                one[stage] = values
    return found


def _ranges_of(
    prepared: Prepared, stage: str, layers: Mapping[str, Sequence[Any]], rows: Sequence[Cell],
    percentile: float, progress: bool,
) -> list[dict[str, tuple[float, ...]]]:  # fmt: skip
    chosen = list(dict.fromkeys(cell.subset for cell in rows))
    parts = shared_parts([subset.pairs for subset in chosen])
    union = list({layer.node: layer for one in layers.values() for layer in one}.values())
    seen = observe_parts(
        prepared.sources[stage], union, prepared.recording, list(parts.values()), progress=progress
    )
    statistics: dict[Subset, dict[str, Activation]] = {}
    for number, subset in enumerate(chosen):
        merged: dict[str, Activation] = {}
        for members, part in zip(parts, seen, strict=True):
            if number in members:
                for name, activation in part.items():
                    merged.setdefault(name, Activation()).merge(activation)
        statistics[subset] = merged
    return [
        dict(
            clips_of(
                statistics[cell.subset], layers[cell.precision], cell.method, cell.precision,
                percentile=percentile,
            )
        )
        for cell in tqdm(rows, disable=not progress, desc=f"clips of {stage}", unit="row")
    ]  # fmt: skip


def shared_parts(sets: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """Which sets -> the numbers that are in those and no others: what is common is looked at once."""
    members: dict[int, list[int]] = {}
    for i, numbers in enumerate(sets):
        for number in numbers:
            members.setdefault(number, []).append(i)
    found: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(members):
        found.setdefault(tuple(members[number]), []).append(number)
    return found


def measure(
    prepared: Prepared,
    decisions: Mapping[str, Sequence[Decision]],
    rows: Sequence[Cell],
    clips: Sequence[Mapping[str, Clips]],
    done: Callable[[list[dict[str, Any]]], None],
    progress: bool = False,
) -> None:
    """Render the frames of every row; nothing is given back, whatever they look like.

    Args:
        decisions: per precision. clips: per row and stage.
        done: called with all rows so far after each; scores are kept in the work folder besides.
    """
    kept = prepared.work / "scores.json"
    scores = read_scores(kept)
    found: list[dict[str, Any]] = []
    both = list(zip(rows, clips, strict=True))
    largest = {(cell.precision, cell.method): ranges for cell, ranges in both if _whole(cell, rows)}
    for cell, ranges in tqdm(both, disable=not progress, desc="frames", unit="row"):
        decided = keep_also(decisions[cell.precision], silent(ranges), "read only zeros")
        nodes = [(d.stage, d.layer.node) for d in decided if d.quantise]
        content = {stage: dict(values) for stage, values in ranges.items()}
        key = _hash([_CODE, prepared.judge.key, cell.precision, nodes, content])
        if key not in scores:
            scores[key] = _rendered(prepared, decided, ranges, cell.precision)
            write_scores(kept, scores)
        row = {
            "precision": cell.precision,
            "method": cell.method,
            "samples": cell.subset.samples,
            "subset": cell.subset.number,
            "layers": len(nodes),
            "psnr_db": scores[key].to_json(),
        }
        reference = largest.get((cell.precision, cell.method))
        if reference is not None:
            row["log2"] = distance(ranges, reference)
        done(found := [*found, row])


def _whole(cell: Cell, rows: Sequence[Cell]) -> bool:
    """Whether a row is of the largest number of samples."""
    return cell.subset.number == 0 and cell.subset.samples == max(one.subset.samples for one in rows)


def _rendered(
    prepared: Prepared, decided: Sequence[Decision], ranges: Mapping[str, Clips], precision: str
) -> Score:
    with ExitStack() as stack:
        stages = literal_engines(prepared.sources, decided, ranges, precision)
        for engine in stages.values():
            stack.callback(engine.close)
        return prepared.judge.score(stages)


def distance(ranges: Mapping[str, Clips], reference: Mapping[str, Clips]) -> dict[str, Any]:
    """How far ranges are from others, over what layers read: |log2 of the ratio|, mean and largest.

    Layers that read only zeros in either are left out.
    """
    ratios = [
        (abs(math.log2(a / b)), f"{stage}:{node}")
        for stage, found in ranges.items()
        for node, values in found.items()
        for a, b in zip(values, reference[stage][node], strict=True)
        if a > 0 and b > 0
    ]
    if not ratios:
        return {"mean": 0.0, "largest": 0.0, "layer": ""}
    largest, layer = max(ratios)
    mean = sum(ratio for ratio, _ in ratios) / len(ratios)
    return {"mean": round(mean, 4), "largest": round(largest, 4), "layer": layer}


def _named(cell: Cell) -> list[Any]:
    return [cell.precision, cell.method, list(cell.subset.pairs)]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
