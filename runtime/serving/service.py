"""`streamsplat-edge serve`: streams on Ray Serve, one replica per device.

Two deployments. `StreamHost` has a replica per device, each with a `DeviceWorker`. `StreamDesk` asks for each
stream with one long streaming request, which Serve's router places on a replica with room. When a replica
dies, Serve starts another, the request fails at the desk, and the desk asks again: that is all, and what was
lost is in the stream's status. Restarted by Serve, the desk asks for all streams anew.

HTTP: `/` is the status of all streams as JSON, `/NAME.png` the latest picture of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import as_error
from ..sources.uri import parse_uri
from .spec import Progress, StreamSpec, StreamStatus
from .worker import DeviceWorker

APPLICATION = "streamsplat-edge"
_QUEUED = 100  # reports that wait for the desk
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds before a stream is asked for again


class StreamHost:
    """A replica: one device."""

    def __init__(self, bundle: str, engine: str, device: str, threads: int) -> None:
        self._worker = DeviceWorker(bundle, engine=engine, device=device, threads=threads)

    async def play(self, spec: dict[str, Any], after: int) -> AsyncIterator[dict[str, Any]]:
        """Runs a stream to its end; yields `Progress` as dictionaries."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Progress]()

        def emit(progress: Progress) -> None:  # in the device's thread
            # Counts are totals, also in the last report: nothing is lost where the desk is slower.
            if progress.ended or queue.qsize() < _QUEUED:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                    loop.call_soon_threadsafe(queue.put_nowait, progress)

        try:
            placement = await asyncio.to_thread(self._worker.place, StreamSpec(**spec), emit, after=after)
        except Exception as error:  # also what nobody foresaw: it concerns this stream only
            told = as_error(error, parse_uri(spec["uri"]).shown)
            elsewhere = not self._worker.alive()
            yield asdict(Progress(ended=True, error=told.message, hint=told.hint, elsewhere=elsewhere))
            return
        try:
            while True:
                progress = await queue.get()
                yield asdict(progress)
                if progress.ended:
                    return
        finally:
            placement.stop()

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        if not self._worker.alive():
            raise RuntimeError("the device's thread has died")

    def __del__(self) -> None:
        self._worker.close()


class StreamDesk:
    """Keeps every stream running, and answers HTTP."""

    def __init__(self, hosts: DeploymentHandle, specs: list[dict[str, Any]]) -> None:
        self._hosts = hosts
        self._specs = [StreamSpec(**spec) for spec in specs]
        self.statuses = {
            spec.name: StreamStatus(spec.name, parse_uri(spec.uri).shown) for spec in self._specs
        }
        self._tasks: list[asyncio.Task[None]] = []

    async def check_health(self) -> None:
        """Called by Serve every second, first when the replica starts: here the streams begin."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._keep(spec)) for spec in self._specs]
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                raise RuntimeError("a stream's keeper has died") from task.exception()

    async def _keep(self, spec: StreamSpec) -> None:
        """Asks for a stream until it has ended. A file that cannot be read is not asked for again."""
        recording = parse_uri(spec.uri).kind == "path"
        status, wait = self.statuses[spec.name], _FIRST_WAIT
        while True:
            before, restarts = status.frames, status.restarts
            try:
                asked = self._hosts.options(stream=True).play.remote(asdict(spec), status.position)
                try:
                    async for values in asked:
                        status.take(Progress(**values))
                finally:
                    asked.cancel()
                if status.state == "ended" or (status.state == "failed" and recording):
                    return
                if status.restarts == restarts:  # else the replica said itself that it is gone
                    status.lost(status.error or "the stream broke off", status.hint)
            except (RayError, RayServeException) as error:
                status.lost(f"the replica was lost ({type(error).__name__})")
            except Exception as error:  # nobody foresaw it; a desk that dies for it would restart all streams
                traceback.print_exc()
                status.lost(f"asking for the stream failed ({type(error).__name__}: {error})")
            wait = _FIRST_WAIT if status.frames > before else min(2 * wait, _LONGEST_WAIT)
            await asyncio.sleep(wait)

    async def stop(self) -> None:
        """Ends all streams, so that nothing holds the replicas up when they are to end."""
        for task in self._tasks:
            task.cancel()

    async def report(self) -> dict[str, Any]:
        """The status of all streams, ready for JSON."""
        return {"streams": [status.to_json() for status in self.statuses.values()]}

    async def __call__(self, request: Request) -> Response:
        path = request.url.path.strip("/")
        if not path:
            return JSONResponse(json.loads(json.dumps(await self.report())))
        status = self.statuses.get(path.removesuffix(".png"))
        if status is None or not path.endswith(".png"):
            return JSONResponse({"error": "there is no such stream"}, 404)
        if status.png is None:
            return JSONResponse({"error": "no picture yet"}, 503)
        return Response(status.png, media_type="image/png", headers={"Cache-Control": "no-store"})


def build(
    specs: list[StreamSpec],
    bundle: str,
    *,
    replicas: int = 1,
    streams_per_replica: int = 8,
    engine: str = "onnxruntime",
    device: str = "cpu",
    threads: int = 1,
) -> serve.Application:
    """The application. A replica reserves `threads` cores (see `resources`) and, on `cuda`, a GPU."""
    resources = {"num_cpus": threads, "num_gpus": 1 if device == "cuda" else 0}
    deployment: Any = serve.deployment  # its types say less than it takes
    host = deployment(
        num_replicas=replicas,
        max_ongoing_requests=streams_per_replica,
        ray_actor_options=resources,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=5,
    )(StreamHost)
    desk = deployment(
        num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}, health_check_period_s=1
    )(StreamDesk)
    application: serve.Application = desk.bind(
        host.bind(bundle, engine, device, threads), [asdict(spec) for spec in specs]
    )
    return application
