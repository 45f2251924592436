"""HTTP and WebSocket on one port, in a thread with an event loop of its own.

    GET /            the page            GET /stream   WebSocket: text is JSON, binary is `packing`
    GET /NAME        a file of the page  anything else is refused

To a client: {"type": "hello"} once, {"type": "status"} about twice a second (always the latest, never a
backlog), and messages of `packing` in the order of `delivery`. From a client: `requests`. One message at a
time is given to the socket, and the next only when the kernel took it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import secrets
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from ..bundle_schema import ModelConfig
from ..errors import InputError
from ..rasterizer import View
from . import packing
from .access import TokenCheck, host_allowed, is_loopback, origin_allowed
from .assets import load_assets
from .delivery import Delivery
from .exact import ExactRenderer
from .requests import MAX_BYTES, BadRequest, RenderRequest, parse_request
from .scenes import SceneBuffer

try:
    from websockets.asyncio.server import Server, ServerConnection, serve
    from websockets.datastructures import Headers
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
except ImportError as error:
    raise InputError(
        f"The viewer needs websockets, which cannot be imported ({error}).",
        "pip install 'streamsplat-edge[view]'",
    ) from error

MAX_CLIENTS = 16

_TOKEN = r"[A-Za-z0-9._-]{8,}"

# 1008 of RFC 6455: "a message that violates the policy".
_POLICY_VIOLATION = 1008

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ViewServer:
    """Serves a buffer until it is closed. Methods may be called from any thread.

    Args:
        host, port: where to listen; port 0 takes any free one.
        token: needed where `host` is not loopback.

    Raises:
        InputError: the address cannot be listened on, or a token is missing.
    """

    def __init__(self, host: str, port: int, token: str | None, buffer: SceneBuffer) -> None:
        if not is_loopback(host) and not token:
            raise InputError(
                f"{host} can be reached from other machines, so the view needs a token.",
                "Give one, or listen on 127.0.0.1.",
            )
        if token and not re.fullmatch(_TOKEN, token):
            raise InputError(
                "The token of the view is too short, or has characters that do not fit into an address.",
                "Use 8 or more letters, digits, dots, dashes or underscores.",
            )
        self._buffer = buffer
        self._assets = load_assets()
        self._clients: set[_Client] = set()
        self._hello = ""
        self._status: dict[str, Any] = {}
        self._renderer: ExactRenderer | None = None
        self._executor = ThreadPoolExecutor(1, "view exact")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="view server", daemon=True)
        self._thread.start()
        listen = "127.0.0.1" if host.lower() == "localhost" else host  # one address, and so one port
        token = None if is_loopback(host) else token
        try:
            self._server: Server = self._call(self._listen(listen, port, token))
        except (OSError, OverflowError) as error:
            self._end_loop()
            # From Python 3.13 on, asyncio tries other families and then raises an error without a number.
            elsewhere = getattr(error, "errno", 0) in (errno.EADDRNOTAVAIL, None)
            raise InputError(
                f"The view cannot listen on {host} port {port}: {error}.",
                "Give an address of this machine as --view-host, 127.0.0.1 or 0.0.0.0 for all of them."
                if isinstance(error, socket.gaierror) or elsewhere
                else "Choose another --view-port, or 0.",
            ) from error
        name = socket.gethostname() if host in ("0.0.0.0", "::") else host
        place = f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"
        self.url = f"{place}?token={token}" if self._tokens.needed else place

    async def _listen(self, host: str, port: int, token: str | None) -> Server:
        server = await serve(
            self._talk,
            host,
            port,
            process_request=self._answer,
            compression=None,  # quantised data does not shrink
            max_size=MAX_BYTES,
            max_queue=4,
            server_header=None,
            logger=_quiet_logger(),
            start_serving=False,  # the cookie is named after the port, which is known only now
        )
        self.port: int = server.sockets[0].getsockname()[1]
        self._tokens = TokenCheck(token, self.port)
        await server.start_serving()
        return server

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # For the viewer.

    def greet(self, model: ModelConfig, hello: dict[str, Any]) -> None:
        """What every client is told first; clients that came before it are told now."""
        run = secrets.token_hex(8)  # tells a page that connects again whether what it has is of this run
        message = json.dumps({"type": "hello", "version": packing.VERSION, "run": run, **hello})
        renderer = ExactRenderer(model)

        def apply() -> None:
            self._hello, self._renderer = message, renderer
            self._wake_all()

        self._loop.call_soon_threadsafe(apply)

    def report(self, status: dict[str, Any]) -> None:
        """The latest numbers for the overlay."""
        memory = {"oldest": self._buffer.oldest, "buffer_bytes": self._buffer.bytes}
        message = {"type": "status", **memory, **status}

        def apply() -> None:
            self._status = message
            self._wake_all()

        self._loop.call_soon_threadsafe(apply)

    def wake(self) -> None:
        """The buffer has something new."""
        self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for client in self._clients:
            client.wake.set()

    def close(self) -> None:
        """Says goodbye to all clients and ends the thread."""

        async def finish() -> None:
            self._server.close()
            await self._server.wait_closed()

        self._call(finish())
        self._executor.shutdown()
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # HTTP.

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """None lets the WebSocket be opened."""
        # Older releases of websockets refuse other methods themselves, and name none.
        if getattr(request, "method", "GET") != "GET":
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "GET only.\n")
        hosts, origins, cookies = (request.headers.get_all(name) for name in ("Host", "Origin", "Cookie"))
        host = hosts[0] if len(hosts) == 1 else None
        if not host_allowed(host, token_needed=self._tokens.needed):
            return _text(HTTPStatus.FORBIDDEN, "This view answers only to localhost.\n")
        if not all(origin_allowed(origin, host) for origin in origins):
            return _text(HTTPStatus.FORBIDDEN, "Another page may not read this view.\n")
        by_query = self._tokens.needed and self._tokens.in_query(request.path)
        if self._tokens.needed and not by_query and not self._tokens.in_cookies(cookies):
            return _text(HTTPStatus.UNAUTHORIZED, "This view needs its token: open the address as printed.\n")
        path = urlsplit(request.path).path
        if path == "/stream":
            if len(self._clients) >= MAX_CLIENTS:
                return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CLIENTS} clients are here already.\n")
            return None
        if path == "/" and by_query:  # the token leaves the address, and with it the history
            return _response(
                HTTPStatus.SEE_OTHER, b"", {"Location": "/", "Set-Cookie": self._tokens.cookie()}
            )
        asset = self._assets.get(path)
        if asset is None:
            return _text(HTTPStatus.NOT_FOUND, "There is nothing here.\n")
        return _response(HTTPStatus.OK, asset.body, {"Content-Type": asset.content_type})

    # WebSocket.

    async def _talk(self, connection: ServerConnection) -> None:
        client = _Client(connection, Delivery(self._buffer))
        self._clients.add(client)
        sender = asyncio.ensure_future(self._send(client))
        try:
            async for message in connection:
                client.request = parse_request(message)  # a newer request replaces one that waits
                client.wake.set()
        except BadRequest as refusal:
            await connection.close(_POLICY_VIOLATION, str(refusal))
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self, client: _Client) -> None:
        try:
            while True:
                client.wake.clear()
                while (message := await self._next(client)) is not None:
                    await client.connection.send(message)
                await client.wake.wait()
        except ConnectionClosed:
            pass

    async def _next(self, client: _Client) -> str | bytes | None:
        if not self._hello:
            return None
        if client.hello is not self._hello:
            client.hello = self._hello
            return self._hello
        if client.status is not self._status and self._status:
            client.status = self._status
            return json.dumps({**self._status, "passed_over": client.delivery.left_out})
        request, client.request = client.request, None
        if request is not None and (image := await self._render(request)) is not None:
            return image
        return client.delivery.next()

    async def _render(self, request: RenderRequest) -> bytes | None:
        """Rendered in one thread for all clients, one image per client at a time."""
        scene, renderer = self._buffer.scene_at(request.time), self._renderer
        if scene is None or renderer is None:
            return None
        view = None if request.is_canonical else View.swing(request.yaw, request.pitch, request.pivot)
        image = await self._loop.run_in_executor(self._executor, renderer.render, scene, request.time, view)
        return packing.pack_exact(request.id, request.time, image)


class _Client:
    """What the server remembers of a connection."""

    def __init__(self, connection: ServerConnection, delivery: Delivery) -> None:
        self.connection = connection
        self.delivery = delivery
        self.wake = asyncio.Event()
        self.hello = ""
        self.status: dict[str, Any] = {}
        self.request: RenderRequest | None = None


def _response(status: HTTPStatus, body: bytes, headers: dict[str, str]) -> Response:
    fields = {**_HEADERS, "Content-Length": str(len(body)), "Connection": "close", **headers}
    return Response(status.value, status.phrase, Headers(fields), body)


def _text(status: HTTPStatus, text: str) -> Response:
    return _response(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})


def _quiet_logger() -> logging.Logger:
    """Strangers that speak no HTTP are no news."""
    logger = logging.getLogger("streamsplat_edge.view")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
