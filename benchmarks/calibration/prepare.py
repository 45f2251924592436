"""What both benchmarks of quantisation start from: a recording of videos, and a judge of frames of others."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import option_types
from ...calibration import sources as sources_of
from ...calibration import videos
from ...calibration.frames import Judge
from ...calibration.recording import Recording, record
from ...extras import require
from ...runtime.bundle import Bundle, StageVariant
from ...runtime.errors import InputError
from .. import outcome

Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Prepared:
    """A bundle, what its stages read, and what they are measured on.

    Attributes:
        sources: fp32 file per stage. recording: to calibrate on. judge: of frames of `gate`.
        gate: pairs of key frames. work: folder in which results may be kept for another run.
    """

    bundle: Bundle
    sources: dict[str, StageVariant]
    recording: Recording
    judge: Judge
    gate: list[videos.Pair]
    work: Path

    def to_json(self) -> dict[str, Any]:
        """The material, for the report."""
        return {
            "calibrated_on": _counted(self.recording.pairs),
            "measured_on": _counted(self.gate),
            "pair": f"two key frames, {self.bundle.model.key_frame_gap} frames apart",
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `prepared`."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle with fp32 files")
    add("--data", metavar="PATH", nargs="+", type=Path, default=[], help="videos to calibrate on, or folders")
    add("--gate-data", metavar="PATH", nargs="+", type=Path, default=[], help="other videos to measure on")
    add(
        "--media",
        metavar="DIR",
        type=Path,
        help="instead: a folder of training media; its train split is calibrated on, its eval split measured",
    )
    add(
        "--gate-samples",
        type=option_types.positive,
        default=16,
        metavar="N",
        help="pairs to measure on (default %(default)s)",
    )
    add(
        "--work",
        type=Path,
        default=Path("out/calibration"),
        metavar="DIR",
        help="where recordings and finished rows are kept: the same command goes on (default %(default)s)",
    )
    add("--json", type=Path, metavar="OUT", help="also write the result as JSON")
    add("--quiet", action="store_true", help="no progress bars")


@contextmanager
def prepared(args: argparse.Namespace, samples: int) -> Iterator[Prepared]:
    """Look at the videos, record `samples` pairs, and open the judge.

    Raises:
        InputError: videos are missing or too short. BundleError: no fp32 files, or quantised already.
        VideoError, EngineError, OutputError: reading, running or writing fails; what is recorded is kept.
    """
    progress = not args.quiet
    bundle = Bundle.load(args.bundle)
    sources = {stage: sources_of.fp32(bundle, stage) for stage in bundle.stage_names}
    data, gate_data = _splits(args.media) if args.media else (args.data, args.gate_data)
    if not data:
        raise InputError("There are no videos to calibrate on.", "Give --data and --gate-data, or --media.")
    shots, held = sources_of.survey(bundle, data, gate_data, progress=progress)
    pairs = videos.choose(shots, samples)
    if len(pairs) < samples:
        raise InputError(
            f"The videos have {len(pairs)} pairs of key frames, {samples} were asked for.",
            "Give more videos, or ask for fewer samples.",
        )
    gate = videos.choose(held, args.gate_samples)
    recording = record(bundle, pairs, args.work / f"recording-{samples}", progress=progress)
    with Judge(bundle, gate, args.work / "reference", progress=progress) as judge:
        yield Prepared(bundle, sources, recording, judge, gate, args.work)


def carried_out(
    args: argparse.Namespace,
    samples: int,
    run: Callable[[Prepared, Write], dict[str, Any]],
    text: Callable[[dict[str, Any]], list[str]],
) -> int:
    """Prepare, run, and print the result.

    Args:
        args: of `add_arguments`. samples: to record.
        run: makes the result, and calls its second argument with what there is of it, so that nothing
            finished is lost. text: of the result.

    Returns:
        The exit code: 2 where something cannot be done, which stderr says.
    """

    def measured() -> dict[str, Any]:
        with prepared(args, samples) as ready:
            return run(ready, lambda result: outcome.write_json(result, args.json))

    return outcome.carried_out(measured, text, args.json)


def _splits(media: Path) -> tuple[list[Path], list[Path]]:
    """Videos of the train split and of the eval split of a folder of training media."""
    require("train", "cv2")
    from ...training.data.layouts import read_folder

    clips = read_folder(media).clips
    train, held = ([c.path for c in clips if c.split == split] for split in ("train", "eval"))
    if not held:
        raise InputError(f"{media} has no clips in the split 'eval'.", "Give --data and --gate-data.")
    return train, held


def _counted(pairs: Sequence[videos.Pair]) -> dict[str, int]:
    """Pairs of each video, by its name."""
    names = [Path(pair.video).stem for pair in pairs]
    return {name: names.count(name) for name in dict.fromkeys(names)}
