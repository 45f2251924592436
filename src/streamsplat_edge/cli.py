"""The command line: parse, call, print. Everything heavy is imported by the command that needs it.

Exit codes: 0 done; 1 `doctor` found something broken; 2 refused or failed, with a message; 3 done, but the
input was damaged and only part of it could be read; 130 interrupted, 143 by SIGTERM, 129 when the terminal is
lost (what was done until then is kept).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import option_types, standard_files
from ._version import __version__
from .output_options import add_output_options
from .source_options import ENGINES, add_source_options
from .view_options import add_view_options

EXIT_OK, EXIT_UNHEALTHY, EXIT_REFUSED, EXIT_PARTIAL, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

# Subcommands beside the code they drive: each module offers `add_parser(subparsers)` and sets `handler`.
_REGISTERING_MODULES = (
    *("output_options", "serve_options", "export.cli", "calibration.cli", "training.cli"),
    "benchmarks.bench.cli",
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamsplat-edge",
        description="Turns a video into dynamic 3D Gaussians, frame by frame, on a CPU or an edge GPU.",
        epilog="Exit codes: 0 done, 2 refused, 3 done but the input was damaged, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"streamsplat-edge {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_info(commands)
    _add_doctor(commands)
    for name in _REGISTERING_MODULES:
        full = f"{__package__}.{name}"
        if importlib.util.find_spec(full) is not None:
            importlib.import_module(full).add_parser(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="reconstruct videos, image folders, cameras or network streams",
        description="Streams INPUT through the model and writes what the Gaussians look like.",
    )
    _add_run_options(run)
    run.add_argument(
        "--display",
        action="store_true",
        help="show the reconstruction in a window of this machine (extra [display]); Esc ends the run",
    )
    run.set_defaults(handler=_run, stays=False)
    view = commands.add_parser(
        "view",
        help="look at a video, a stream or saved tracks in a browser",
        description="As `run INPUT --view`, with all its options; the page stays until Ctrl-C. INPUT may "
        "also be a file of tracks (run --save NAME.npz), which needs neither model nor video.",
    )
    _add_run_options(view)
    view.set_defaults(handler=_view, view=True, stays=True, display=False)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="video file, folder of images (sorted by name), camera:N, rtsp://..., http(s)://... or "
        "gst:PIPELINE; several share the device fairly",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="video to write (.mp4 .mov .mkv), or a folder of PNG (no suffix); with several inputs, {} in "
        "this and other names stands for the input's number, from 0",
    )
    parser.add_argument("--bundle", metavar="B", help="bundle folder (default: the demo bundle)")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="onnxruntime",
        help="runs the stages (default: onnxruntime); tensorrt takes plans that `build` made",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where networks and rasterizer run (default: cpu)",
    )
    parser.add_argument(
        "--precision",
        metavar="P",
        help="precision that runs, e.g. fp32 or bf16 (default: the engine's best for the bundle)",
    )
    parser.add_argument(
        "--threads",
        type=option_types.threads,
        default=0,
        metavar="N",
        help="threads (default: 0 = all cores)",
    )
    parser.add_argument(
        "--gap",
        type=option_types.positive,
        metavar="N",
        help="frames from key frame to key frame (default: what the bundle says)",
    )
    add_source_options(parser)
    parser.add_argument(
        "--max-frames", type=option_types.positive, metavar="N", help="stop after so many input frames"
    )
    parser.add_argument(
        "--folder-rate",
        action=option_types.Given,
        type=option_types.rate,
        default=24.0,
        metavar="FPS",
        help="frame rate of an image folder (default: 24)",
    )
    add_output_options(parser)
    parser.add_argument(
        "--view", action="store_true", help="show the run in a browser while it goes on (extra [view])"
    )
    add_view_options(parser)
    parser.add_argument("--stats", metavar="FILE", help="write settings and measurements as JSON")
    parser.add_argument("--contact-sheet", metavar="FILE", help="write a PNG overview of the run")
    parser.add_argument("--json", action="store_true", help="print the statistics as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="print only errors and warnings")
    parser.add_argument("--force", action="store_true", help="replace existing output files")


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info", help="describe a bundle", description="Checks a bundle and prints what it holds."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder")
    parser.add_argument("--device", metavar="BOARD", help="memory it needs on a Jetson, like orin-nx-16")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.set_defaults(handler=_info)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this machine can run and why",
        description="Looks at Python, CPU, engines and accelerators and says what will be used.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.set_defaults(handler=_doctor)


def _run(args: argparse.Namespace) -> int:
    from .commands.run import main

    return main(args)


def _view(args: argparse.Namespace) -> int:
    if len(args.inputs) == 1 and args.inputs[0].lower().endswith((".npz", ".4dgs", ".ply", ".splat")):
        from .commands.view_tracks import main

        return main(args)
    return _run(args)


def _info(args: argparse.Namespace) -> int:
    from .commands.info import main

    return main(args)


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import main

    return main(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (see the module's docstring)."""
    standard_files.open_closed()
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output left, as in `... | head`
        standard_files.give_up(sys.stdout)
        return EXIT_REFUSED
    except OSError as error:
        told = standard_files.full(error)
        if told is None:
            raise
        standard_files.give_up(sys.stdout)
        try:
            print(told.told, file=sys.stderr)
        except OSError:  # it is on the same disk
            standard_files.give_up(sys.stderr)
        return EXIT_REFUSED


def _main(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    from .runtime.errors import StreamSplatError

    try:
        return int(args.handler(args) or 0)
    except StreamSplatError as error:
        _report(error.message, error.hint, type(error).__name__, getattr(args, "json", False))
        return EXIT_REFUSED
    except FileNotFoundError as error:
        if error.filename is not None or _folder_exists():
            raise
        hint = "Change into a folder that exists, and run it again."
        _report("the current folder was deleted.", hint, "InputError", getattr(args, "json", False))
        return EXIT_REFUSED
    except MemoryError as error:
        message = f"not enough memory{f': {error}' if str(error) else ''}."
        _report(
            message,
            "Use a smaller model or input, or free memory.",
            "MemoryError",
            getattr(args, "json", False),
        )
        return EXIT_REFUSED
    except KeyboardInterrupt as interrupt:
        for number, word in ((signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")):
            if number in interrupt.args:
                print(word, file=sys.stderr)
                return 128 + number
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _folder_exists() -> bool:
    """Whether there is a current folder, which names of files are relative to."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _report(message: str, hint: str, kind: str, as_json: bool) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": message, "hint": hint}}))
