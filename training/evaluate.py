"""Quality of a bundle on held-out clips, as the runtime renders them: key frames and the frames in between.

Every `gap`-th frame of a shot and its last are pushed as key frames; every frame is rendered at its real
time. A key frame is rendered when it is pushed (t = 1 of the pair it ends), a frame in between from the pair
around it. Baselines over the same frames in the same run (`baselines`): repetition, linear blend and
optical-flow interpolation of the *original* key frames, which have no reconstruction error to make up for;
and the blend of the rendered ones.

The paper's protocol is measured on request, beside the gap of the bundle (`PAPER`; docs/evaluation.md). It
takes whole pairs only: what is left of a shot after its last whole pair is not looked at.

    streamsplat-edge eval BUNDLE --data CACHE --paper
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..runtime.errors import InputError
from ..runtime.stream import Stream, open_stream
from ..runtime.video import encode_png, write_bytes
from .baselines import PairBaselines, blend, pair_time, pairs
from .data.cache import Cache
from .data.loader import EvalShot, eval_clips
from .data.sample import U8
from .eval_picture import Example, picture_of
from .metrics import DESCRIPTIONS, Meter
from .perceptual import load_lpips

NAMES = ("key", "between", "all", "blend", "nearest", "dis", "rendered_blend")
METRIC = "PSNR dB at model resolution, uint8 RGB, mean over frames, then over clips"
# Name -> frames from key frame to key frame: four and eight frames in between.
PAPER = {"middle_4": 5, "interpolation_8": 9}
_DIGITS = {"psnr": 3, "psnr_256": 3}


@dataclass(frozen=True)
class _Place:
    """A frame in between, by its PSNR and where to find it again."""

    psnr: float
    shot: EvalShot
    first: int
    last: int
    row: int


class _Protocol:
    """The scores of one gap over all shots."""

    def __init__(self, meter: Meter, gap: int, *, whole: bool) -> None:
        self.gap = gap
        self._meter, self._whole = meter, whole
        # clip -> name -> metric -> a value per frame
        self._scores: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.places: dict[str, list[_Place]] = {}

    def pairs(self, shot: EvalShot) -> list[tuple[int, int]]:
        return pairs(len(shot.frames), self.gap, whole=self._whole)

    def frames(self, shot: EvalShot) -> int:
        """How many frames of a shot are measured."""
        found = self.pairs(shot)
        return found[-1][1] + 1 if found else 0

    def measure(self, stream: Stream, shot: EvalShot) -> None:
        stream.reset()
        for first, last in self.pairs(shot):
            if first == 0:
                stream.push(shot.frames[first], _seconds(shot, first))
            stream.push(shot.frames[last], _seconds(shot, last))
            ends = _render(stream, shot, first), _render(stream, shot, last)
            if first == 0:
                self._add(shot, first, {"key": ends[0]}, ("key", "all"))
            methods = PairBaselines(shot.frames[first], shot.frames[last])
            for row in range(first + 1, last):
                t = pair_time(shot, first, last, row)
                pictures = {"between": _render(stream, shot, row), **methods.at(t)}
                pictures["rendered_blend"] = blend(*ends, t)
                found = self._add(shot, row, pictures, ("between", "all"))
                place = _Place(found["between"]["psnr"], shot, first, last, row)
                self.places.setdefault(shot.clip, []).append(place)
            self._add(shot, last, {"key": ends[1]}, ("key", "all"))

    def _add(
        self, shot: EvalShot, row: int, pictures: Mapping[str, U8], ours: tuple[str, str]
    ) -> dict[str, dict[str, float]]:
        """Measure pictures of one frame; what is stored as `ours[0]` is stored as `ours[1]` too."""
        found = self._meter(shot.frames[row], pictures)
        clip = self._scores.setdefault(shot.clip, {})
        for name, values in (*found.items(), (ours[1], found[ours[0]])):
            for metric, value in values.items():
                clip.setdefault(name, {}).setdefault(metric, []).append(value)
        return found

    def summary(self) -> dict[str, Any]:
        """{"clips": ..., "average": ...} as of `evaluate`."""
        clips: dict[str, dict[str, Any]] = {}
        for clip, scores in self._scores.items():
            clips[clip] = _by_metric(
                {name: {m: float(np.mean(v)) for m, v in scores[name].items()} for name in scores},
                self._meter.metrics,
            )
            clips[clip]["frames"] = len(scores["all"]["psnr"])
        average = {
            name: {
                metric: float(np.mean([np.mean(s[name][metric]) for s in self._scores.values() if name in s]))
                for metric in self._meter.metrics
            }
            for name in NAMES
            if any(name in scores for scores in self._scores.values())
        }
        return {"gap": self.gap, "clips": clips, "average": _by_metric(average, self._meter.metrics)}


def _by_metric(values: Mapping[str, Mapping[str, float]], metrics: Iterable[str]) -> dict[str, Any]:
    """name -> metric -> value as {name: PSNR, ..., metric: {name: value}, ...}, rounded."""
    names = [name for name in NAMES if name in values]
    out: dict[str, Any] = {}
    for metric in metrics:
        found = {name: round(values[name][metric], _DIGITS.get(metric, 4)) for name in names}
        out |= found if metric == "psnr" else {metric: found}
    return out


def _seconds(shot: EvalShot, row: int) -> float:
    return float(shot.times[row])


def _render(stream: Stream, shot: EvalShot, row: int) -> U8:
    return np.asarray(stream.render(_seconds(shot, row)).rgb, np.uint8)


def _examples(stream: Stream, protocol: _Protocol) -> list[Example]:
    """Of each clip the frame in between of median PSNR and the worst one, rendered once more."""
    out = []
    for clip, places in protocol.places.items():
        ordered = sorted(places, key=lambda place: place.psnr)
        for kind, place in (("typical", ordered[len(ordered) // 2]), ("worst", ordered[0])):
            shot, first, last, row = place.shot, place.first, place.last, place.row
            stream.reset()
            for end in (first, last):
                stream.push(shot.frames[end], _seconds(shot, end))
            t = pair_time(shot, first, last, row)
            methods = PairBaselines(shot.frames[first], shot.frames[last]).at(t)
            out.append(
                Example(
                    clip, kind, int(shot.numbers[row]), t, np.asarray(shot.frames[row]),
                    _render(stream, shot, row), methods["blend"], methods["dis"],
                )
            )  # fmt: skip
    return out


def _check_gaps(cache: Cache, shots: list[EvalShot], gaps: Iterable[int]) -> None:
    longest = max(len(shot.frames) for shot in shots)
    for gap in gaps:
        if gap >= longest:
            raise InputError(
                f"A gap of {gap} needs a shot of {gap + 1} frames; the longest here has {longest}.",
                "Give a smaller --gap, no --paper, or a cache with longer shots.",
            )


def evaluate(
    bundle: Path,
    cache: Cache,
    *,
    gap: int | None = None,
    split: str = "eval",
    engine: str = "onnxruntime",
    lpips: Path | None = None,
    paper: bool = False,
    picture: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a bundle: means over the frames of a clip, then over clips.

    Args:
        bundle: bundle folder.
        cache: frames of the model's size.
        gap: frames from key frame to key frame; None is the bundle's.
        split: the clips to measure.
        engine: runs the stages.
        lpips: weights for LPIPS (see `load_lpips`); None leaves it out.
        paper: measure the paper's protocol as well.
        picture: PNG to write, replaced if it exists: examples beside truth and baselines.
        progress: show a progress bar on stderr.

    Returns:
        {"gap", "split", "engine", "metric", "metrics": {metric: what it is}, "clips": {name: scores and
        "frames"}, "average": scores, "paper": {name: {"gap", "clips", "average"}} if asked for}. Scores are
        PSNR in dB by name, and under the name of every other metric the same again: {"key", "between", "all"
        (both), "blend", "nearest", "dis", "rendered_blend", "ssim": {"key", ...}, "lpips": ..., "psnr_256":
        ..., "ssim_256": ..., "lpips_256": ...}. A clip whose shots have no frame in between has no scores for
        them.

    Raises:
        InputError: the split has no clip, frames of another size than the model's, a gap that no shot is long
            enough for, a picture of nothing (gap 1), or unusable LPIPS weights. Before anything is measured.
        BundleError, EngineError: the bundle cannot be opened.
        OutputError: the picture cannot be written.
    """
    shots = list(eval_clips(cache, split))
    if not shots:
        raise InputError(
            f"{cache.root} has no clip in the split {split!r}.",
            f'Give clips of the media folder "split": "{split}" and prepare the cache again.',
        )
    meter = Meter(None if lpips is None else load_lpips(lpips))
    with open_stream(bundle, engine=engine) as stream:
        model = stream.model
        if (cache.height, cache.width) != (model.height, model.width):
            raise InputError(
                f"{cache.root} holds frames of {cache.width}x{cache.height}, "
                f"the bundle takes {model.width}x{model.height}.",
                f"Prepare a cache with --height {model.height} --width {model.width}.",
            )
        own = _Protocol(meter, model.key_frame_gap if gap is None else gap, whole=False)
        papers = {name: _Protocol(meter, g, whole=True) for name, g in PAPER.items()} if paper else {}
        protocols = [own, *papers.values()]
        _check_gaps(cache, shots, (protocol.gap for protocol in protocols))
        if picture is not None and own.gap == 1:
            raise InputError("With a gap of 1 no frame is in between: the picture would be empty.")
        total = sum(protocol.frames(shot) for protocol in protocols for shot in shots)
        with tqdm(total=total, disable=not progress, desc="eval", unit="frame") as bar:
            for protocol in protocols:
                for shot in shots:
                    bar.set_postfix_str(f"{shot.clip}, gap {protocol.gap}", refresh=False)
                    protocol.measure(stream, shot)
                    bar.update(protocol.frames(shot))
        result = {
            "gap": own.gap,
            "split": split,
            "engine": engine,
            "metric": METRIC,
            "metrics": {metric: DESCRIPTIONS[metric] for metric in meter.metrics},
            **own.summary(),
        }
        if paper:
            result["paper"] = {name: protocol.summary() for name, protocol in papers.items()}
        if picture is not None:
            sheet = picture_of(_examples(stream, own), f"{stream.bundle.name}, gap {own.gap}", result)
            write_bytes(picture, encode_png(sheet))
    return result


