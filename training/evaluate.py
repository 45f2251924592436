"""Quality of a bundle on held-out clips, as the runtime renders them: key frames and the frames in between.

Every `gap`-th frame of a shot and its last are pushed as key frames; every frame is rendered. A key frame is
rendered when it is pushed (t = 1 of the pair it ends), a frame in between from the pair around it. Baselines
over the same frames: linear blend and repetition of the *original* key frames, which have no reconstruction
error to make up for.

    streamsplat-edge eval BUNDLE --data CACHE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..runtime.errors import InputError
from ..runtime.stream import Stream, open_stream
from .baselines import blend, nearest, pairs, psnr
from .data.cache import Cache
from .data.loader import EvalShot, eval_clips
from .data.sample import U8

_NAMES = ("key", "between", "blend", "nearest", "rendered_blend")
METRIC = "PSNR dB at model resolution, uint8 RGB, mean over frames, then over clips"


def _evaluate_shot(stream: Stream, shot: EvalShot, gap: int, scores: dict[str, list[float]]) -> None:
    def seconds(row: int) -> float:
        return float(shot.times[row])

    def render(row: int) -> U8:
        return np.asarray(stream.render(seconds(row)).rgb, np.uint8)

    stream.reset()
    for first, last in pairs(len(shot.frames), gap):
        a, b = shot.frames[first], shot.frames[last]
        if first == 0:
            stream.push(a, seconds(first))
        stream.push(b, seconds(last))
        rendered = render(first), render(last)
        if first == 0:
            scores["key"].append(psnr(rendered[0], a))
        scores["key"].append(psnr(rendered[1], b))
        for row in range(first + 1, last):
            truth = shot.frames[row]
            t = (seconds(row) - seconds(first)) / (seconds(last) - seconds(first))
            scores["between"].append(psnr(render(row), truth))
            scores["blend"].append(psnr(blend(a, b, t), truth))
            scores["nearest"].append(psnr(nearest(a, b, t), truth))
            scores["rendered_blend"].append(psnr(blend(*rendered, t), truth))


def evaluate(
    bundle: Path,
    cache: Cache,
    *,
    gap: int | None = None,
    split: str = "eval",
    engine: str = "onnxruntime",
    progress: bool = False,
) -> dict[str, Any]:
    """PSNR in dB at the model's resolution, uint8 RGB, mean over frames of a clip, then over clips.

    Args:
        bundle: bundle folder.
        cache: frames of the model's size.
        gap: frames from key frame to key frame; None is the bundle's.
        split: the clips to measure.
        engine: runs the stages.
        progress: show a progress bar on stderr.

    Returns:
        {"gap", "split", "engine", "metric", "clips": {name: {key, between, blend, nearest, rendered_blend,
        frames}}, "average": {...}}: `blend` and `nearest` use the original key frames, `rendered_blend` the
        rendered ones. A clip whose shots have no frame in between has no scores for them.

    Raises:
        InputError: the split has no clip, or frames of another size than the model's.
        BundleError, EngineError: the bundle cannot be opened.
    """
    shots = list(eval_clips(cache, split))
    if not shots:
        raise InputError(
            f"{cache.root} has no clip in the split {split!r}.",
            f'Give clips of the media folder "split": "{split}" and prepare the cache again.',
        )
    scores: dict[str, dict[str, list[float]]] = {}
    with open_stream(bundle, engine=engine) as stream:
        model = stream.model
        if (cache.height, cache.width) != (model.height, model.width):
            raise InputError(
                f"{cache.root} holds frames of {cache.width}x{cache.height}, "
                f"the bundle takes {model.width}x{model.height}.",
                f"Prepare a cache with --height {model.height} --width {model.width}.",
            )
        gap = model.key_frame_gap if gap is None else gap
        total = sum(len(shot.frames) for shot in shots)
        with tqdm(total=total, disable=not progress, desc="eval", unit="frame") as bar:
            for shot in shots:
                bar.set_postfix_str(shot.clip, refresh=False)
                _evaluate_shot(stream, shot, gap, scores.setdefault(shot.clip, {name: [] for name in _NAMES}))
                bar.update(len(shot.frames))
    clips = {
        clip: {name: round(float(np.mean(values)), 3) for name, values in s.items() if values}
        for clip, s in scores.items()
    }
    average = {
        name: round(float(np.mean([c[name] for c in clips.values() if name in c])), 3)
        for name in _NAMES
        if any(name in c for c in clips.values())
    }
    for clip, s in scores.items():
        clips[clip]["frames"] = len(s["key"]) + len(s["between"])
    return {
        "gap": gap,
        "split": split,
        "engine": engine,
        "metric": METRIC,
        "clips": clips,
        "average": average,
    }


def format_table(result: dict[str, Any]) -> str:
    """The result of `evaluate` as a table for people."""
    header = f"{'clip':<16}" + "".join(f"{name:>16}" for name in _NAMES)
    rows = [*result["clips"].items(), ("average", result["average"])]
    lines = [
        f"{clip:<16}" + "".join(f"{scores[n]:>16.2f}" if n in scores else f"{'-':>16}" for n in _NAMES)
        for clip, scores in rows
    ]
    return "\n".join([f"{result['metric']}; gap {result['gap']}, {result['engine']}", header, *lines])
