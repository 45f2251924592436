"""A long run: `python -m streamsplat_edge.benchmarks.soak INPUT --bundle B --frames N [--json OUT]`.

Plays the input again and again (forwards, backwards, forwards, so that there is no cut where it turns) until
so many frames went through one stream, and answers three questions:

- does memory grow? Resident memory is sampled every `--every` frames (later less often, so that what is
  measured with does not grow itself); the slope of the second half by least squares, with its 95 % interval
  (and the growth that it means for 100,000 frames);
- does quality drift? PSNR against the input, in the first and in the last minute of the stream. And since the
  same pictures come again and again, each frame is compared with the same moment of an early round: exact
  equality is expected, because a Gaussian lives for two intervals only. What lives longer is the range of
  depth of a bundle with a `depth` stage, so there the round is the first one after the range has settled;
- are ids and counters exact? Every frame once and in order, every id of a Gaussian new, spawned = retired +
  alive, rendered + culled = alive, at every frame.

A run can be interrupted and continued: with `--state FILE`, what was measured is kept there, and the next
call goes on (in a new process, whose memory is measured by itself) until N frames are complete.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import option_types
from ..commands import report
from ..machine import describe_machine
from ..runtime.bundle import Bundle
from ..runtime.errors import InputError, StreamSplatError
from ..runtime.pipeline import Pipeline
from ..runtime.sources import parse_uri
from ..runtime.stream import Stream, open_stream
from ..runtime.timing import LatencyRecorder
from ..runtime.video import write_bytes
from . import soak_watch
from .memory import slope
from .soak_watch import Endless, Piece, State, Watch

FORMAT, VERSION = "streamsplat-soak", 1
_CHECKPOINT_SECONDS = 20.0


def drift(minutes: list[list[float]]) -> dict[str, Any]:
    """Mean PSNR of the first and of the last whole minute, key frames and frames in between."""
    whole = minutes[:-1] if len(minutes) > 2 else minutes

    def mean(minute: list[float], at: int) -> float | None:
        return minute[at] / minute[at + 1] if minute[at + 1] else None

    return {
        name: {"first_minute": mean(whole[0], at), "last_minute": mean(whole[-1], at)}
        for name, at in (("key_frames", 0), ("in_between", 2))
    } | {"minutes": len(whole)}


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Goes on until `args.frames` are done (or `args.seconds` over). The report, ready for JSON."""
    # Before the run: who works on the checkout meanwhile changes its commit, and not what runs.
    about = {"machine": describe_machine(), "software": report.software(args.engine)}
    bundle = Bundle.load(args.bundle)
    source = Endless(args.input, args.clip_frames)
    key = {
        "input": parse_uri(args.input).shown,
        "clip_frames": len(source.pictures),
        "bundle": bundle.name,
        "engine": args.engine,
        "files": {
            f"{stage}/{variant.path.name}": variant.sha256
            for stage in bundle.stage_names
            for variant in bundle.variants(stage)
        },
    }
    state = State.load(args.state, key)
    started, remaining = time.monotonic(), args.frames - state.done
    with open_stream(bundle, engine=args.engine, threads=args.threads) as stream:
        stages = stream.description
        if remaining > 0:
            _play(args, state, source, stream, started)
    return _report(args, bundle, source, state, stages, about)


def _play(args: argparse.Namespace, state: State, source: Endless, stream: Stream, started: float) -> None:
    watch = Watch(state, source, stream, args.every)
    total = args.frames - state.done
    saved = started

    def over() -> bool:
        return args.seconds is not None and time.monotonic() - started > args.seconds

    recorder = LatencyRecorder(capacity=256)  # its memory is constant from the first seconds on
    # A cut in the clip would reset the stream; what is tested here is one that is never reset.
    pipeline = Pipeline(
        source.play(state.done, total), stream, detect_cuts=False, stopped=over, recorder=recorder
    )
    with (
        closing(pipeline.frames()) as frames,
        tqdm(total=args.frames, initial=state.done, unit="frame", delay=2.0, mininterval=5.0) as bar,
    ):
        for rendered in frames:
            watch.check(rendered)
            bar.update()
            watch.piece.seconds = time.monotonic() - started
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                watch.piece.memory = watch.memory.rows()
                state.save(args.state)
                saved = time.monotonic()
    totals = pipeline.report()
    watch.piece.gaussians = {
        "key_frames": totals.key_frames,
        "spawned": totals.spawned,
        "retired": totals.retired,
        "peak_alive": totals.peak_alive,
    }
    watch.piece.memory = watch.memory.rows()
    state.save(args.state)


