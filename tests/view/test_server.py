"""The server with real sockets: what it gives, what it refuses, and that no client can hold up the stream."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from decoder import ExactMessage, KeyFrameMessage, PairMessage, PictureMessage, decode
from view_samples import make_video
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.view import server as server_module
from streamsplat_edge.runtime.view.viewer import LiveViewer, Settings

SECONDS = 30  # of patience


def get(
    viewer: LiveViewer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; underscores in names of headers stand for dashes."""
    place = urlsplit(viewer.url)
    connection = HTTPConnection("127.0.0.1", place.port or 0, timeout=SECONDS)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@contextmanager
def client(viewer: LiveViewer, path: str = "/stream", **options: Any) -> Iterator[ClientConnection]:
    port = urlsplit(viewer.url).port
    options = {"proxy": None, "compression": None, "max_size": None, "open_timeout": SECONDS, **options}
    with connect(f"ws://127.0.0.1:{port}{path}", **options) as connection:
        yield connection


def receive(connection: ClientConnection) -> Any:
    data = connection.recv(SECONDS)
    return json.loads(data) if isinstance(data, str) else decode(data)


def messages_until_the_end(connection: ClientConnection) -> list[Any]:
    """Everything up to the status that says the run has ended, and what was still to come."""
    received: list[Any] = []
    while not (received and isinstance(received[-1], dict) and received[-1].get("ended")):
        received.append(receive(connection))
    while True:
        try:
            data = connection.recv(0.5)
        except TimeoutError:
            return received
        received.append(json.loads(data) if isinstance(data, str) else decode(data))


def run(stream: Stream, viewer: LiveViewer, count: int = 9) -> list[Any]:
    """All frames. Waits for the packing after each, so that nothing is left out on a busy machine."""
    frames = []
    for rendered in Pipeline(make_video(count), stream, gap=4, observers=[viewer]):
        viewer._queue.join()
        frames.append(rendered)
    return frames


def test_page_and_its_files(viewer: LiveViewer) -> None:
    status, headers, body = get(viewer, "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html") and b"StreamSplat" in body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    for name, kind in (
        ("app.js", "text/javascript"),
        ("style.css", "text/css"),
        ("shaders.js", "text/javascript"),
    ):
        status, headers, body = get(viewer, f"/{name}")
        assert status == 200 and headers["Content-Type"].startswith(kind) and len(body) > 500
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere(viewer: LiveViewer) -> None:
    """Works offline: no address of another host in any file, and every file that is named is there."""
    for name, asset in viewer._server._assets.items():
        text = asset.body.decode()
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, name
        for line in text.splitlines():
            if " from " in line and line.startswith(("import", "}")):
                imported = line.split('"./')[1].split('"')[0]
                assert f"/{imported}" in viewer._server._assets, line


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/static/../server.py",
        "/server.py",
        "/__init__.py",
        "/etc/passwd",
        "//etc/passwd",
        "/app.js/..",
        "/.",
        "/static",
        "/%00",
        "/app.js%00.html",
        "/APP.JS",
        "/file:///etc/passwd",
        "/index.html/../../viewer.py",
    ],
)
def test_no_path_of_the_machine_can_be_read(viewer: LiveViewer, path: str) -> None:
    status, _, body = get(viewer, path)
    assert status == 404 and b"root:" not in body and b"import" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_get(viewer: LiveViewer, method: str) -> None:
    try:
        status = get(viewer, "/", method)[0]
    except OSError:
        return  # closed without an answer
    assert status >= 400


def test_other_hosts_and_origins_are_refused(viewer: LiveViewer) -> None:
    """A page of the internet can neither rebind its name to this address nor open the WebSocket."""
    port = urlsplit(viewer.url).port
    assert get(viewer, "/", Host=f"evil.com:{port}")[0] == 403
    assert get(viewer, "/app.js", Host="evil.com")[0] == 403
    assert get(viewer, "/", Origin="http://evil.com")[0] == 403
    for options in (
        {"origin": "http://evil.com"},
        {"origin": "null"},
        {"additional_headers": {"Host": "evil.com"}},
    ):
        with pytest.raises(InvalidStatus) as refusal, client(viewer, **options):
            pass
        assert refusal.value.response.status_code == 403
    with client(viewer, origin=f"http://127.0.0.1:{port}"):
        pass


def test_garbage_is_answered_or_closed_and_the_server_lives(viewer: LiveViewer) -> None:
    port = urlsplit(viewer.url).port
    for garbage in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"A" * 70_000):
        with socket.create_connection(("127.0.0.1", port), SECONDS) as raw:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            while True:
                try:
                    if not raw.recv(4096):
                        break
                except ConnectionError:
                    break
    assert get(viewer, "/")[0] == 200


