"""Do the files and plans of a bundle compute what the model does? Stage by stage, and in rendered frames.

The reference (PyTorch in fp32, or the bundle's own fp32 files) runs the real stream on key frames, and what
goes into and comes out of every stage is recorded (`stage_engines`). Each candidate then gets the recorded
inputs stage by stage, and runs the stream by itself end to end. Distances are Polygraphy's (`compare`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..runtime.bundle import Bundle, StageVariant
from ..runtime.engines import Engine
from ..runtime.errors import EngineError, InputError, MismatchError, StreamSplatError
from .batch import BATCH, Arrays, run_batch
from .compare import Distance, compare, frame_psnr
from .contents import check_contents
from .stage_engines import Recorder, file_engines, files_of, run_stream


class VerificationError(StreamSplatError):
    """Files or plans of a bundle do not compute what they should."""


@dataclass(frozen=True)
class Comparison:
    """Agreement of one output tensor of a stage over all its recorded calls (the worst of them)."""

    backend: str
    precision: str
    stage: str
    output: str
    relative_l2: float
    max_abs: float
    cosine: float
    finite: bool


@dataclass
class Report:
    """What `verify_bundle` found.

    Attributes:
        reference, source: what was taken for true; where the frames came from.
        comparisons: every output of every stage, per candidate.
        psnr_db: per candidate, the worst rendered frame against the reference; infinite where equal.
        skipped: candidates that cannot run here, with the reason.
        failures: what is beyond its threshold, in words; empty for success.
    """

    reference: str
    source: str
    thresholds: Mapping[str, Mapping[str, float]]
    comparisons: list[Comparison] = field(default_factory=list)
    psnr_db: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # stage, precision

    def to_json(self) -> dict[str, Any]:
        """For the manifest: infinite PSNR as 999, since JSON has no infinity."""
        return {
            "thresholds": {k: dict(v) for k, v in self.thresholds.items()},
            "reference": self.reference,
            "source": self.source,
            "passed": not self.failures,
            "psnr_db": {k: min(v, 999.0) for k, v in self.psnr_db.items()},
            "skipped": dict(self.skipped),
            "failures": list(self.failures),
            "stages": [asdict(c) for c in self.comparisons if c.finite],
        }


def verify_bundle(
    bundle: Bundle,
    reference: Mapping[str, Engine] | None,
    frames: Sequence[np.ndarray],
    *,
    thresholds: Mapping[str, Mapping[str, float]],
    source: str,
    progress: bool = False,
) -> Report:
    """Compare every precision in ONNX Runtime, and every plan that runs here, with the reference.

    Args:
        bundle: what is verified.
        reference: an engine per stage, closed afterwards; None for the bundle's fp32 files in ONNX Runtime.
        frames: two or more key frames, uint8 RGB of any size.
        thresholds: per precision, see `record.limits`.
        source: where the frames come from, for the report.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no reference was given and the bundle has no fp32 files, or nothing but the reference runs
            here.
        MismatchError: a file has other inputs or outputs than the manifest says, or is of another precision.
    """
    check_contents(bundle)
    precisions = bundle.precisions
    if reference is None and "fp32" not in precisions:
        raise InputError(
            f"{bundle.path} has no fp32 files to compare with.",
            "Give its weights with --checkpoint, or export with --precision fp32,fp16.",
        )
    candidates = _candidates(bundle, precisions)
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(
            total=len(frames) * (1 + len(candidates)), disable=not progress, desc="verify", unit="run"
        ) as bar,
    ):
        scratch = Path(folder)
        bar.set_postfix_str("reference")
        if reference is None:
            reference = file_engines(files_of(bundle, "fp32", "onnxruntime", scratch), "onnxruntime")
        recorders = {stage: Recorder(engine) for stage, engine in reference.items()}
        report = Report(next(iter(recorders.values())).description, source, thresholds)
        truth = run_stream(bundle, recorders, frames, bar)
        # A candidate runs every recorded call, and then the key frames by itself.
        steps = sum(len(recorder.calls) for recorder in recorders.values()) + len(frames)
        bar.total = len(frames) + steps * len(candidates)
        for i, (engine, precision) in enumerate(candidates, 1):
            files = files_of(bundle, precision, engine, scratch)
            _try(report, bundle, engine, precision, files, recorders, frames, truth, bar)
            bar.update(len(frames) + steps * i - bar.n)  # one that was skipped has taken no steps
    if not report.comparisons:
        reasons = "; ".join(f"{label} {reason.rstrip('.')}" for label, reason in report.skipped.items())
        raise InputError(
            f"Nothing of {bundle.path} was compared: {reasons}.",
            "Give the weights that it was exported from with --checkpoint: they are then the reference.",
        )
    return report


def _try(
    report: Report,
    bundle: Bundle,
    engine: str,
    precision: str,
    files: Mapping[str, StageVariant],
    recorders: Mapping[str, Recorder],
    frames: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    bar: tqdm[Any],
) -> None:
    """One candidate, stage by stage and end to end; appends to the report."""
    label = f"{engine} {precision}"
    bar.set_postfix_str(f"{label} load")
    try:
        stages = file_engines(files, engine, device="cpu" if engine == "onnxruntime" else "cuda")
    except MismatchError:  # no machine runs such a file: nothing that was left out here
        raise
    except EngineError as error:
        report.skipped[label] = error.message
        return
    if all(recorders[stage].description == opened.description for stage, opened in stages.items()):
        for opened in stages.values():
            opened.close()
        report.skipped[label] = "is the reference"
    else:
        for stage, opened in stages.items():
            bar.set_postfix_str(f"{label} {stage}")
            _judge(report, engine, precision, stage, _results(opened, recorders[stage].calls, bar))
        bar.set_postfix_str(f"{label} rendered frames")
        rendered = run_stream(bundle, stages, frames, bar)
        worst = min(frame_psnr(a, b) for a, b in zip(rendered, truth, strict=True))
        report.psnr_db[label] = worst
        bound = report.thresholds.get(precision, {}).get("psnr_db", -math.inf)
        if not worst >= bound:
            report.failures.append(f"{label}: rendered frames agree to {worst:.1f} dB, {bound:g} are needed")
    if engine == "onnxruntime":
        for stage, file in files.items():
            bar.set_postfix_str(f"{label} {stage}, batch {BATCH}")
            together = run_batch(file.path, recorders[stage].calls)
            if together is not None:
                _judge(report, f"{engine} batch {BATCH}", precision, stage, [together])


def _candidates(bundle: Bundle, precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Engine and precision of what is compared: files in ONNX Runtime, and complete sets of plans."""
    found = [("onnxruntime", precision) for precision in precisions]
    by_stage = [
        {(p.entry.runtime, v.precision) for v in bundle.variants(stage) for p in v.plans}
        for stage in bundle.stage_names
    ]
    return found + sorted(set.intersection(*by_stage))


