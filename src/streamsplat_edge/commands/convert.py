"""`streamsplat-edge convert`: saved Gaussians in another format."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from ..cli import EXIT_OK
from ..runtime.errors import InputError
from ..runtime.outputs.convert import convert, moments
from ..runtime.outputs.recording import SEQUENCE_RATE, open_recording
from ..runtime.outputs.targets import check_target, parse_source, parse_target

_PROGRESS_AFTER = 2.0  # seconds


def main(args: argparse.Namespace) -> int:
    """Runs the command; see `cli` for the exit codes."""
    source, target = parse_source(args.source), parse_target(args.target, option="OUT")
    if source.path.absolute() == target.path.absolute():
        raise InputError(f"{args.target} is the input itself.", "Choose another name.")
    check_target(target, force=args.force)
    with open_recording(args.source, rate=args.rate or SEQUENCE_RATE) as recording:
        times = moments(recording, rate=args.rate, at=args.at)
        exact = args.rate is None and args.at is None
        steps = convert(recording, target, times, exact=exact)
        bar = tqdm(steps, file=sys.stderr, disable=args.quiet, delay=_PROGRESS_AFTER, leave=False)
        done = max(bar, default=0)
    if not args.quiet:
        print(f"wrote {args.target}: {done} {'moments' if done != 1 else 'moment'}")
    return EXIT_OK
