"""The gate: rendered frames of the quantised stages have to agree with fp32, or layers are given back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..runtime.bundle import StageVariant
from ..runtime.errors import StreamSplatError
from .frames import Judge, Score
from .layers import Layer, find_layers, load_graph
from .options import Result
from .recipe import Decision, keep_also
from .sensitivity import literal_engines, smallest


class GateError(StreamSplatError):
    """The quantised stages render frames that differ too much from those of the fp32 bundle."""


def pass_gate(result: Result, judge: Judge, targets: Mapping[str, StageVariant]) -> None:
    """Give layers back until the frames are good enough; fills `decisions`, `given_back` and `score`.

    Args:
        result: with decisions, ranges and sensitivities. judge: of the frames.
        targets: per stage, the file that is quantised for TensorRT.

    Raises:
        GateError: giving back does not help, and saving nevertheless was not asked for.
    """
    options = result.options
    order = [(s.stage, s.node) for s in result.sensitivities]
    scores: dict[int, Score] = {}

    def decided(count: int) -> list[Decision]:
        return keep_also(result.decisions, order[:count], "given back by the gate: among the most sensitive")

    def passes(count: int) -> bool:
        scores[count] = score_of(result, judge, targets, decided(count))
        return scores[count].worst >= options.min_psnr

    count = smallest(order, passes)
    if count is None:
        best = max(scores.values(), key=lambda s: s.worst)
        if not options.force_quality:
            advice = "" if order else " Leave --no-sensitivity out, so that layers can be given back."
            raise GateError(
                f"Rendered frames agree with fp32 to {scores[0].worst:.1f} dB only, {options.min_psnr:g} are "
                f"needed: {options.min_psnr - scores[0].worst:.1f} dB are missing (best attempt "
                f"{best.worst:.1f} dB).{advice}",
                "Try another --method, --smooth, or more samples; docs/quantise.md says more. To save it "
                "nevertheless: --force-quality.",
            )
        count = 0
    result.given_back = order[:count]
    result.decisions = decided(count)
    result.score = scores[count]


def score_of(
    result: Result,
    judge: Judge,
    targets: Mapping[str, StageVariant],
    decisions: Sequence[Decision] | None = None,
) -> Score:
    """Of the frames that these stages give when they are quantised as decided (None: as in `result`)."""
    chosen = of_graphs(targets, result.decisions if decisions is None else decisions)
    return judge.score(literal_engines(targets, chosen, result.ranges, result.options.precision))


def of_graphs(targets: Mapping[str, StageVariant], decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions with the layers of other graphs of the same stages: names of nodes are the same, those of
    tensors are not."""
    own: dict[str, dict[str, Layer]] = {
        stage: {layer.node: layer for layer in find_layers(load_graph(variant.path))}
        for stage, variant in targets.items()
    }
    return [replace(d, layer=own[d.stage][d.layer.node]) for d in decisions if d.stage in own]
