"""Scripts for `rtsp_server.py`: what a camera sends, encoded by PyAV, damaged and badly stamped at will."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_samples import moving_square

_PYTHON = "/usr/bin/python3"
_NEEDS = "gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer, Gst"
_INSTALL = (
    "apt-get install --no-install-recommends python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-tools "
    "gstreamer1.0-plugins-good"
)

Unit = tuple[bytes, float | None, float]  # encoded frame, stamp in seconds, wait before it in seconds


def encode(
    count: int, *, height: int = 48, width: int = 64, gop: int = 5, codec: str = "libx264", start: int = 0
) -> list[bytes]:
    """One access unit per frame of `moving_square`; every gop-th is a key frame with its parameter sets."""
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height = width, height
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    context.time_base, context.framerate = Fraction(1, 90_000), Fraction(25)
    if codec == "libx264":
        context.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "crf": "20",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:slices=1",
        }
    else:  # RTP carries no Huffman tables (RFC 2435); with one thread, libav would make some for each picture
        context.options = {"huffman": "default"}
    units: list[bytes] = []
    for i in range(count):
        frame = av.VideoFrame.from_ndarray(moving_square(start + i, height, width), format="rgb24")
        frame = frame.reformat(format=context.pix_fmt)
        frame.pts, frame.time_base = i * 3600, Fraction(1, 90_000)
        units += [bytes(packet) for packet in context.encode(frame)]
    units += [bytes(packet) for packet in context.encode(None)]
    assert len(units) == count
    return units


def script(
    units: Iterable[bytes],
    *,
    times: Iterable[float | None] | None = None,
    pace: float = 0.01,
    waits: dict[int, float] | None = None,
    then: str = "silence",
    codec: str = "h264",
    size: tuple[int, int] = (48, 64),
    headless: bool = False,
) -> dict[str, Any]:
    """What one connection plays: units with stamps `times` (default: 25 per second) at intervals of `pace`.

    waits: longer waits before some units. then: "silence", "end" (of stream) or "close" (the connection).
    headless: announce the format without a key frame.
    """
    units = list(units)
    stamps = [i / 25 for i in range(len(units))] if times is None else list(times)
    frames = [
        (unit, stamp, (waits or {}).get(i, pace))
        for i, (unit, stamp) in enumerate(zip(units, stamps, strict=True))
    ]
    announce = encode(1, height=size[0], width=size[1], codec="mjpeg" if codec == "jpeg" else "libx264")[0]
    if headless:
        announce = parameters(announce)
    return {"codec": codec, "announce": announce, "frames": frames, "then": then, "size": size}


def parameters(unit: bytes) -> bytes:
    """The H.264 unit without its picture."""
    parts = re.split(rb"\x00?\x00\x00\x01", unit)[1:]
    return b"".join(b"\0\0\0\1" + part for part in parts if part[0] & 31 in (6, 7, 8))


def cut_short(unit: bytes) -> bytes:
    """A frame whose second half was lost on the way."""
    return unit[: len(unit) // 2]


def scrambled(unit: bytes, seed: int = 0) -> bytes:
    """A frame with wrong bytes from its middle on."""
    data = np.frombuffer(unit, np.uint8).copy()
    middle = len(data) // 2
    data[middle:] = np.random.default_rng(seed).integers(1, 256, len(data) - middle)
    return data.tobytes()


def need_rtsp_server() -> None:
    """Skips the test where GStreamer's RTSP server is not installed."""
    python = shutil.which(_PYTHON)
    done = python and subprocess.run(
        [python, "-c", f"import gi; {_NEEDS}"], capture_output=True, timeout=60, check=False
    )
    if not done or done.returncode != 0:
        pytest.skip(f"no RTSP server here: {_INSTALL}")


class RtspServer:
    """The server in a process of its own; a context manager. `stop` and `start` again to reboot it."""

    def __init__(self, folder: Path, mounts: dict[str, list[dict[str, Any]]]) -> None:
        self._scripts = folder / "scripts.pickle"
        self._scripts.write_bytes(pickle.dumps(mounts))
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def url(self, mount: str) -> str:
        return f"rtsp://127.0.0.1:{self.port}/{mount}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [_PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(self._scripts), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GST_DEBUG": "0", "PYTHONPATH": ""},
        )
        assert self._process.stdout is not None
        late = threading.Timer(30.0, self._process.kill)
        late.start()
        line = self._process.stdout.readline()
        late.cancel()
        assert line, "the RTSP server did not start"
        self.port = int(line)

    def stop(self) -> None:
        """Kills it, as a power cut does: clients get no farewell."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
