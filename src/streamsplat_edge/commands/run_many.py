"""`streamsplat-edge run A B C`: several inputs share one device fairly, each with outputs of its own.

One stream's failure is its own. Where its input fails, what was done until then is kept; where its outputs
fail, nothing of that stream is left behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..cli import EXIT_OK, EXIT_PARTIAL, EXIT_REFUSED
from ..runtime.bundle import Bundle
from ..runtime.errors import DeviceLostError, InputError, OutputError, UnexpectedError, as_error
from ..runtime.pipeline import Rendered
from ..runtime.schedule import Job, run_fairly
from ..runtime.video import open_video
from ..source_options import live_options, stays_on_gpu
from .arguments import check_arguments, find_bundle
from .effects import check_effects_on_readers
from .report import finite
from .run import Run, conclude, power_meter
from .statistics import statistics
from .stopping import Stop

PLACE = "{}"  # in the name of an output, stands for the number of the input
_PROGRESS_AFTER = 2.0  # seconds


def main(args: argparse.Namespace) -> int:
    """Runs the command. Exit codes as in `cli`; the worst of any stream."""
    if args.view:
        raise InputError(
            f"--view shows one input, and {len(args.inputs)} were named.",
            "Run a command for each, with a --view-port of its own.",
        )
    if args.display:
        raise InputError(
            f"--display shows one input, and {len(args.inputs)} were named.", "Run a command for each."
        )
    each = [numbered(args, number) for number in range(len(args.inputs))]
    live = live_options(args)
    outputs = [check_arguments(one) for one in each]
    bundle = Bundle.load(find_bundle(args.bundle))
    with ExitStack() as stack, Stop() as stop:
        runs: list[Run] = []
        files: list[ExitStack] = []
        for one in each:
            reader = open_video(
                one.input,
                folder_rate=args.folder_rate,
                threads=args.threads,
                live=live,
                decode=args.decode,
                surfaces=stays_on_gpu(args),
            )
            runs.append(Run(one, bundle, stack.enter_context(reader), stop))
            files.append(stack.enter_context(ExitStack()))
            runs[-1].open_output(files[-1])
        check_effects_on_readers(args, [run.reader for run in runs])
        runs[0].open_stream(stack)
        for run in runs[1:]:
            run.stream = stack.enter_context(runs[0].stream.fork())
        with power_meter(args) as power:
            for run in runs:
                run.begin()
            streams = [
                _Stream(run, paths, opened, Job(run.reader.uri, run.pipeline))
                for run, paths, opened in zip(runs, outputs, files, strict=True)
            ]
            _execute(args, streams, stop)
        frames = sum(run.pipeline.report().frames for run in runs)
        shared = power.result(frames) | {"streams": len(runs)}
        for run in runs:
            run.power = lambda _: shared
        stats = [_finish(stream) for stream in streams]
    if args.json:
        print(json.dumps({"streams": stats}))
    codes = [_conclude(args, *each, stop) for each in zip(streams, stats, strict=True)]
    return EXIT_PARTIAL if EXIT_REFUSED in codes and set(codes) != {EXIT_REFUSED} else max(codes)


@dataclass(eq=False)
class _Stream:
    """One of the inputs.

    Attributes:
        paths: outputs by option. files: the same, open. spoiled: something could not be shown or stored, so
            that nothing is to be left.
    """

    run: Run
    paths: dict[str, Path]
    files: ExitStack
    job: Job
    spoiled: bool = False

    def show(self, rendered: Rendered) -> None:
        try:
            self.run.show(rendered)
        except Exception as error:
            self.spoiled = not isinstance(error, DeviceLostError)  # which leaves whole what was done
            self.job.fail(error)


def numbered(args: argparse.Namespace, number: int) -> argparse.Namespace:
    """The arguments of one input: `{}` in any of them becomes its number.

    Raises:
        InputError: an output has no `{}`, so that the streams would write over each other.
    """
    for option, value in (
        ("-o", args.output),
        ("--stats", args.stats),
        ("--contact-sheet", args.contact_sheet),
        *(("--save", path) for path in args.save),
    ):
        if value and PLACE not in value:
            path = Path(value)
            example = path.with_name(f"{path.stem}-{PLACE}{path.suffix}")
            raise InputError(
                f"{option} {value}: one name for {len(args.inputs)} inputs.", f"Write {option} {example}."
            )
    one = argparse.Namespace(**{name: _placed(value, number) for name, value in vars(args).items()})
    one.input = args.inputs[number]
    return one


def _placed(value: Any, number: int) -> Any:
    if isinstance(value, str):
        return value.replace(PLACE, str(number))
    return [_placed(item, number) for item in value] if isinstance(value, list) else value


def _execute(args: argparse.Namespace, streams: list[_Stream], stop: Stop) -> None:
    by_job = {stream.job: stream for stream in streams}
    estimates = [stream.run.reader.frames_estimate for stream in streams]
    total = sum(n or 0 for n in estimates) if all(estimates) and not args.max_frames else None
    stop.armed = True
    with (
        closing(run_fairly(list(by_job), stopped=stop.event.is_set)) as frames,
        tqdm(total=total, unit="frame", file=sys.stderr, disable=args.quiet, delay=_PROGRESS_AFTER) as bar,
    ):
        for job, rendered in frames:
            by_job[job].show(rendered)
            bar.update()
    stop.armed = False


def _finish(stream: _Stream) -> dict[str, Any]:
    """Completes or drops the outputs of a stream; its statistics."""
    run, job = stream.run, stream.job
    stats: dict[str, Any] | None = None
    stream.spoiled = stream.spoiled or isinstance(job.error, OutputError)
    try:
        if not stream.spoiled:
            stats = run.finish(stream.paths)
            stream.files.close()
    except Exception as failure:
        stream.spoiled = True
        if job.error is not None:  # that of the input is told in the end
            print(as_error(failure, job.name).told, file=sys.stderr)
        job.fail(failure)
    try:
        if stream.spoiled:
            assert job.error is not None
            stream.files.__exit__(type(job.error), job.error, None)
    except Exception as failure:
        job.fail(failure)
    told: dict[str, str] | None = None
    if (error := job.error) is not None:
        told = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    schedule = {"service_seconds": job.service, "turns": job.turns}
    return (stats or finite(statistics(run))) | {"schedule": schedule, "error": told}


def _conclude(args: argparse.Namespace, stream: _Stream, stats: dict[str, Any], stop: Stop) -> int:
    run, error = stream.run, stream.job.error
    one = argparse.Namespace(**vars(run.args))
    one.json, one.quiet = False, args.quiet or args.json or stream.spoiled
    code = conclude(one, run, stats, stop)
    if error is None:
        return code
    if isinstance(error, UnexpectedError):
        traceback.print_exception(error.__cause__)
    name = "" if stream.job.name in error.message else f"{stream.job.name}: "
    print(f"error: {name}{error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return EXIT_REFUSED if code == EXIT_OK else code