def format_table(result: dict[str, Any]) -> str:
    """The result of `evaluate` as tables for people: PSNR per clip, then the averages of every metric."""
    rows = [*result["clips"].items(), ("average", result["average"])]
    lines = [f"{result['metric']}; gap {result['gap']}, {result['engine']}", _line("clip")]
    lines += [_line(clip, scores) for clip, scores in rows]
    others = [metric for metric in result["metrics"] if metric != "psnr"]
    lines += ["", _line("average of")]
    lines += [_line(metric, result["average"][metric], digits=_table_digits(metric)) for metric in others]
    for name, part in result.get("paper", {}).items():
        lines += ["", _line(f"{name}, gap {part['gap']}"), _line("psnr", part["average"])]
        lines += [_line(metric, part["average"][metric], digits=_table_digits(metric)) for metric in others]
    return "\n".join(lines)


def _table_digits(metric: str) -> int:
    return 2 if metric.startswith("psnr") else 4


def _line(title: str, scores: Mapping[str, Any] | None = None, digits: int = 2) -> str:
    """One line of a table; the header where there are no scores."""
    cells = [
        name if scores is None else f"{scores[name]:.{digits}f}" if name in scores else "-" for name in NAMES
    ]
    return f"{title:<23}" + "".join(f"{cell:>15}" for cell in cells)
