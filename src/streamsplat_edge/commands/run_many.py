"""`streamsplat-edge run A B C`: several inputs share one device fairly, each with outputs of its own."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..cli import EXIT_OK, EXIT_PARTIAL, EXIT_REFUSED
from ..runtime.bundle import Bundle
from ..runtime.errors import InputError
from ..runtime.schedule import Job, run_fairly
from ..runtime.video import open_video
from ..source_options import live_options, stays_on_gpu
from .arguments import check_arguments, find_bundle
from .run import Run, conclude, power_meter
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
    outputs = [check_arguments(one) for one in each]
    live = live_options(args)
    bundle = Bundle.load(find_bundle(args.bundle))
    with ExitStack() as stack, Stop() as stop:
        runs: list[Run] = []
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
            runs[-1].open_output(stack)
        runs[0].open_stream(stack)
        for run in runs[1:]:
            run.stream = stack.enter_context(runs[0].stream.fork())
        with power_meter(args) as power:
            jobs = _execute(args, runs, stop)
        frames = sum(run.pipeline.report().frames for run in runs)
        shared = power.result(frames) | {"streams": len(runs)}
        for run in runs:
            run.power = lambda _: shared
        stats = [
            run.finish(paths) | {"schedule": {"service_seconds": job.service, "turns": job.turns}}
            for run, paths, job in zip(runs, outputs, jobs, strict=True)
        ]
    if args.json:
        print(json.dumps({"streams": stats}))
    codes = [_conclude(args, *each, stop) for each in zip(runs, jobs, stats, strict=True)]
    return EXIT_PARTIAL if EXIT_REFUSED in codes and set(codes) != {EXIT_REFUSED} else max(codes)


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


def _execute(args: argparse.Namespace, runs: list[Run], stop: Stop) -> list[Job]:
    for run in runs:
        run.begin()
    jobs = [Job(run.reader.uri, run.pipeline) for run in runs]
    by_job = dict(zip(jobs, runs, strict=True))
    estimates = [run.reader.frames_estimate for run in runs]
    total = sum(n or 0 for n in estimates) if all(estimates) and not args.max_frames else None
    stop.armed = True
    with (
        closing(run_fairly(jobs, stopped=stop.event.is_set)) as frames,
        tqdm(total=total, unit="frame", file=sys.stderr, disable=args.quiet, delay=_PROGRESS_AFTER) as bar,
    ):
        for job, rendered in frames:
            by_job[job].show(rendered)
            bar.update()
    stop.armed = False
    return jobs


def _conclude(args: argparse.Namespace, run: Run, job: Job, stats: dict[str, Any], stop: Stop) -> int:
    one = argparse.Namespace(**vars(run.args))
    one.json, one.quiet = False, args.quiet or args.json
    code = conclude(one, run, stats, stop)
    if job.error is None:
        return code
    print(f"error: {job.name}: {job.error.message}", file=sys.stderr)
    if job.error.hint:
        print(f"hint: {job.error.hint}", file=sys.stderr)
    return EXIT_REFUSED if code == EXIT_OK else code
