"""From a bundle and videos to a quantised bundle that has passed its gate."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..runtime.bundle import Bundle, StageVariant
from ..runtime.bundle_writing import check_replaceable
from ..runtime.errors import BundleError, StreamSplatError
from . import cpu, sensitivity, videos
from .forms import Clips, save
from .frames import Judge
from .gate import of_graphs, pass_gate, score_of
from .layers import load_graph
from .observe import clips_of, observe, silent
from .options import Options, Result
from .plans import time_plans
from .recipe import Decision, keep_also
from .recording import Recording, record
from .smooth import smooth
from .sources import decided, for_tensorrt, fp32, survey
from .writing import for_plans, write

ENOUGH = 128
"""Samples from which on the frames hardly depend on which ones were taken: measured, docs/quantise.md."""

Files = dict[str, StageVariant]


class NothingGainedError(StreamSplatError):
    """No file of the quantised bundle would be worth taking."""


def calibrate(
    path: Path,
    data: Sequence[Path],
    out: Path,
    options: Options,
    *,
    gate_data: Sequence[Path] = (),
    work: Path | None = None,
    force: bool = False,
    progress: bool = False,
) -> tuple[Bundle, Result]:
    """Record, find ranges, insert Q/DQ, measure, and write the quantised bundle.

    Args:
        path: a bundle with fp32 files. data: videos to calibrate on. out: bundle to write.
        gate_data: videos to measure on; empty: a part of `data` that is then not calibrated on.
        work: folder for what is recorded, kept afterwards, so that another run with it is short; None uses
            one beside `out` and removes it when all is done.
        force: replace an existing bundle.

    Raises:
        InputError: data, options or recipe cannot be used. BundleError: so can the bundle, or `out` exists.
        GateError: the frames differ too much; nothing is written.
        NothingGainedError: no file is faster here and good enough.
        VideoError, EngineError, OutputError: reading, running or writing fails; what is recorded is kept.
    """
    options.check()
    check_replaceable(out, force)
    bundle, decisions = decided(path, options.recipe, options.precision)
    sources = {stage: fp32(bundle, stage) for stage in bundle.stage_names}
    targets = {} if options.target == "cpu" else for_tensorrt(bundle)
    if options.target == "tensorrt" and not targets:
        raise BundleError(
            f"{bundle.path} has no files for TensorRT.", "Export it again, or use --target cpu."
        )
    folder = work or out.with_name(f".{out.name}.calibration")
    pairs, gate_pairs = _pairs(bundle, data, gate_data, options, progress)
    recording = record(bundle, pairs, folder / "recording", progress=progress)
    with (
        Judge(bundle, gate_pairs, folder / "reference", progress=progress) as judge,
        tempfile.TemporaryDirectory() as temporary,
    ):
        scratch = Path(temporary)
        smoothed: list[str] = []
        if options.smooth is not None:
            smoothed = _smoothed(sources, targets, decisions, recording, options, scratch, progress)
        clips, decisions = _ranges(recording, sources, decisions, options, progress)
        result = Result(
            options, decisions, None, len(pairs), len(gate_pairs), ranges=clips, smoothed=smoothed
        )
        if options.sensitivity:
            result.sensitivities = sensitivity.measure(
                judge, sources, decisions, clips, options.precision,
                kept=folder / _sensitivity_file(clips, options, judge), progress=progress,
            )  # fmt: skip
        files: Files = {}
        if targets:
            pass_gate(result, judge, targets)
            files = for_plans(result, targets, scratch)
            result.plans = time_plans(bundle, targets, files, recording, scratch, progress=progress)
            if result.plans.slower and not options.slower:
                files = {s: file for s, file in files.items() if s not in result.plans.slower}
                result.score = score_of(result, judge, {s: targets[s] for s in files}) if files else None
        for_cpus = options.target != "tensorrt" and options.precision == "int8"
        for engine in cpu.ENGINES if for_cpus else ():
            choice = cpu.choose_forms(
                engine, sources, result.decisions, clips, recording, judge, scratch / engine,
                min_psnr=options.min_psnr, slower=options.slower,
                order=[(s.stage, s.node) for s in result.sensitivities], progress=progress,
            )  # fmt: skip
            result.cpu.append(choice)
        if not files:
            _refuse_nothing(result, bundle)
        written = write(bundle, result, files, out, force)
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return written, result


def decide(path: Path, options: Options) -> list[Decision]:
    """What the recipe says of every layer of a bundle, without running anything.

    Raises:
        BundleError, InputError: bundle or recipe cannot be used.
    """
    options.check()
    return decided(path, options.recipe, options.precision)[1]


def _refuse_nothing(result: Result, bundle: Bundle) -> None:
    """Raise where no file would be written but those that are there."""
    if any(choice.files for choice in result.cpu):
        return
    reasons = [f"{choice.engine}: {choice.reason}" for choice in result.cpu]
    if result.plans is not None:
        slower = f"no stage is faster on {result.plans.device}" if result.plans.slower else "no layer is left"
        reasons.insert(0, f"TensorRT: {slower}")
    raise NothingGainedError(
        f"Nothing is gained: {'; '.join(reasons) or 'no engine was asked for'}.",
        f"Stay with {bundle.path}. What is not faster: --slower.",
    )


def _sensitivity_file(clips: Mapping[str, Clips], options: Options, judge: Judge) -> str:
    """Named after all that the numbers depend on."""
    content = json.dumps([clips, options.precision, options.smooth, judge.key], sort_keys=True)
    return f"sensitivity-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"


def _smoothed(
    sources: Files,
    targets: Files,
    decisions: Sequence[Decision],
    recording: Recording,
    options: Options,
    scratch: Path,
    progress: bool,
) -> list[str]:
    """Replace the files by smoothed ones; returns the layers whose inputs are smoothed."""
    assert options.smooth is not None
    names: list[str] = []
    for stage, source in dict(sources).items():
        linear = [d for d in decisions if d.stage == stage and d.quantise and d.layer.operator == "MatMul"]
        if not linear:
            continue
        seen = observe(source, [d.layer for d in linear], recording, progress=progress)
        maxima = {d.layer.node: seen[d.layer.activations[0]].channels for d in linear}
        for files, suffix in ((sources, "fp32"), (targets, "target")):
            if stage not in files:
                continue
            model = load_graph(files[stage].path)
            layers = [d.layer for d in of_graphs({stage: files[stage]}, linear)]
            nodes = smooth(model, layers, _known(maxima), options.smooth)
            path = scratch / f"{stage}.smooth.{suffix}.onnx"
            save(model, path)
            files[stage] = replace(files[stage], path=path, weights=None)
        names += [f"{stage}:{node}" for node in nodes]
    return names


def _known(maxima: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    return {name: value for name, value in maxima.items() if value is not None}


def _pairs(
    bundle: Bundle, data: Sequence[Path], gate_data: Sequence[Path], options: Options, progress: bool
) -> tuple[list[videos.Pair], list[videos.Pair]]:
    """Pairs to calibrate on and pairs to measure on."""
    shots, held = survey(bundle, data, gate_data, progress=progress)
    pairs = videos.choose(shots, options.samples)
    if len(pairs) < min(options.samples, ENOUGH):
        print(
            f"warning: only {len(pairs)} samples, ranges settle at about {ENOUGH}: give more videos.",
            file=sys.stderr,
        )
    elif options.samples < ENOUGH:
        print(f"warning: few samples, ranges settle at about {ENOUGH}: --samples {ENOUGH}.", file=sys.stderr)
    return pairs, videos.choose(held, options.gate_samples)


def _ranges(
    recording: Recording,
    sources: Mapping[str, StageVariant],
    decisions: Sequence[Decision],
    options: Options,
    progress: bool,
) -> tuple[dict[str, Clips], list[Decision]]:
    """Clips per stage and node, and the decisions without layers that read nothing but zeros."""
    found: dict[str, Clips] = {}
    for stage, source in sources.items():
        layers = [d.layer for d in decisions if d.stage == stage and d.quantise]
        if layers:
            seen = observe(source, layers, recording, progress=progress)
            found[stage] = clips_of(
                seen, layers, options.method, options.precision, percentile=options.percentile
            )
    zeros = silent(found)
    for stage, node in zeros:
        print(f"warning: {node} of stage {stage} read only zeros and is not quantised.", file=sys.stderr)
    return found, keep_also(decisions, zeros, "read only zeros while calibrating")