def _results(
    engine: Engine, calls: Sequence[tuple[Arrays, Arrays]], bar: tqdm[Any]
) -> Iterator[tuple[Arrays, Arrays]]:
    """What an engine makes of recorded inputs, and what was recorded; overwritten by the next."""
    got = {spec.name: np.empty(spec.shape, spec.dtype) for spec in engine.outputs}
    for inputs, expected in calls:
        engine.run(inputs, got)
        bar.update(1)
        yield got, expected


def _judge(
    report: Report, backend: str, precision: str, stage: str, results: Iterable[tuple[Arrays, Arrays]]
) -> None:
    """Compare the outputs of a stage with what was recorded; appends the worst of each to the report."""
    limits = report.thresholds.get(precision, {})
    bound = limits.get(f"{stage}_relative_l2", limits.get("relative_l2", math.inf))
    worst: dict[str, Distance] = {}
    for got, expected in results:
        for name, truth in expected.items():
            found, before = compare(got[name], truth), worst.get(name)
            if before is None or (
                before.finite and (not found.finite or found.relative_l2 > before.relative_l2)
            ):
                worst[name] = found
    for name, found in worst.items():
        report.comparisons.append(Comparison(backend, precision, stage, name, **asdict(found)))
        where = f"{backend} {precision}: {stage}.{name}"
        if not found.finite:
            report.failures.append(f"{where} holds NaN or infinity")
        elif found.relative_l2 > bound:
            report.failures.append(
                f"{where} differs by {found.relative_l2:.2e} (relative L2, bound {bound:.0e})"
            )
        else:
            continue
        if (stage, precision) not in report.failed:
            report.failed.append((stage, precision))
