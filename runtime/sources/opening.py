"""Opens the container of a camera, a network stream or a GStreamer pipeline, or says why it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error

from ..errors import VideoError
from ..video.decoding import check_accelerated, undecodable
from ..video.reading import DAMAGE, LENIENT
from .gstreamer import GStreamerProcess
from .uri import LIVE_SCHEMES, SourceUri


class Opened(NamedTuple):
    """A container, and what is known of what feeds it.

    Attributes:
        release: called once the container was closed.
        finished: asked once the data ended: whether that was the regular end, after which nothing comes.
        live: frames come in real time, whether somebody takes them or not.
    """

    container: Any
    release: Callable[[], None]
    finished: Callable[[], bool]
    live: bool


# RTP over TCP by default: it passes firewalls, and no packet is lost to a full socket buffer.
# The server has announced the format, so nothing needs to be probed: the first frame comes at once, also from
# a camera of one frame per second.
_RTSP = {"rtsp_transport": "tcp", "probesize": "32"}
# Elsewhere, libav looks at as little as possible before the first frame. (`nobuffer` would throw away what
# was looked at, and with it the first key frame.)
_LIVE = {"analyzeduration": "1000000", "fpsprobesize": "4"}
_UNREACHABLE = "Is the device on, and does this machine reach it? Try the same address with a player."
_HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (av.error.HTTPUnauthorizedError, "Give user and password: SCHEME://USER:PASSWORD@HOST/PATH."),
    (av.error.HTTPForbiddenError, "Give user and password: SCHEME://USER:PASSWORD@HOST/PATH."),
    (av.error.HTTPNotFoundError, "The device answers, but has no such path: look it up in its manual."),
    (av.error.ConnectionRefusedError, "Nothing listens there: check the port, and that the device is on."),
    (av.error.ProtocolNotFoundError, "This build of FFmpeg lacks the protocol; use another one."),
    (
        av.error.HTTPOtherClientError,
        "The device refuses the request. If it only speaks UDP: --source-option rtsp_transport=udp.",
    ),
    (av.error.InvalidDataError, "It answers, but not with video: check the path."),
    (PermissionError, "Check the permissions of the device (group `video`)."),
)


def open_live(
    uri: SourceUri,
    *,
    connect: float,
    silence: float,
    options: Mapping[str, str],
    stopped: Callable[[], bool],
    accelerator: Any = None,
) -> Opened:
    """An opened container.

    Args:
        uri: of kind camera, network or gstreamer.
        connect: seconds to wait for the connection and its first data. silence: for any later packet.
        options: of libav's, over the defaults.
        stopped: asked while waiting for a pipeline.
        accelerator: see `video.decoding.acceleration`; for network streams.

    Raises:
        VideoError: what went wrong, with a hint, and without the password of the URI.
    """
    if uri.kind == "gstreamer":
        try:
            process = GStreamerProcess(uri.target, connect=connect, silence=silence, stopped=stopped)
        except VideoError as error:
            raise VideoError(uri.redact(error.message), uri.redact(error.hint)) from None
        return Opened(process.container, process.close, process.finished, process.live)
    kind = None
    if uri.kind == "camera":
        if not Path(uri.target).exists():
            found = sorted(str(p) for p in Path("/dev").glob("video*"))
            raise VideoError(
                f"{uri.shown}: there is no camera {uri.target}.",
                f"Cameras found: {', '.join(found) if found else 'none'}.",
            )
        kind = "v4l2"
    defaults = (_LIVE if uri.kind == "network" else {}) | (_RTSP if uri.scheme in ("rtsp", "rtsps") else {})
    asked = time.monotonic()
    try:
        container = av.open(
            uri.target,
            format=kind,
            options={**defaults, **options},
            timeout=(connect, silence),
            hwaccel=accelerator,
            **LENIENT,
        )
    except DAMAGE as error:
        # A time-out comes back as any of several errors. The cause is left out: it would show the password.
        late = time.monotonic() - asked > 0.9 * connect
        raise _explained(uri, error, f"no answer within {connect:g} s" if late else "") from None
    except RuntimeError as error:  # PyAV's, where no stream can be accelerated
        if accelerator is None:
            raise
        raise undecodable(uri.shown, uri.redact(error)) from None
    streams = container.streams.video
    if accelerator is not None and streams:
        try:
            check_accelerated(uri.shown, streams[0])
        except VideoError:
            container.close()
            raise
    return Opened(container, _nothing, _never, True)


def _nothing() -> None:
    pass


def _never() -> bool:
    return False


def is_live(uri: SourceUri, container: Any) -> bool:
    """Whether an opened network container goes on for ever. Over HTTP, one that knows its length does not."""
    return uri.scheme in LIVE_SCHEMES or uri.kind != "network" or container.duration is None


def _explained(uri: SourceUri, error: Exception, late: str) -> VideoError:
    hint = next((text for kind, text in _HINTS if isinstance(error, kind)), _UNREACHABLE)
    reason = late or uri.redact(getattr(error, "strerror", None) or error)
    return VideoError(f"{uri.shown}: cannot be opened: {reason}.", _UNREACHABLE if late else hint)
