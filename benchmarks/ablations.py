"""Does every part of the method earn its place? A tiny model with and without each, under one budget.

    full          probabilistic position sampling, depth supervision, bidirectional deformation
    no_sampling   positions in stage 1 are the means, not samples
    no_depth      depth is supervised in neither stage
    forward_only  only the earlier frame's Gaussians are moved and rendered, at all times of a pair

The model has the published design at the size of the preset `tiny`, which itself finds motion and colour in
other ways. The paper's key-frame PSNR of the same four (arXiv 2506.08862) stands beside ours. It is of the
full-size model, other data and far more steps: signs can be compared, sizes cannot.

Every variant takes the same number of steps over the same samples in the same order; `full` and
`forward_only` share their stage 1, which does not differ. The measure is that of `streamsplat-edge eval`:
every `gap`-th frame of a shot of the eval split and its last one are key frames, every frame is rendered at
its real time, a key frame as the end of the pair that leads to it; PSNR of uint8 RGB, mean over the frames of
a clip, then over clips. It is taken from the checkpoint through the training rasterizer, since no bundle
renders `forward_only`.

    python -m streamsplat_edge.benchmarks.ablations --data CACHE --out DIR [--json FILE]

The same command goes on where a stopped one was. One process, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..machine import describe_machine, source_commit
from ..runtime.errors import InputError, StreamSplatError
from ..runtime.video import write_bytes
from ..training import trainer
from ..training.baselines import pairs
from ..training.checkpoint import load_weights
from ..training.data.cache import Cache
from ..training.data.loader import EvalShot, eval_clips
from ..training.gaussians import render_pair
from ..training.model import StreamSplat
from ..training.objectives import predict_pair, psnr
from ..training.recipe import Recipe, load_recipe
from ..training.setting import Setting

_CONFIGS = Path(trainer.__file__).parent / "configs"
_GREY = 0.5  # behind the Gaussians, as in the runtime
_NO_DEPTH = {"depth_weight": 0.0, "ssi_depth_weight": 0.0}


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: of its folder.
        paper: key-frame PSNR in dB that the paper reports.
        static, dynamic: fields of the recipes that it changes.
    """

    name: str
    title: str
    paper: float
    static: dict[str, Any] = field(default_factory=dict)
    dynamic: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("full", "full", 37.83),
    Variant("no_sampling", "without probabilistic sampling", 31.47, {"probabilistic": False}),
    Variant("no_depth", "without depth supervision", 36.68, _NO_DEPTH, _NO_DEPTH),
    Variant("forward_only", "without bidirectional deformation", 18.89, {}, {"bidirectional": False}),
)


class OutOfTime(Exception):
    """The budget of this call is spent; another one goes on."""


def train_variant(
    variant: Variant, static: Recipe, dynamic: Recipe, out: Path, deadline: float, progress: bool
) -> tuple[Path, Recipe]:
    """Train both stages of a variant, or what is left of them.

    Args:
        variant: what to change in the recipes `static` and `dynamic` of the full model.
        out: folder of the runs.
        deadline: of `time.monotonic`.
        progress: show a progress bar on stderr.

    Returns:
        The weights, and the recipe of stage 2.

    Raises:
        OutOfTime: the deadline came first.
    """
    # A stage 1 that differs in nothing from the full one is the full one.
    shared = variant.name if variant.static else "full"
    weights = _train(replace(static, **variant.static), out / f"{shared}_static", deadline, progress)
    recipe = replace(dynamic, **variant.dynamic, init=str(weights))
    return _train(recipe, out / f"{variant.name}_dynamic", deadline, progress), recipe


def _train(recipe: Recipe, out: Path, deadline: float, progress: bool) -> Path:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise OutOfTime
    if progress:
        print(out.name, file=sys.stderr)
    seconds_left = None if seconds == float("inf") else seconds
    outcome = trainer.train(recipe, out, max_seconds=seconds_left, progress=progress)
    if outcome.step < outcome.steps:
        raise OutOfTime
    return outcome.weights