def _report(
    args: argparse.Namespace, bundle: Bundle, source: Endless, state: State, stages: dict[str, str],
    about: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    longest = max(state.pieces, key=lambda piece: piece.frames, default=Piece(0))
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **about,
        "bundle": {"name": bundle.name, "preset": bundle.model.preset, "files": state.key["files"]},
        "stages": stages,
        "protocol": {
            "input": parse_uri(args.input).shown,
            "pictures": len(source.pictures),
            "frames_asked": args.frames,
            "frames_run": state.done,
            "seconds_of_stream": state.done * source.period,
            "processes": len(state.pieces),
            "longest_process_frames": longest.frames,
            "definition": "the pictures played to and fro as one stream, cut detection off; memory: resident "
            "set; drift: PSNR against the input at model resolution",
        },
        "memory": {
            "slope": slope(longest.memory),
            "first_mib": longest.memory[0][1] if longest.memory else None,
            "last_mib": longest.memory[-1][1] if longest.memory else None,
            "definition": "least squares over the second half of the longest process; 95 % interval, the "
            "wider of that for independent samples and that by the differences of eight blocks",
            "samples_mib": [[frame, round(mib, 3)] for frame, mib in longest.memory],
        },
        "psnr_db": drift(state.minutes) if state.minutes else None,
        "repeats": {
            "frames_compared": state.compared,
            "largest_difference": state.differs_max,
            "definition": "8-bit levels between a frame and the same moment of its process's first round"
            + (
                f" that begins {soak_watch.SETTLE_SECONDS:g} s or more after the start"
                if "depth" in stages
                else ""
            ),
        },
        "exact": {"violations": state.violations, "gaussians": [piece.gaussians for piece in state.pieces]},
        "seconds": sum(piece.seconds for piece in state.pieces),
        "finished": state.done >= args.frames,
    }


def describe(result: dict[str, Any]) -> list[str]:
    """The report in lines of text."""
    protocol, memory, repeats, quality = (result[k] for k in ("protocol", "memory", "repeats", "psnr_db"))
    lines = [
        f"{protocol['frames_run']:,} of {protocol['frames_asked']:,} frames in {result['seconds']:.0f} s, "
        f"{protocol['processes']} process(es); {protocol['seconds_of_stream'] / 60:.1f} minutes of stream"
    ]
    if memory["slope"]:
        gain = memory["slope"]
        lines.append(
            f"memory      {memory['first_mib']:.1f} -> {memory['last_mib']:.1f} MiB; slope "
            f"{gain['bytes_per_frame']:+.1f} +- {gain['interval_95']:.1f} bytes per frame "
            f"({gain['mib_per_100000_frames']:+.2f} MiB per 100,000)"
        )
    if quality:
        for name in ("key_frames", "in_between"):
            first, last = quality[name]["first_minute"], quality[name]["last_minute"]
            if first is not None and last is not None:
                lines.append(f"{name:<11} {first:.4f} dB in the first minute, {last:.4f} dB in the last")
    lines += [
        f"repeats     {repeats['frames_compared']:,} frames compared, largest difference "
        f"{repeats['largest_difference']} levels",
        f"exact       {len(result['exact']['violations'])} violations of ids, order and counters",
    ]
    return lines


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: all exact; 1: a violation; 2: refused."""
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.soak",
        description=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", help="video file or folder of images")
    parser.add_argument("--bundle", required=True, metavar="B", help="bundle folder")
    parser.add_argument("--frames", type=int, default=100_000, metavar="N", help="default: 100000")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="stop after so long; --state goes on later"
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="keep measurements here and continue from it"
    )
    parser.add_argument(
        "--clip-frames", type=int, default=41, metavar="N", help="pictures used (default: 41)"
    )
    parser.add_argument(
        "--every", type=int, default=50, metavar="N", help="frames per memory sample (default: 50)"
    )
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument(
        "--threads", type=option_types.threads, default=0, metavar="N", help="0 = all cores (default)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything as JSON")
    args = parser.parse_args(argv)
    try:
        if args.frames < 2 or args.every < 1 or args.clip_frames < 2:
            raise InputError("--frames and --clip-frames need 2 or more, --every 1 or more.")
        result = soak(args)
        print("\n".join(describe(result)))
        if args.json:
            write_bytes(args.json, (json.dumps(report.finite(result), indent=1) + "\n").encode())
    except StreamSplatError as error:
        print(error.told, file=sys.stderr)
        return 2
    return 1 if result["exact"]["violations"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
