"""The result of a calibration for people: text, and a picture of the sensitivities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..runtime.font import HEIGHT, draw_text, text_size
from ..runtime.video import encode_png, write_bytes
from ..runtime.video.output import output_error
from .cpu import FLOAT, CpuChoice
from .frames import Score
from .options import Result
from .plans import PlanTimings
from .sensitivity import Sensitivity
from .timing import Timing

_LEGEND = "    (* is what the bundle uses; x: time relative to the first)"
_SHOWN = 10  # layers in the text
_MARGIN, _ROW, _BAR = 10, HEIGHT + 5, 360
_INK, _PAPER, _RED, _BLUE = (30, 30, 30), (252, 252, 250), (200, 70, 50), (70, 110, 180)


def lines(result: Result) -> list[str]:
    """The report as text."""
    options = result.options
    total, quantised = len(result.decisions), sum(d.quantise for d in result.decisions)
    method = f"{options.method} {options.percentile:g}" if options.method == "percentile" else options.method
    found = [
        f"  {options.precision} by {method} on {result.samples} samples: {quantised} of {total} products "
        f"quantised; frames of {result.gate_samples} pairs, {options.min_psnr:g} dB needed",
    ]
    if result.score is not None:
        found.append(f"  {'TensorRT files':<16} {_words(result.score)}")
    if result.plans is not None:
        found += _plans(result.plans, result.options.slower)
    if not result.passed:
        found.append("  BELOW THE GATE, saved because of --force-quality")
    if result.given_back:
        found.append(f"  {len(result.given_back)} layers given back to floating point by the gate:")
        found += [f"    {stage}: {node}" for stage, node in result.given_back]
    for choice in result.cpu:
        found += _cpu(choice)
    if result.sensitivities:
        found += ["", "  most sensitive layers: rendered frames with that layer alone quantised"]
        found.append(f"  {'worst':>7} {'mean':>7} {'swung':>7}  layer (dB)")
        for s in result.sensitivities[:_SHOWN]:
            found.append(
                f"  {s.score.worst:7.1f} {s.score.mean:7.1f} {s.score.novel:7.1f}  {s.stage}: {s.node}"
            )
    return found


def _words(score: Score) -> str:
    return f"worst frame {score.worst:.1f} dB, mean {score.mean:.1f} dB, swung view {score.novel:.1f} dB"


def _plans(plans: PlanTimings, slower: bool) -> list[str]:
    if plans.reason:
        return [f"    not timed: {plans.reason}"]
    found = [f"    {plans.runtime} on {plans.device}"]
    for stage, timings in plans.timings.items():
        taken = list(timings)[0 if stage in plans.slower and not slower else -1]
        found.append(f"    {stage:<10} {_timings(timings, taken)}")
    return [*found, _LEGEND]


def _timings(timings: Mapping[str, Timing], taken: str) -> str:
    return ", ".join(
        f"{'*' if name == taken else ''}{name} {t.milliseconds:.1f} ms (x{t.ratio:.2f})"
        for name, t in timings.items()
    )


def _cpu(choice: CpuChoice) -> list[str]:
    found = []
    score = "" if choice.score is None else _words(choice.score)
    if choice.score is not None and choice.baseline is not None and choice.baseline.worst < 100:
        score += f" (its fp32 files: {choice.baseline.worst:.1f} dB)"
    found.append(f"  {choice.engine:<16} {choice.reason or score}")
    for stage, timings in choice.timings.items():
        found.append(f"    {stage:<10} {_timings(timings, choice.files.get(stage, (FLOAT,))[0])}")
    if any(choice.timings.values()):
        found.append(_LEGEND)
    return found


def picture(sensitivities: list[Sensitivity], threshold: float) -> npt.NDArray[np.uint8]:
    """A bar per layer, most sensitive first: uint8 [h, w, 3]. Longer is better; a line marks `threshold`.

    Bars show the mean; red ones are below the threshold by themselves.
    """
    names = [f"{s.stage}: {s.node}" for s in sensitivities]
    left = _MARGIN + max([text_size(name)[0] for name in names], default=0) + 8
    height = 2 * _MARGIN + (len(names) + 2) * _ROW
    canvas: npt.NDArray[np.uint8] = np.empty((height, left + _BAR + 60, 3), np.uint8)
    canvas[...] = _PAPER
    title = "PSNR of rendered frames with one layer quantised, dB (mean)"
    draw_text(canvas, _MARGIN, _MARGIN, title, _INK)
    means = [min(s.score.mean, 99.0) for s in sensitivities]
    low = 10 * (min([*means, threshold], default=0) // 10)
    high = max([*means, threshold + 1], default=1)

    def place(value: float) -> int:
        return left + round((value - low) / (high - low) * _BAR)

    for i, (name, mean) in enumerate(zip(names, means, strict=True)):
        y = _MARGIN + (i + 2) * _ROW
        draw_text(canvas, _MARGIN, y, name, _INK)
        canvas[y : y + HEIGHT - 2, left : place(mean)] = _RED if mean < threshold else _BLUE
        draw_text(canvas, place(mean) + 4, y, f"{mean:.1f}", _INK)
    line = place(threshold)
    canvas[_MARGIN + _ROW : height - _MARGIN, line : line + 1] = _INK
    draw_text(canvas, line + 3, _MARGIN + _ROW, f"{threshold:g}", _INK)
    return canvas


def write_report(result: Result, folder: Path) -> None:
    """Write report.json, and sensitivity.png where layers were measured.

    Raises:
        OutputError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    write_bytes(folder / "report.json", json.dumps(result.to_json(), indent=1).encode())
    if result.sensitivities:
        image = picture(result.sensitivities, result.options.min_psnr)
        write_bytes(folder / "sensitivity.png", encode_png(image))
