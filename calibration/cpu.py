"""The INT8 file that is really faster on this CPU, stage by stage and engine by engine, or none.

Which form wins depends on the processor (VNNI, AMX), the engine and the sizes of the layers, so all of
`forms.CPU_FORMS` are timed against the fp32 file as the engine would run it (OpenVINO: in bf16 where the CPU
has that). What is chosen has to pass the same gate as the files for TensorRT, in the engine that will run it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..machine import describe_machine
from ..runtime import engines
from ..runtime.bundle import StageVariant, sha256_of
from ..runtime.engines import Engine
from ..runtime.processor import kind_of_this_cpu
from .forms import CPU_FORMS, Clips, Form, write_form
from .frames import Judge, Score
from .recipe import Decision, keep_also
from .recording import Recording
from .sensitivity import smallest
from .timing import Timing, compare, fastest

FLOAT = "fp32"
ENGINES = ("onnxruntime", "openvino")
"""Engines that INT8 files are made for on CPUs."""
WORTH_SAVING = 0.01
"""Part of the time of all stages that an INT8 file has to save: small stages cost quality for nothing."""


@dataclass
class CpuChoice:
    """What was chosen for one engine.

    Attributes:
        engine: name. files: per stage, precision and path of the quantised file to use; stages without one
            keep their fp32 file.
        timings: per stage and form. refused: per stage and form, why it does not run.
        score: of the files together with the fp32 files of the other stages; None where nothing was chosen.
        baseline: of the fp32 files in this engine, which may run them in bf16.
        given_back: layers that stay in floating point for the sake of this engine's frames.
        reason: why there are no files, empty where there are.
    """

    engine: str
    files: dict[str, tuple[str, Path]] = field(default_factory=dict)
    timings: dict[str, dict[str, Timing]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    score: Score | None = None
    baseline: Score | None = None
    given_back: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "processor": {"name": describe_machine()["cpu"], "kind": kind_of_this_cpu()},
            "chosen": {stage: name for stage, (name, _) in self.files.items()},
            "timings": {
                stage: {name: t.to_json() for name, t in found.items()}
                for stage, found in self.timings.items()
            },
            "refused": self.refused,
            "psnr_db": None if self.score is None else self.score.to_json(),
            "psnr_db_fp32": None if self.baseline is None else self.baseline.to_json(),
            "given_back": [f"{stage}:{node}" for stage, node in self.given_back],
            "reason": self.reason,
        }


def choose_forms(
    engine: str,
    sources: Mapping[str, StageVariant],
    decisions: Sequence[Decision],
    clips: Mapping[str, Clips],
    recording: Recording,
    judge: Judge,
    scratch: Path,
    *,
    min_psnr: float,
    slower: bool = False,
    order: Sequence[tuple[str, str]] = (),
    seconds: float = 4.0,
    progress: bool = False,
) -> CpuChoice:
    """Time the forms of every stage in a CPU engine, keep those that are faster, and put them to the gate.

    Args:
        engine: `onnxruntime` or `openvino`.
        sources: fp32 file per stage. decisions, clips: what may be quantised, and its ranges.
        recording: inputs to time with. judge: of the frames.
        scratch: folder for the files.
        min_psnr: dB. slower: take the fastest INT8 form even where it is slower than fp32.
        order: layers to give back, most sensitive first.
        seconds: of a stage, after which no further turn of timing begins.
    """
    choice = CpuChoice(engine)
    if importlib.util.find_spec(engine) is None:
        choice.reason = f"{engine} is not installed"
        return choice
    usable = {
        stage: source
        for stage, source in sources.items()
        if engine in source.engines and any(d.quantise for d in decisions if d.stage == stage)
    }
    scratch.mkdir(parents=True)
    chosen: dict[str, Form] = {}
    for stage, source in tqdm(usable.items(), disable=not progress, desc=f"time in {engine}", unit="stage"):
        form = _timed(choice, source, decisions, clips, recording, scratch, slower, seconds)
        if form is not None:
            chosen[stage] = form
    if not slower:
        chosen = {stage: form for stage, form in chosen.items() if _matters(choice, stage, form)}
    if not chosen:
        choice.reason = "no INT8 form is faster than the fp32 file"
        return choice
    left = [entry for entry in order if entry[0] in chosen]
    found: dict[int, tuple[dict[str, tuple[str, Path]], Score]] = {}

    def passes(count: int) -> bool:
        files = _written(chosen, sources, keep_also(decisions, left[:count], "gate"), clips, scratch, count)
        found[count] = (files, _score(engine, sources, files, judge))
        return found[count][1].worst >= min_psnr

    choice.baseline = _score(engine, sources, {}, judge)
    count = smallest(left, passes)
    if count is None:
        choice.reason = (
            f"rendered frames agree with fp32 to {found[0][1].worst:.1f} dB only, {min_psnr:g} are needed"
        )
        return choice
    choice.files, choice.score = found[count]
    choice.given_back = left[:count]
    if not choice.files:
        choice.reason = "the gate gave every layer back"
    return choice


def _timed(
    choice: CpuChoice,
    source: StageVariant,
    decisions: Sequence[Decision],
    clips: Mapping[str, Clips],
    recording: Recording,
    scratch: Path,
    slower: bool,
    seconds: float,
) -> Form | None:
    """The form of a stage to use, None to stay with fp32; enters the timings."""
    stage = source.stage
    layers = [d.layer for d in decisions if d.stage == stage and d.quantise]
    variants = {FLOAT: source}
    seen: set[str] = set()
    for form in CPU_FORMS:
        path = scratch / f"{stage}.{form.name}.onnx"
        if choice.engine not in form.engines or not write_form(form, source, layers, clips[stage], path):
            continue
        digest = sha256_of(path)
        if digest not in seen:  # a stage of linear layers alone is the same in two forms
            seen.add(digest)
            variants[form.name] = replace(
                source, path=path, precision=form.name, engines=(choice.engine,), plans=(), weights=None
            )
    inputs = next(iter(recording.calls(stage, source.inputs)))
    timings, refused = compare(variants, inputs, choice.engine, seconds=seconds)
    choice.timings[stage] = timings
    if refused:
        choice.refused[stage] = refused
    best = fastest(timings)
    if best == FLOAT and slower:
        best = min((name for name in timings if name != FLOAT), key=lambda n: timings[n].ratio, default=FLOAT)
    return next((form for form in CPU_FORMS if form.name == best), None)


def _matters(choice: CpuChoice, stage: str, form: Form) -> bool:
    """Whether a form saves enough of all stages' time to be worth its errors."""
    total = sum(timings[FLOAT].milliseconds for timings in choice.timings.values())
    own = choice.timings[stage]
    return own[FLOAT].milliseconds * (1 - own[form.name].ratio) >= WORTH_SAVING * total


