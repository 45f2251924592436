"""The server with real sockets: what clients are sent, and that none of them can hold up the stream."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from clients import SECONDS, client, messages_until_the_end, receive, run
from decoder import ExactMessage, KeyFrameMessage, PairMessage, PictureMessage
from view_samples import make_video
from websockets.exceptions import ConnectionClosed

from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.view.viewer import LiveViewer, Settings


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
