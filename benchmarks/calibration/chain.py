"""INT8 in the whole chain: `python -m streamsplat_edge.benchmarks.calibration.chain BUNDLE --clip CLIP`.

Two streams take turns: one with the files that the bundle would be run with here, one with its fp32 files
(which OpenVINO runs in bf16 where the CPU has that). A turn is some intervals: a picture of the clip becomes
a key frame, and the frames up to it are rendered. Decoding is not in it. Not for a busy machine.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...calibration.cpu import ENGINES, engines_of
from ...calibration.sources import fp32
from ...calibration.timing import take_turns
from ...commands import report
from ...machine import describe_machine
from ...runtime.bundle import Bundle
from ...runtime.engines import select_variant
from ...runtime.errors import InputError
from ...runtime.stream import Stream, open_stream
from ...runtime.video import open_video
from ..identity import describe_bundle, state
from ..outcome import carried_out
from .chain_result import FORMAT, VERSION, text

_PICTURES = 16  # of the clip, a gap apart: they are made key frames in turn


def measure(bundle: Bundle, clip: Path, engines: Sequence[str], seconds: float) -> dict[str, Any]:
    """Everything, ready for JSON.

    Args:
        bundle: with fp32 files. clip: video. engines: that are compared, each by itself.
        seconds: per engine, after which no further turn begins.

    Raises:
        InputError: the clip has no two key frames. BundleError, EngineError, VideoError: see `open_stream`.
    """
    gap, before = bundle.model.key_frame_gap, state()
    pictures = _pictures(clip, gap)
    found = []
    for engine in engines:
        taken = {stage: select_variant(bundle, stage, engine) for stage in bundle.stage_names}
        plain = engines_of(engine, {stage: fp32(bundle, stage) for stage in bundle.stage_names}, {})
        with Stream(bundle, plain) as first, open_stream(bundle, engine=engine) as second:
            first.warm_up()
            streams = {"fp32": first, "taken": second}
            passes = {name: _pass(stream, pictures, gap) for name, stream in streams.items()}
            timings = take_turns(passes, seconds=seconds, turns=10_000)
            found.append(
                {
                    "engine": engine,
                    "files": {s: v.path.name for s, v in taken.items() if v.quantised},
                    "stages": {name: stream.description for name, stream in streams.items()},
                    "interval": {
                        name: replace(t, milliseconds=t.milliseconds / len(pictures)).to_json()
                        for name, t in timings.items()
                    },
                }
            )
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "software": report.software(*engines),
        "bundle": describe_bundle(bundle),
        "state": {"before": before, "after": state()},
        "protocol": {"clip": clip.name, "gap": gap, "pictures": len(pictures), "seconds": seconds},
        "engines": found,
    }


def _pictures(clip: Path, gap: int) -> list[np.ndarray]:
    with closing(open_video(str(clip))) as reader:
        wanted = itertools.islice(reader, 0, _PICTURES * gap, gap)
        pictures = [np.array(frame.image) for frame in wanted]
    if len(pictures) < 2:
        raise InputError(f"{clip} is shorter than {gap + 1} frames.", "Give a longer one.")
    return pictures


def _pass(stream: Stream, pictures: Sequence[np.ndarray], gap: int) -> Callable[[], None]:
    """Each call makes every picture a key frame, a second after the last one, and renders what lies between.
    As many as that, because threads of the other stream's engine spin for a while before they sleep."""
    times = itertools.count()

    def run() -> None:
        for picture in pictures:
            now = next(times)
            stream.push(picture, float(now))
            for step in range(1, gap + 1) if now else ():
                stream.render(now - 1 + step / gap, copy=False)

    return run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.calibration.chain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle that `calibrate` made for CPUs")
    add("--clip", metavar="CLIP", type=Path, required=True, help="video")
    add("--engine", choices=ENGINES, nargs="+", default=list(ENGINES), help="default: all of them")
    add("--seconds", type=float, default=30.0, metavar="S", help="per engine (default %(default)s)")
    add("--json", type=Path, metavar="OUT", help="also write the result as JSON")
    args = parser.parse_args(argv)
    return carried_out(
        lambda: measure(Bundle.load(args.bundle), args.clip, args.engine, args.seconds), text, args.json
    )


if __name__ == "__main__":
    raise SystemExit(main())
