"""`streamsplat-edge serve`: streams on Ray Serve, one replica per device of one or more machines."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..cli import EXIT_OK, EXIT_PARTIAL
from ..machine import usable_cores
from ..runtime.bundle import Bundle
from ..runtime.errors import EngineError, InputError, StreamSplatError
from ..runtime.serving.resources import threads_per_replica
from ..runtime.serving.spec import StreamSpec
from ..runtime.sources import existing_path
from .arguments import find_bundle
from .offspring import ended_with_this
from .stopping import Stop

_STATUS_SECONDS = 2.0
_MISSED_REPORTS = 30  # in a row: a minute
_CONNECT_SECONDS = 5.0


def main(args: argparse.Namespace) -> int:
    """Serves until all streams have ended (0; 3 where one failed) or Ctrl-C.

    SIGTERM, by which a service is stopped, is taken like Ctrl-C: Ray's processes end with this one (143),
    also those that Ray would leave behind where it is interrupted while it starts.
    """
    with Stop() as stop, ended_with_this():
        return _main(args, stop)


def _main(args: argparse.Namespace, stop: Stop) -> int:
    specs = parse_streams(args)
    bundle = find_bundle(args.bundle).absolute()
    Bundle.load(bundle)
    check_cluster(args.address)
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
    if not args.ray_log:
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
    level = "INFO" if args.ray_log else "ERROR"
    _start_ray(ray, args.address, log=args.ray_log, level=level)
    stop.listen_again()  # Ray's handler of SIGTERM prints its stack, aborts, and leaves processes behind
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        threads, note = threads_per_replica(machines, args.replicas, device=args.device, threads=args.threads)
        if note:
            print(f"note: {note}", file=sys.stderr)
        with _explained("The HTTP server did not start", "Choose another --host or --port."):
            serve.start(
                http_options={"host": args.host, "port": args.port}, logging_config={"log_level": level}
            )
        application = build(
            specs,
            str(bundle),
            replicas=args.replicas,
            streams_per_replica=args.streams_per_replica,
            engine=args.engine,
            device=args.device,
            threads=threads,
        )
        try:
            desk = _start(serve, application, APPLICATION)
            print(f"serving on http://{args.host}:{args.port}/", file=sys.stderr)
            try:
                return _watch(desk, args.json)
            finally:  # streams end before what they run on
                with suppress(Exception):
                    desk.stop.remote().result(timeout_s=_STATUS_SECONDS)
        finally:
            serve.delete(APPLICATION)  # a cluster of our own needs no more: it ends as a whole
    finally:
        ray.shutdown()


def check_cluster(address: str | None) -> None:
    """Whether anything listens where a cluster is said to be. Ray tries for minutes, and says nothing.

    Args:
        address: HOST:PORT or ray://HOST:PORT; other words Ray understands, or refuses, at once.

    Raises:
        EngineError: nothing does.
    """
    named = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d+)", address or "")
    if named is None:
        return
    try:
        socket.create_connection((named[1], int(named[2])), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:  # the latter of a port beyond 65535
        raise EngineError(
            f"--address {address}: no Ray cluster can be reached there ({error}).",
            "`ray start --head` prints its address; without --address one is started on this machine.",
        ) from error


def _start_ray(ray: Any, address: str | None, *, log: bool, level: str) -> None:
    """Joins the cluster at `address`, or starts one on this machine.

    Raises:
        EngineError: Ray did not start. KeyboardInterrupt: SIGTERM, which its own handler took.
    """
    options: dict[str, Any] = {"address": address, "log_to_driver": log, "logging_level": level}
    if address is None:  # of this machine alone: no other address than its own, and the cores that we may use
        options |= {
            "include_dashboard": False,
            "num_cpus": usable_cores(),
            "_node_ip_address": "127.0.0.1",
        }
    with _explained(
        "Ray did not start", "See whether --address is that of a running cluster, or leave it out."
    ):
        try:
            ray.init(**options)
        except SystemExit:
            raise KeyboardInterrupt(signal.SIGTERM) from None


def _start(serve: Any, application: Any, name: str) -> Any:
    """The running application.

    Raises:
        EngineError: the replicas did not start; with what the first of them said.
    """
    try:
        return serve.run(application, name=name, route_prefix="/")
    except RuntimeError as error:
        deployments = serve.status().applications[name].deployments.values()
        said = next((each.message for each in deployments if "Error" in each.message), str(error))
        raise EngineError(
            f"The replicas did not start: {_last_line(said)}",
            "See whether `streamsplat-edge run` works with these options.",
        ) from error


@contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    """Ray's errors, which hold the tracebacks of other processes, in a line."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"{what}: {_last_line(str(error))}", hint) from error


def _last_line(text: str) -> str:
    """What a traceback says in the end, without the name of the exception."""
    lines = text.strip().splitlines() or ["no reason was given"]
    return re.sub(r"^[\w.]+: ", "", lines[-1])


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
    """Prints what changes until nothing runs any more; why a stream is lost or has failed, on stderr."""
    shown = ""
    told: dict[str, str] = {}
    missed = 0
    while True:
        try:
            streams, missed = desk.report.remote().result()["streams"], 0
        except Exception as error:  # Serve starts the desk again when it dies
            missed += 1
            if missed == _MISSED_REPORTS:
                raise EngineError(
                    f"The service does not answer any more: {_last_line(str(error))}", "Start it again."
                ) from error
            time.sleep(_STATUS_SECONDS)
            continue
        if as_json:
            line = json.dumps({"streams": streams})
        else:
            line = "   ".join(f"{s['name']} {s['state']} {s['frames']}" for s in streams)
        if line != shown:
            print(line, flush=True)
            shown = line
        for name, message, hint in ((s["name"], s["error"], s["hint"]) for s in streams):
            if message and message != told.get(name):
                print(
                    StreamSplatError(f"{name}: {message.removeprefix(f'{name}: ')}", hint).told,
                    file=sys.stderr,
                )
            told[name] = message
        if all(stream["state"] in ("ended", "failed") for stream in streams):
            return EXIT_PARTIAL if any(stream["state"] == "failed" for stream in streams) else EXIT_OK
        time.sleep(_STATUS_SECONDS)
