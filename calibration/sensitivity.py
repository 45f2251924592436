"""How much each layer alone costs: rendered frames with that one layer quantised, worst first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from tqdm import tqdm

from ..runtime.bundle import StageVariant
from ..runtime.video import write_bytes
from . import qdq
from .forms import Clips, by_tensor
from .frames import Judge, Score
from .layers import Layer, load_graph
from .recipe import Decision
from .sessions import LiteralEngine


@dataclass(frozen=True)
class Sensitivity:
    """A layer and what quantising it alone does."""

    stage: str
    node: str
    score: Score


def measure(
    judge: Judge,
    sources: Mapping[str, StageVariant],
    decisions: Sequence[Decision],
    clips: Mapping[str, Clips],
    precision: str,
    *,
    kept: Path | None = None,
    progress: bool = False,
) -> list[Sensitivity]:
    """The sensitivity of every layer that the recipe quantises, most sensitive first.

    Args:
        judge: renders. sources: fp32 file per stage. decisions: of the recipe. clips: per stage.
        precision: `int8` or `fp8`.
        kept: JSON file to which each result is written, and from which an interrupted run goes on.
    """
    done = read_scores(kept)
    chosen = [d for d in decisions if d.quantise]
    models: dict[str, onnx.ModelProto] = {}
    found = []
    for decision in tqdm(chosen, disable=not progress, desc="sensitivity", unit="layer"):
        stage, layer = decision.stage, decision.layer
        key = f"{stage}:{layer.node}"
        if key not in done:
            model = models.setdefault(stage, load_graph(sources[stage].path))
            with _engine(sources[stage], model, [layer], clips[stage], precision) as engine:
                done[key] = judge.score({stage: engine})
            write_scores(kept, done)
        found.append(Sensitivity(stage, layer.node, done[key]))
    return sorted(found, key=lambda s: s.score.mean)


def literal_engines(
    sources: Mapping[str, StageVariant],
    decisions: Sequence[Decision],
    clips: Mapping[str, Clips],
    precision: str,
) -> dict[str, LiteralEngine]:
    """The stages with everything quantised that the decisions say, computed literally; only those in which
    anything is."""
    engines = {}
    for stage, source in sources.items():
        layers = [d.layer for d in decisions if d.stage == stage and d.quantise]
        if layers:
            engines[stage] = _engine(source, load_graph(source.path), layers, clips[stage], precision)
    return engines


def _engine(
    source: StageVariant, model: onnx.ModelProto, layers: Sequence[Layer], clips: Clips, precision: str
) -> LiteralEngine:
    graph = qdq.insert(model, layers, by_tensor(layers, clips), precision)
    return LiteralEngine(source.stage, graph, source.inputs, source.outputs, precision)


def read_scores(path: Path | None) -> dict[str, Score]:
    """What `write_scores` wrote; nothing where there is no file."""
    if path is None or not path.is_file():
        return {}
    return {key: Score(*values) for key, values in json.loads(path.read_text()).items()}


def write_scores(path: Path | None, done: Mapping[str, Score]) -> None:
    """Keep scores by name, so that an interrupted run goes on; None keeps nothing."""
    if path is not None:
        content = {key: [score.worst, score.mean, score.novel] for key, score in done.items()}
        write_bytes(path, json.dumps(content).encode())


def smallest(order: Sequence[object], passes: Callable[[int], bool]) -> int | None:
    """The smallest number of entries of `order` with which `passes` holds; None where all do not suffice.

    Doubles and then halves, so that it asks about 2 log2(n) times; taken to hold for all larger numbers.
    """
    low, high = 0, 0
    while not passes(high):
        if high == len(order):
            return None
        low, high = high, min(max(1, 2 * high), len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
