"""Quality of a bundle on held-out clips, as the runtime renders them: key frames and the frames in between.

Every `gap`-th frame of a shot and its last are pushed as key frames; every frame is rendered. A key frame is
rendered when it
is pushed (t = 1 of the pair it ends), a frame in between from the pair around it. Baselines over the same
frames: linear blend
and repetition of the *original* key frames, which have no reconstruction error to make up for.

    streamsplat-edge eval BUNDLE --data CACHE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.stream import Stream, open_stream
from .baselines import blend, pairs, psnr
from .data.cache import Cache
from .data.loader import EvalShot, eval_clips

_NAMES = ("key", "between", "blend", "nearest", "rendered_blend")


def _evaluate_shot(stream: Stream, shot: EvalShot, gap: int, scores: dict[str, list[float]]) -> None:
    stream.reset()
    offset = 0.0 if stream.interval is None else stream.interval[1] + 1.0
    start = offset - float(shot.times[0])
    for number, (first, last) in enumerate(pairs(len(shot.frames), gap)):
        if number == 0:
            stream.push(shot.frames[first], start + float(shot.times[first]), cut=True)
        stream.push(shot.frames[last], start + float(shot.times[last]))
        a, b = shot.frames[first], shot.frames[last]
        ends = [stream.render(start + float(shot.times[row])).rgb.copy() for row in (first, last)]
        if number == 0:
            scores["key"].append(psnr(ends[0], a))
        scores["key"].append(psnr(ends[1], b))
        for row in range(first + 1, last):
            truth = shot.frames[row]
            t = float((shot.times[row] - shot.times[first]) / (shot.times[last] - shot.times[first]))
            scores["between"].append(psnr(stream.render(start + float(shot.times[row])).rgb, truth))
            scores["blend"].append(psnr(blend(a, b, t), truth))
            scores["nearest"].append(psnr(a if t < 0.5 else b, truth))
            scores["rendered_blend"].append(psnr(blend(ends[0], ends[1], t), truth))


def evaluate(
    bundle: Path, cache: Cache, *, gap: int = 4, split: str = "eval", engine: str = "onnxruntime"
) -> dict[str, Any]:
    """PSNR in dB at the model's resolution, uint8 RGB, mean over frames of a clip, then over clips.

    Returns:
        {"gap", "split", "engine", "metric", "clips": {name: {key, between, blend, nearest, rendered_blend,
        frames}},
        "average": {...}}: `blend` and `nearest` use the original key frames, `rendered_blend` the rendered
        ones.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    with open_stream(bundle, engine=engine) as stream:
        for shot in eval_clips(cache, split):
            _evaluate_shot(stream, shot, gap, scores.setdefault(shot.clip, {name: [] for name in _NAMES}))
    clips = {clip: {name: round(float(np.mean(v)), 3) for name, v in s.items()} for clip, s in scores.items()}
    average = {name: round(float(np.mean([c[name] for c in clips.values()])), 3) for name in _NAMES}
    for clip, s in scores.items():
        clips[clip]["frames"] = len(s["key"]) + len(s["between"])
    return {
        "gap": gap,
        "split": split,
        "engine": engine,
        "metric": "PSNR dB at model resolution, uint8 RGB, mean over frames, then over clips",
        "clips": clips,
        "average": average,
    }


def format_table(result: dict[str, Any]) -> str:
    """The result of `evaluate` as a table for people."""
    header = f"{'clip':<16}" + "".join(f"{name:>16}" for name in _NAMES)
    rows = [*result["clips"].items(), ("average", result["average"])]
    lines = [f"{name:<16}" + "".join(f"{scores[key]:>16.2f}" for key in _NAMES) for name, scores in rows]
    return "\n".join([f"{result['metric']}; gap {result['gap']}, {result['engine']}", header, *lines])