def test_what_a_client_is_sent(viewer: LiveViewer, stream: Stream) -> None:
    with client(viewer) as connection:
        frames = run(stream, viewer)
        received = messages_until_the_end(connection)
    hello = received[0]
    assert hello["type"] == "hello" and hello["title"] == "clip.mp4"
    assert (hello["width"], hello["height"], hello["depth_mapping"]) == (32, 16, "published")
    keys = [message for message in received if isinstance(message, KeyFrameMessage)]
    pairs = [message for message in received if isinstance(message, PairMessage)]
    pictures = [message for message in received if isinstance(message, PictureMessage)]
    assert [key.time for key in keys] == [0.0, 4 / 25, 8 / 25]
    assert [pair.times for pair in pairs] == [(0.0, 4 / 25), (4 / 25, 8 / 25)]
    assert [pair.indices for pair in pairs] == [
        (keys[0].index, keys[1].index),
        (keys[1].index, keys[2].index),
    ]
    assert sorted(picture.frame for picture in pictures) == list(range(9))
    assert all(picture.jpeg.startswith(b"\xff\xd8") for picture in pictures)
    status = [message for message in received if isinstance(message, dict)][-1]
    assert status["ended"] and status["counters"]["frames"] == len(frames) == 9
    assert status["counters"]["key_frames"] == 3 and status["counters"]["alive"] == 256
    assert status["left_out"] == status["passed_over"] == 0
    assert {"encode", "deform", "render", "decode"} <= set(status["stages"])
    assert status["stages"]["encode"]["p90"] >= status["stages"]["encode"]["p50"] > 0


def test_a_late_client_gets_the_past(viewer: LiveViewer, stream: Stream) -> None:
    with client(viewer) as early:
        run(stream, viewer)
        messages_until_the_end(early)
    with client(viewer) as late:
        received = messages_until_the_end(late)
    assert sum(isinstance(message, PairMessage) for message in received) == 2
    assert sum(isinstance(message, PictureMessage) for message in received) == 9
    # The newest first, so that there is something to see at once.
    first = next(message for message in received if isinstance(message, PairMessage))
    assert first.times[1] == 8 / 25


def test_exact_pixels(viewer: LiveViewer, stream: Stream) -> None:
    """What the server renders for a client is what the runtime rendered, bit by bit, and from any side."""
    frames = run(stream, viewer)
    last = frames[-4:]  # of the interval that the stream is at
    view = View.swing(0.2, -0.1, 0.5)
    side = stream.render(last[1].frame.timestamp, view=view)
    with client(viewer) as connection:
        messages_until_the_end(connection)
        wanted = [(frame.frame.timestamp, 0.0, 0.0, frame.frame.rgb) for frame in frames]
        wanted.append((last[1].frame.timestamp, 0.2, -0.1, side.rgb))
        for number, (time, yaw, pitch, rgb) in enumerate(wanted):
            request = {"type": "render", "id": number, "time": time, "yaw": yaw, "pitch": pitch, "pivot": 0.5}
            connection.send(json.dumps(request))
            image = receive(connection)
            assert isinstance(image, ExactMessage) and (image.request, image.time) == (number, time)
            np.testing.assert_array_equal(image.rgb, rgb)


@pytest.mark.parametrize(
    "message", ["", "{}", "[1]", b"\x00", '{"type": "render", "id": 1}', '{"type": "read"}']
)
def test_malformed_messages_end_the_connection(
    viewer: LiveViewer, stream: Stream, message: str | bytes
) -> None:
    run(stream, viewer)
    with client(viewer) as bad, client(viewer) as good:
        bad.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                bad.recv(SECONDS)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
        messages_until_the_end(good)


def test_oversize_messages_end_the_connection(viewer: LiveViewer) -> None:
    with client(viewer) as bad:
        bad.send("x" * 2000)
        with pytest.raises(ConnectionClosed) as closed:
            bad.recv(SECONDS)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_too_many_clients(viewer: LiveViewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 1)
    with client(viewer) as first:
        first.ping().wait(SECONDS)
        with pytest.raises(InvalidStatus) as refusal, client(viewer):
            pass
        assert refusal.value.response.status_code == 503


