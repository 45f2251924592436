"""A real RTSP server (GStreamer's) that plays scripts: encoded frames with any stamp, pace and damage.

Run by the system's Python, which has the bindings: `/usr/bin/python3 rtsp_server.py SCRIPTS PORT`. SCRIPTS is
a pickle made by `rtsp_samples.py`: {mount: [script, ...]}; the n-th connection plays the n-th script, all
later ones the last. Prints the port once it listens. Loopback only.
"""

from __future__ import annotations

import pickle
import sys
import threading
import time
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)

_CHAINS = {
    "h264": (
        "( appsrc name=src is-live=true format=time max-bytes=0 "
        "caps=video/x-h264,stream-format=byte-stream,alignment=au "
        "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    ),
    "jpeg": (
        "( appsrc name=src is-live=true format=time max-bytes=0 "
        "caps=image/jpeg,width={width},height={height},framerate=0/1 ! rtpjpegpay name=pay0 pt=26 )"
    ),
}


def _push(source: Gst.Element, data: bytes, pts: float | None) -> Gst.FlowReturn:
    buffer = Gst.Buffer.new_wrapped(data)
    buffer.pts = Gst.CLOCK_TIME_NONE if pts is None else int(pts * Gst.SECOND)
    return source.emit("push-buffer", buffer)


class Factory(GstRtspServer.RTSPMediaFactory):
    """Builds a pipeline per connection and feeds it the script of that connection."""

    def __init__(self, server: GstRtspServer.RTSPServer, scripts: list[dict]) -> None:
        super().__init__()
        self._server = server
        self._scripts = scripts
        self._count = 0
        self.set_latency(0)

    def do_create_element(self, url: object) -> Gst.Element:
        script = self._scripts[min(self._count, len(self._scripts) - 1)]
        self._count += 1
        size = {"width": script["size"][1], "height": script["size"][0]}
        element = Gst.parse_launch(_CHAINS[script["codec"]].format(**size))
        source = element.get_by_name("src")
        # Sent ahead, so that the server knows what to announce; before PLAY nothing reaches the client.
        _push(source, script["announce"], 0.0)
        source.feed = lambda: threading.Thread(target=self._feed, args=(source, script), daemon=True).start()
        return element

    def _feed(self, source: Gst.Element, script: dict) -> None:
        due = time.monotonic()
        for data, pts, wait in script["frames"]:
            due += wait
            time.sleep(max(0.0, due - time.monotonic()))
            if _push(source, data, pts) != Gst.FlowReturn.OK:
                return  # the client left
        if script["then"] == "end":
            source.emit("end-of-stream")
        elif script["then"] == "close":
            GLib.idle_add(self._close_all)

    def _close_all(self) -> bool:
        self._server.client_filter(lambda server, client: GstRtspServer.RTSPFilterResult.REMOVE)
        return False


def _play(client: GstRtspServer.RTSPClient, context: GstRtspServer.RTSPContext) -> None:
    element = context.media.get_element()
    pipeline = element.get_parent()
    while pipeline.get_parent() is not None:
        pipeline = pipeline.get_parent()
    # The script sets the pace, whatever the stamps say.
    elements = pipeline.iterate_recurse()
    elements.foreach(lambda each: each.find_property("sync") and each.set_property("sync", False))
    element.get_by_name("src").feed()


def main() -> None:
    scripts = pickle.loads(Path(sys.argv[1]).read_bytes())  # ours, from a test
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[2])
    server.connect("client-connected", lambda _, client: client.connect("play-request", _play))
    for mount, each in scripts.items():
        server.get_mount_points().add_factory(f"/{mount}", Factory(server, each))
    if server.attach(None) == 0:
        sys.exit(f"cannot listen on port {sys.argv[2]}")
    print(server.get_bound_port(), flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), GLib.idle_add(loop.quit)), daemon=True).start()
    loop.run()


loop = GLib.MainLoop()
if __name__ == "__main__":
    main()
