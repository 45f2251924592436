"""What an input string names: a path, a camera, a network stream or a GStreamer pipeline; and how to show it.

Passwords and tokens in a URI never reach messages, statistics or files: `SourceUri.shown` is what is printed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from ..errors import VideoError
from .redaction import split_pipeline, split_url, without

Kind = Literal["path", "camera", "network", "gstreamer"]

# Protocols whose end or silence means a broken connection: there is always more to come.
LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp"}
# May carry a recording or a live stream; the container tells (see `sources.open_source`).
HTTP_SCHEMES = {"http", "https"}

_SCHEMES = LIVE_SCHEMES | HTTP_SCHEMES
# The sensor's own size is a matter of the caller's pipeline; 720p30 is a mode of every CSI camera for Jetson.
_CSI = (
    "nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 "
    "! nvvidconv ! video/x-raw,format=I420"
)


@dataclass(frozen=True)
class SourceUri:
    """A classified input.

    Attributes:
        kind: which reader opens it.
        target: what that reader gets: path, device, URL or GStreamer pipeline.
        shown: the input without passwords and tokens.
        secrets: the values that it is without.
    """

    kind: Kind
    target: str = field(repr=False)
    shown: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def scheme(self) -> str:
        """Lower-case scheme of a network URL, else an empty string."""
        return self.target.partition("://")[0].lower() if self.kind == "network" else ""

    def redact(self, text: object) -> str:
        """`text` (an error of libav or GStreamer, which repeat what they were given) without the secrets."""
        if self.kind == "network":
            text = str(text).replace(self.target, self.shown)
        return without(str(text), self.secrets)


def existing_path(text: str) -> Path | None:
    """The file or folder that an input names, where there is one. Pipelines are longer than a path may be,
    which pathlib takes for an error."""
    return Path(text) if os.path.exists(text) else None  # noqa: PTH110


def parse_uri(text: str) -> SourceUri:
    """Classifies an input. Forms: a path or `file://`; `camera:N`, `/dev/videoN` or `v4l2:///dev/videoN`;
    `rtsp://`, `rtmp://`, `udp://`, `rtp://`, `tcp://` (and `rtsps`, `rtmps`), `http(s)://`; `csi:N` and
    `gst:PIPELINE`.

    Raises:
        VideoError: an unknown scheme, or an incomplete form.
    """
    if not text:
        raise VideoError(
            "The input is an empty text.", "Is the variable set that was to name it? `.` is this folder."
        )
    if camera := re.fullmatch(r"camera:(\d+)", text):
        return SourceUri("camera", f"/dev/video{camera[1]}", text)
    if re.fullmatch(r"/dev/video\d+", text):
        return SourceUri("camera", text, text)
    if csi := re.fullmatch(r"csi:(\d+)", text):
        return SourceUri("gstreamer", _CSI.format(number=csi[1]), text)
    if text.startswith("gst:"):
        pipeline = text.removeprefix("gst:").strip()
        if not pipeline:
            raise VideoError(
                f"{text}: no pipeline.", "Write it after the colon: 'gst:videotestsrc ! videoconvert'."
            )
        shown, secrets = split_pipeline(pipeline)
        return SourceUri("gstreamer", pipeline, f"gst:{shown}", secrets)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, colon, rest = text.partition(":")
        if colon and scheme.lower() in _SCHEMES and existing_path(text) is None:
            address = split_url(f"{scheme}://{rest.lstrip('/')}")[0]
            raise VideoError(f"{address}: was given without both slashes.", f"Write {scheme}://, as here.")
        return SourceUri("path", text, text)
    scheme = scheme.lower()
    if scheme == "file":
        return SourceUri("path", unquote(rest), text)
    if scheme == "v4l2":
        if not rest.startswith("/"):
            raise VideoError(f"{text}: no device.", "Write v4l2:///dev/video0.")
        return SourceUri("camera", rest, text)
    if scheme in _SCHEMES:
        return SourceUri("network", text, *split_url(text))
    known = ", ".join(f"{name}://" for name in sorted(_SCHEMES | {"file", "v4l2"}))
    raise VideoError(
        f"{split_url(text)[0]}: the scheme {scheme}:// is not known.",
        f"Known: {known}; also camera:N, csi:N and gst:PIPELINE.",
    )
