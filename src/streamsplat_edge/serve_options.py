"""The options of `serve`. Apart from the code that serves: parsing must stay light."""

from __future__ import annotations

import argparse
from typing import Any

from . import option_types
from .source_options import ENGINES


def add_parser(commands: Any) -> None:
    """Adds `serve` to the command line."""
    parser = commands.add_parser(
        "serve",
        help="run streams on several devices or machines (Ray Serve)",
        description="Places streams on replicas, one per device, and brings them back when a replica dies. "
        "HTTP: / is the status as JSON, /NAME.png the latest picture of a stream.",
    )
    parser.add_argument(
        "streams", nargs="+", metavar="[NAME=]URI", help="as for `run`; names default to s0, s1, ..."
    )
    parser.add_argument("--bundle", metavar="B", help="bundle folder, at the same path on every machine")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="devices to use (default: 1)")
    parser.add_argument(
        "--streams-per-replica",
        type=int,
        default=8,
        metavar="N",
        help="most streams of a device (default: 8)",
    )
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what a replica takes (default: cpu)"
    )
    parser.add_argument(
        "--threads",
        type=option_types.count,
        default=0,
        metavar="N",
        help="of a replica, which reserves as many cores (default: 0 = the cores, shared by the replicas)",
    )
    parser.add_argument("--gap", type=int, metavar="N", help="as for `run`")
    parser.add_argument("--key-frames", choices=("fixed", "motion"), default="fixed", help="as for `run`")
    parser.add_argument("--silence", type=float, default=10.0, metavar="S", help="as for `run`")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="IP", help="of the HTTP server (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="P", help="of the HTTP server (default: 8000)"
    )
    parser.add_argument(
        "--address", metavar="A", help="of a running Ray cluster, or auto (default: one on this machine)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the status as JSON, a line each time it changes"
    )
    parser.add_argument("--ray-log", action="store_true", help="print what Ray says of itself, too")
    parser.set_defaults(handler=_serve)


def _serve(args: argparse.Namespace) -> int:
    from .commands.serve import main

    return main(args)