def test_clients_that_come_and_go_do_not_matter(viewer: LiveViewer, stream: Stream) -> None:
    """Some leave properly, some vanish, some in the middle of a message, while frames flow."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def fidget(number: int) -> None:
        try:
            while not stop.is_set():
                with client(viewer, close_timeout=0.5) as connection:
                    for _ in range(number):
                        try:
                            connection.recv(0.05)
                        except TimeoutError:
                            break
                    if number % 2:
                        connection.socket.shutdown(socket.SHUT_RDWR)  # vanishes
        except ConnectionClosed:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fidget, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    with client(viewer) as steady:
        frames = run(stream, viewer, 41)
        received = messages_until_the_end(steady)
    stop.set()
    for thread in threads:
        thread.join(SECONDS)
    assert not errors and len(frames) == 41
    assert sum(isinstance(message, PairMessage) for message in received) == 10


def test_a_client_that_stops_reading_holds_up_nobody(large_stream: Stream) -> None:
    """It opens the WebSocket and never reads: the stream runs to its end and another client gets everything.

    Were the sender to wait for it, or to queue for it, this would hang or fail: what is sent is many times
    what the socket's buffers hold.
    """
    with LiveViewer(Settings(port=0, seconds=100)) as viewer:
        port = urlsplit(viewer.url).port
        with socket.create_connection(("127.0.0.1", port), SECONDS) as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.sendall(
                f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            assert stuck.recv(12) == b"HTTP/1.1 101"
            with client(viewer) as reading:
                results: list[Any] = []
                reader = threading.Thread(target=lambda: results.extend(messages_until_the_end(reading)))
                reader.start()
                frames = run(large_stream, viewer, 81)
                reader.join(SECONDS)
                assert not reader.is_alive()
            assert len(frames) == 81 and viewer.left_out == 0
            pairs = [message for message in results if isinstance(message, PairMessage)]
            assert len(pairs) == 20
            entries = list(viewer.buffer.newest_first())
            assert sum(len(entry.message) for entry in entries) > 12e6, "more than sockets hold"
            clients = list(viewer._server._clients)
            slow = min(clients, key=lambda client: len(client.delivery._sent))
            assert len(slow.delivery._sent) < len(entries), "it was held up itself"
            waiting = slow.connection.transport.get_write_buffer_size()
            assert 0 < waiting < 1 << 20, "one message in memory"


def test_another_interface_needs_the_token() -> None:
    for token in (None, "", "short", "semi;colon", "sp ace in it", "line\nbreaks"):
        with pytest.raises(InputError, match="token"):
            LiveViewer(Settings(host="0.0.0.0", port=0, token=token))
    with LiveViewer(Settings(host="0.0.0.0", port=0, token="s3cret-token")) as viewer:
        assert viewer.url.endswith("/?token=s3cret-token")
        for path in ("/", "/app.js", "/stream", "/?token=wrong"):
            assert get(viewer, path)[0] == 401, path
        with pytest.raises(InvalidStatus), client(viewer):
            pass
        status, headers, _ = get(viewer, "/?token=s3cret-token")
        assert status == 303 and headers["Location"] == "/", "the token leaves the address"
        cookie = headers["Set-Cookie"].split(";")[0]
        assert get(viewer, "/", Cookie=cookie)[0] == 200
        assert get(viewer, "/", Cookie=cookie, Host="jetson.local:1")[0] == 200
        assert get(viewer, "/", Cookie=cookie, Origin="http://evil.com")[0] == 403
        with client(viewer, additional_headers={"Cookie": cookie}):
            pass
        with client(viewer, "/stream?token=s3cret-token"):
            pass


def test_a_port_that_is_taken(viewer: LiveViewer) -> None:
    threads = threading.active_count()
    with pytest.raises(InputError, match="cannot listen"):
        LiveViewer(Settings(port=urlsplit(viewer.url).port or 0))
    assert threading.active_count() == threads


def test_closing_says_goodbye(stream: Stream) -> None:
    with LiveViewer(Settings(port=0)) as viewer:
        run(stream, viewer)
        with client(viewer) as connection:
            messages_until_the_end(connection)
            closer = threading.Thread(target=viewer.close)
            closer.start()
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(SECONDS)
            closer.join(SECONDS)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        viewer.close()


def test_what_cannot_be_packed_in_time_is_left_out_and_counted(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packing thread hangs; the stream goes on."""
    with LiveViewer(Settings(port=0)) as viewer:
        hold = threading.Event()
        viewer._queue.put(lambda: hold.wait(SECONDS) and None)
        monkeypatch.setattr(viewer, "ended", lambda: None)  # would wait for the queue
        frames = list(Pipeline(make_video(81), stream, gap=4, observers=[viewer]))
        assert len(frames) == 81 and viewer.left_out > 0
        hold.set()


def test_a_defect_of_the_viewer_is_not_hidden(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    with LiveViewer(Settings(port=0)) as viewer:

        def fail(*_: object) -> None:
            raise RuntimeError("defect")

        monkeypatch.setattr(viewer.buffer, "add_key_frame", fail)
        with pytest.raises(RuntimeError, match="defect"):
            run(stream, viewer, 401)
