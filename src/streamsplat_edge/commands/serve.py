"""`streamsplat-edge serve`: streams on Ray Serve, one replica per device of one or more machines."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from ..cli import EXIT_OK, EXIT_PARTIAL
from ..runtime.bundle import Bundle
from ..runtime.errors import EngineError, InputError
from ..runtime.serving.spec import StreamSpec
from ..runtime.sources import existing_path
from .arguments import find_bundle

_STATUS_SECONDS = 2.0


def main(args: argparse.Namespace) -> int:
    """Serves until all streams have ended (0; 3 where one failed) or Ctrl-C."""
    specs = parse_streams(args)
    bundle = find_bundle(args.bundle).absolute()
    Bundle.load(bundle)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its 5 s are too few for the HTTP server to start on a small or busy device.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    try:
        import ray
        from ray import serve

        from ..runtime.serving.service import APPLICATION, build
    except ImportError as error:
        raise EngineError(
            f"Ray Serve cannot be imported ({error}).", "pip install 'streamsplat-edge[serve]'"
        ) from error
    # A cluster of this machine alone needs no other address than its own.
    local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if args.address is None else {}
    ray.init(address=args.address, log_to_driver=False, logging_level="ERROR", **local)
    try:
        serve.start(
            http_options={"host": args.host, "port": args.port}, logging_config={"log_level": "ERROR"}
        )
        application = build(
            specs,
            str(bundle),
            replicas=args.replicas,
            streams_per_replica=args.streams_per_replica,
            engine=args.engine,
            device=args.device,
            threads=args.threads,
        )
        desk = serve.run(application, name=APPLICATION, route_prefix="/")
        print(f"serving on http://{args.host}:{args.port}/", file=sys.stderr)
        return _watch(desk, args.json)
    finally:
        if args.address is None:
            serve.shutdown()
        else:
            serve.delete(APPLICATION)
        ray.shutdown()


def parse_streams(args: argparse.Namespace) -> list[StreamSpec]:
    """Specifications of the streams that were named.

    Raises:
        InputError: a name twice, or an impossible value. VideoError: an unknown kind of URI.
    """
    for option in ("replicas", "streams_per_replica"):
        if getattr(args, option) < 1:
            raise InputError(f"--{option.replace('_', '-')} is {getattr(args, option)}.", "Use 1 or more.")
    specs: dict[str, StreamSpec] = {}
    for number, text in enumerate(args.streams):
        named = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", text)
        name, uri = (named[1], named[2]) if named else (f"s{number}", text)
        if name in specs:
            raise InputError(f"Two streams are named {name}.", "Give each its own: NAME=URI.")
        if existing_path(uri) is not None:
            uri = str(Path(uri).absolute())  # replicas run elsewhere
        specs[name] = StreamSpec(name, uri, args.gap, args.key_frames, args.silence)
    room = args.replicas * args.streams_per_replica
    if len(specs) > room:
        raise InputError(
            f"{len(specs)} streams, but room for {room}.", "More --replicas, or more --streams-per-replica."
        )
    return list(specs.values())


def _watch(desk: Any, as_json: bool) -> int:
    """Prints what changes until nothing runs any more."""
    shown = ""
    while True:
        streams = desk.report.remote().result()["streams"]
        if as_json:
            line = json.dumps({"streams": streams})
        else:
            line = "   ".join(f"{s['name']} {s['state']} {s['frames']}" for s in streams)
        if line != shown:
            print(line, flush=True)
            shown = line
        if all(stream["state"] in ("ended", "failed") for stream in streams):
            return EXIT_PARTIAL if any(stream["state"] == "failed" for stream in streams) else EXIT_OK
        time.sleep(_STATUS_SECONDS)
