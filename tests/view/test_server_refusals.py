"""The server with real sockets: what it gives without a question, and what it refuses."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit

import pytest
from clients import SECONDS, client, get, messages_until_the_end, run
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.view import server as server_module
from streamsplat_edge.runtime.view.viewer import LiveViewer, Settings


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
    with pytest.raises(InputError, match="cannot listen") as caught:
        LiveViewer(Settings(port=urlsplit(viewer.url).port or 0))
    assert "--view-port" in caught.value.hint and threading.active_count() == threads


def test_an_address_of_another_machine() -> None:
    with pytest.raises(InputError, match="cannot listen") as caught:
        LiveViewer(
            Settings(host="203.0.113.1", port=0, token="s3cret-token")
        )  # of documents, and of no machine
    assert "--view-host" in caught.value.hint and "--view-port" not in caught.value.hint