def _rendered(model: StreamSplat, shot: EvalShot, gap: int, recipe: Recipe) -> Iterator[tuple[str, float]]:
    """("key" or "between", PSNR in dB) of every frame of a shot."""
    config = model.config
    size = (config.height, config.width)
    grey = torch.full((1, 3), _GREY)
    for first, last in pairs(len(shot.frames), gap):
        frames = torch.from_numpy(shot.frames[first : last + 1].copy())
        ends = frames[[0, -1]].permute(0, 3, 1, 2)[None]
        gaussians, motion, fade = predict_pair(model, ends, torch.zeros(1, 2, *size), recipe, Setting())
        times = torch.from_numpy(shot.times[first : last + 1].copy())
        times = ((times - times[0]) / (times[-1] - times[0])).float()[None]
        rgb, _, _ = render_pair(gaussians, motion, fade, times, grey, size, config.depth_mapping)
        shown = (rgb[0].clamp(0, 1) * 255).round()
        error = ((shown - frames.float()) / 255).square().mean((1, 2, 3))
        for row, value in enumerate(psnr(error).tolist()):
            if row == 0 and first > 0:
                continue  # a key frame counts once, as the end of the pair that leads to it
            yield ("key" if row in (0, last - first) else "between"), value


def score(weights: Path, recipe: Recipe, cache: Cache, gap: int, progress: bool = False) -> dict[str, Any]:
    """Measure a checkpoint on the eval split.

    Returns:
        {"average": {"key", "between"}, "clips": {name: {"key", "between"}}} in dB.

    Raises:
        InputError: there is no eval split, or the weights do not fit the recipe.
    """
    shots = list(eval_clips(cache))
    if not shots:
        raise InputError(
            f"{cache.root} has no clip in the split 'eval'.", "Prepare a cache from media with such a split."
        )
    model = StreamSplat(recipe.config)
    load_weights(model, weights)
    model.eval()
    found: dict[str, dict[str, list[float]]] = {}
    with torch.no_grad():
        for shot in tqdm(shots, disable=not progress, desc="eval", unit="shot"):
            clip = found.setdefault(shot.clip, {})
            for kind, value in _rendered(model, shot, gap, recipe):
                clip.setdefault(kind, []).append(value)
    clips = {
        name: {kind: sum(v) / len(v) for kind, v in sorted(values.items(), reverse=True)}
        for name, values in found.items()
    }
    average = {
        kind: sum(values) / len(values)
        for kind in ("key", "between")
        if (values := [clip[kind] for clip in clips.values() if kind in clip])
    }
    return {"average": average, "clips": clips}


