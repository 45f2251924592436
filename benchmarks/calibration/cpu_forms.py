"""INT8 on this CPU: `python -m streamsplat_edge.benchmarks.calibration.cpu_forms BUNDLE --data VIDEOS`.

Every INT8 form of every stage is timed against the fp32 file, in ONNX Runtime and in OpenVINO, as `calibrate`
does it: the files take turns, and what is more than 3 % faster is put to the gate on rendered frames. Needs
the extra [build], [openvino] for its half, and [train] for --media. Not for a busy machine.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import Any

from ... import option_types
from ...calibration.cpu import ENGINES, choose_forms
from ...calibration.observe import clips_of, observe, silent
from ...calibration.options import Options
from ...calibration.ranges import METHODS
from ...calibration.recipe import Recipe, keep_also
from ...calibration.sources import decided
from ...commands import report
from ...machine import describe_machine
from ..identity import describe_bundle, state
from .cpu_result import FORMAT, VERSION, text
from .prepare import Prepared, Write, add_arguments, carried_out


def run(
    ready: Prepared,
    method: str,
    seconds: float,
    write: Write,
    progress: bool = False,
) -> dict[str, Any]:
    """Everything, ready for JSON; `write` gets it after each engine."""
    options = Options(method=method, samples=len(ready.recording))
    _, decisions = decided(ready.bundle.path, Recipe(), "int8")
    clips = {}
    for stage, source in ready.sources.items():
        layers = [d.layer for d in decisions if d.stage == stage and d.quantise]
        if layers:
            seen = observe(source, layers, ready.recording, progress=progress)
            clips[stage] = clips_of(seen, layers, method, "int8", percentile=options.percentile)
    decisions = keep_also(decisions, silent(clips), "read only zeros")
    result: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "software": report.software("onnxruntime", "onnx", "openvino"),
        "bundle": describe_bundle(ready.bundle),
        "state": {"before": state()},
        "protocol": {
            **ready.to_json(),
            "method": method,
            "min_psnr_db": options.min_psnr,
            "seconds": seconds,
            "milliseconds": "one run of a stage, median; ratio: to the fp32 file in the same turn, median",
        },
        "engines": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for engine in ENGINES:
            choice = choose_forms(
                engine, ready.sources, decisions, clips, ready.recording, ready.judge, Path(scratch) / engine,
                min_psnr=options.min_psnr, seconds=seconds, progress=progress,
            )  # fmt: skip
            result["engines"].append(choice.to_json())
            result["state"]["after"] = state()
            write(result)
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.calibration.cpu_forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add, defaults = parser.add_argument, Options()
    add(
        "--samples",
        type=option_types.positive,
        default=defaults.samples,
        metavar="N",
        help="pairs of key frames to calibrate on (default %(default)s)",
    )
    add("--method", choices=METHODS, default=defaults.method, help="of the ranges (default %(default)s)")
    add(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="per stage and engine, after which no further turn begins (default %(default)s)",
    )
    args = parser.parse_args(argv)
    return carried_out(
        args,
        args.samples,
        lambda ready, write: run(ready, args.method, args.seconds, write, not args.quiet),
        text,
    )


if __name__ == "__main__":
    raise SystemExit(main())
