"""Is it worth it? Files of one stage timed against each other in one engine, taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..runtime import engines
from ..runtime.bundle import StageVariant
from ..runtime.errors import EngineError

_WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run of a stage file, median of all.

    Attributes:
        ratio: of its time to that of the first file, median over the turns: both were run in each, so that
            what else the machine was doing counts for both.
    """

    milliseconds: float
    ratio: float

    def to_json(self) -> dict[str, float]:
        return {"milliseconds": round(self.milliseconds, 3), "ratio": round(self.ratio, 3)}


def compare(
    variants: Mapping[str, StageVariant],
    inputs: Mapping[str, np.ndarray],
    engine: str,
    *,
    device: str = "cpu",
    seconds: float = 4.0,
    turns: int = 30,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time files of one stage.

    Args:
        variants: the first is what the others are compared with.
        inputs: of the stage. engine, device: where.
        seconds: after which no further turn begins. turns: at most; at least three are taken.

    Returns:
        Name to timing, and name to reason for files that the engine cannot run.

    Raises:
        EngineError: the first file does not run.
    """
    opened: dict[str, engines.Engine] = {}
    refused: dict[str, str] = {}
    try:
        for name, variant in variants.items():
            try:
                opened[name] = engines.create(engine, variant, device=device)
            except EngineError as error:
                if not opened:
                    raise
                refused[name] = error.message
        runs = {}
        for name, loaded in opened.items():
            outputs = {spec.name: np.empty(spec.shape, spec.dtype) for spec in loaded.outputs}
            runs[name] = partial(loaded.run, inputs, outputs)
        return take_turns(runs, seconds=seconds, turns=turns), refused
    finally:
        for loaded in opened.values():
            loaded.close()


def take_turns(runs: Mapping[str, Callable[[], object]], *, seconds: float, turns: int) -> dict[str, Timing]:
    """Time things that do the same, each once per turn; the first is what the others are compared with.

    Args:
        seconds: after which no further turn begins. turns: at most; at least three are taken.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for turn in range(turns + _WARM_UP):
        if turn >= 3 + _WARM_UP and time.perf_counter() > end:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= _WARM_UP:
                samples[name].append((time.perf_counter() - start) * 1e3)
    first = next(iter(samples.values()))
    return {
        name: Timing(
            statistics.median(values),
            statistics.median(value / base for value, base in zip(values, first, strict=True)),
        )
        for name, values in samples.items()
    }


def fastest(timings: Mapping[str, Timing], margin: float = 0.03) -> str:
    """Name of the file to prefer: the first, unless another is faster by more than `margin`."""
    names: Sequence[str] = list(timings)
    best = min(names, key=lambda name: timings[name].ratio)
    return best if timings[best].ratio < 1 - margin else names[0]