def _written(
    chosen: Mapping[str, Form],
    sources: Mapping[str, StageVariant],
    decisions: Sequence[Decision],
    clips: Mapping[str, Clips],
    scratch: Path,
    count: int,
) -> dict[str, tuple[str, Path]]:
    """The files with these decisions."""
    files = {}
    for stage, form in chosen.items():
        layers = [d.layer for d in decisions if d.stage == stage and d.quantise]
        path = scratch / f"{stage}.{form.name}.{count}.onnx"
        if write_form(form, sources[stage], layers, clips[stage], path):
            files[stage] = (form.name, path)
    return files


def _score(
    engine: str,
    sources: Mapping[str, StageVariant],
    files: Mapping[str, tuple[str, Path]],
    judge: Judge,
) -> Score:
    opened = engines_of(engine, sources, files)
    try:
        return judge.score(opened)
    finally:
        for loaded in opened.values():
            loaded.close()


def engines_of(
    engine: str, sources: Mapping[str, StageVariant], files: Mapping[str, tuple[str, Path]]
) -> dict[str, Engine]:
    """All stages in the engine, as they will run: with the quantised files where there are any.

    Args:
        engine: name. sources: fp32 file per stage. files: per stage, precision and path (`CpuChoice.files`).

    Raises:
        EngineError: one does not load; none is left open.
    """
    opened: dict[str, Engine] = {}
    try:
        for stage, source in sources.items():
            variant = replace(source, engines=(engine,))
            if stage in files:
                name, path = files[stage]
                variant = replace(variant, path=path, precision=name, weights=None)
            opened[stage] = engines.create(engine, variant)
    except BaseException:
        for loaded in opened.values():
            loaded.close()
        raise
    return opened
