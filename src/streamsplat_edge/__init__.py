"""StreamSplat Edge: dynamic Gaussian splatting from a video stream, deployable.

The three lines most programs need::

    stream = streamsplat_edge.open("tiny.bundle")
    stream.push(frame, timestamp)          # uint8 RGB [H, W, 3] and seconds, once per key frame
    image = stream.render(timestamp).rgb   # at any time of the current interval
"""

from __future__ import annotations

from ._version import __version__

# Not imported from `typing`, which takes longer than the rest of the start: `__main__` catches no Ctrl-C
# before this file has been read.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .runtime.stream import Stream
    from .runtime.stream import open_stream as open

__all__ = ["Stream", "__version__", "open"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `streamsplat-edge --version` and `doctor` work where a dependency is broken.
    if name == "open":
        from .runtime.stream import open_stream

        return open_stream
    if name == "Stream":
        from .runtime.stream import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
