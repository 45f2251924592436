"""Live sources: cameras, network streams, GStreamer pipelines and frames pushed by a program.

`video.open_video` opens all of them by URI but the last, which is `PushSource`.
"""

from __future__ import annotations

from .clock import SourceClock, Timeline
from .connection import SourceEvents
from .live import LiveOptions, LiveReader
from .push import PushSource
from .uri import SourceUri, existing_path, parse_uri

__all__ = [
    "LiveOptions",
    "LiveReader",
    "PushSource",
    "SourceClock",
    "SourceEvents",
    "SourceUri",
    "Timeline",
    "existing_path",
    "parse_uri",
]