def _recipes(arguments: argparse.Namespace) -> tuple[Recipe, Recipe]:
    """The recipes of the full model under this budget."""
    static = load_recipe(arguments.static_config, data=arguments.data, steps=arguments.static_steps)
    dynamic = load_recipe(arguments.dynamic_config, data=arguments.data, steps=arguments.dynamic_steps)
    for recipe, stage in ((static, "static"), (dynamic, "dynamic")):
        if recipe.stage != stage:
            raise InputError(f"A recipe of stage {recipe.stage!r} was given where {stage!r} is needed.")
        if recipe.config.condition == "dino" or recipe.config.depth_input == "stage":
            raise InputError("The ablation measures models without DINOv2 and without a depth stage.")
    if static.config != dynamic.config:
        raise InputError("The two recipes are of different models.", "Give both stages of one preset.")
    if not (static.depth_weight or static.ssi_depth_weight):
        static = replace(static, depth_weight=0.05)
    warmups = [min(recipe.warmup, recipe.steps // 10) for recipe in (static, dynamic)]
    return (
        replace(static, probabilistic=True, warmup=warmups[0]),
        replace(dynamic, bidirectional=True, warmup=warmups[1]),
    )


def _result(
    variant: Variant, static: Recipe, dynamic: Recipe, cache: Cache, gap: int, out: Path, deadline: float,
    progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """The scores of a variant: those an earlier call stored, or new ones, which are stored."""
    file = out / f"{variant.name}.json"
    recipes = replace(static, **variant.static), replace(dynamic, **variant.dynamic)
    question = [*(recipe.key() for recipe in recipes), cache.fingerprint, gap]
    if file.exists():
        stored: dict[str, Any] = json.loads(file.read_text())
        if stored["of"] == question:
            return dict(stored["scores"])
    weights, recipe = train_variant(variant, static, dynamic, out, deadline, progress)
    scores = score(weights, recipe, cache, gap, progress)
    write_bytes(file, json.dumps({"of": question, "scores": scores}, indent=1).encode())
    return scores


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and measure what the budget of this call allows.

    Returns:
        The report: {"benchmark", "complete", "gap", "metric", "recipes", "data", "machine", "commit",
        "variants": {name: {"title", "paper_key", "changes", and, where it is done, the result of `score`}}}.

    Raises:
        StreamSplatError: recipes, data or folder cannot be used.
    """
    deadline = time.monotonic() + 60 * arguments.max_minutes
    static, dynamic = _recipes(arguments)
    cache = Cache(arguments.data)
    gap = arguments.gap or dynamic.config.key_frame_gap
    report: dict[str, Any] = {
        "benchmark": "ablations",
        "complete": False,
        "gap": gap,
        "metric": "PSNR dB at model resolution, uint8 RGB, mean over frames, then over clips",
        "recipes": {"static": static.to_dict(), "dynamic": dynamic.to_dict()},
        "data": cache.fingerprint,
        "machine": describe_machine(),
        "commit": source_commit(),
        "variants": {},
    }
    progress = not arguments.quiet
    try:
        for variant in VARIANTS:
            entry: dict[str, Any] = {
                "title": variant.title,
                "paper_key": variant.paper,
                "changes": asdict(variant),
            }
            entry["changes"] = {stage: entry["changes"][stage] for stage in ("static", "dynamic")}
            report["variants"][variant.name] = entry
            entry.update(_result(variant, static, dynamic, cache, gap, arguments.out, deadline, progress))
        report["complete"] = True
    except OutOfTime:
        pass
    return report


def format_table(report: dict[str, Any]) -> str:
    """The report for people: our key frames and frames in between beside the paper's key frames, in dB."""
    recipes = report["recipes"]
    lines = [
        f"{report['metric']}; gap {report['gap']}; "
        f"{recipes['static']['steps']} + {recipes['dynamic']['steps']} steps per variant",
        f"{'variant':<36}{'key':>8}{'change':>8}{'between':>9}{'change':>8}{'paper: key':>12}{'change':>8}",
    ]
    full = report["variants"]["full"]
    for entry in report["variants"].values():
        cells = []
        for kind in ("key", "between"):
            value, reference = (e.get("average", {}).get(kind) for e in (entry, full))
            cells += ["-", "-"] if value is None else [f"{value:.2f}", f"{value - reference:+.2f}"]
        cells += [f"{entry['paper_key']:.2f}", f"{entry['paper_key'] - full['paper_key']:+.2f}"]
        widths = (8, 8, 9, 8, 12, 8)
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{entry['title']:<36}{row}")
    if not report["complete"]:
        lines.append("not complete: the same command goes on")
    return "\n".join(lines)


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    return parse


def main(argv: list[str] | None = None) -> int:
    """Command line: train, measure, print the table; exit code 3 where the time was too short for all."""
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.ablations",
        description="trains a tiny model with and without each part of the method, and measures",
    )
    parser.add_argument("--data", metavar="DIR", required=True, help="media cache with an eval split")
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--static-steps", type=_positive(int), metavar="N", help="default: the recipe's")
    parser.add_argument("--dynamic-steps", type=_positive(int), metavar="N", help="default: the recipe's")
    parser.add_argument(
        "--max-minutes",
        type=_positive(float),
        default=float("inf"),
        metavar="M",
        help="stop after this long; run again to go on (default: no limit)",
    )
    for stage in ("static", "dynamic"):
        file = _CONFIGS / f"ablation_{stage}.toml"
        parser.add_argument(
            f"--{stage}-config",
            type=Path,
            default=file,
            metavar="FILE",
            help=f"recipe (default: {file.name})",
        )
    parser.add_argument("--gap", type=_positive(int), metavar="N", help="default: the model's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args(argv)
    try:
        report = run(arguments)
        if arguments.json:
            write_bytes(arguments.json, (json.dumps(report, indent=1) + "\n").encode())
    except StreamSplatError as error:
        print(error.told, file=sys.stderr)
        return 2
    print(format_table(report))
    return 0 if report["complete"] else 3


if __name__ == "__main__":
    raise SystemExit(main())
