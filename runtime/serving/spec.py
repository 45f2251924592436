"""What a served stream is, and what is known about it. Plain data: it travels between processes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bundle_schema import KEY_FRAME_GAP_MAX
from ..errors import InputError
from ..sources.uri import parse_uri

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class StreamSpec:
    """One stream to be served.

    Attributes:
        name: in addresses and reports: letters, digits, - and _. uri: as for `open_video`.
        gap, key_frames: as for `run`; a gap of None is the bundle's.
        silence_seconds: without data, after which a live source counts as lost.
    """

    name: str
    uri: str
    gap: int | None = None
    key_frames: str = "fixed"
    silence_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"{self.name!r} cannot be the name of a stream.", "Use letters, digits, - and _."
            )
        parse_uri(self.uri)
        if self.key_frames not in ("fixed", "motion"):
            raise InputError(f"key_frames is {self.key_frames!r}.", "Use fixed or motion.")
        if self.gap is not None and not 1 <= self.gap <= KEY_FRAME_GAP_MAX:
            raise InputError(f"gap is {self.gap}.", f"Use 1 to {KEY_FRAME_GAP_MAX} frames.")
        if not 0 < self.silence_seconds < 86_400:
            raise InputError(f"silence is {self.silence_seconds}.", "Use a positive number of seconds.")


@dataclass
class Progress:
    """What a replica reports of a stream: one frame, or its end.

    Attributes:
        frames: rendered so far by this replica. position: number of the last one in the source (of a
            recording: the same in every process). captured: seconds since the epoch at which it was captured.
        rate: nominal frames per second of the source. live: it cannot be asked for what was missed.
        dropped: frames given up to keep up, so far.
        pid: of the replica. png: the rendered frame, or None to save work.
        ended: no more will come; with the totals so far. error, hint: why, where it is not simply over.
        elsewhere: the replica ended, not the stream: another replica can go on with it.
    """

    frames: int = 0
    position: int = -1
    captured: float = 0.0
    rate: float = 0.0
    live: bool = False
    dropped: int = 0
    pid: int = 0
    png: bytes | None = None
    ended: bool = False
    error: str = ""
    hint: str = ""
    elsewhere: bool = False


@dataclass
class StreamStatus:
    """What the service knows about a stream, over all replicas that ran it.

    Attributes:
        state: waiting, running, lost (its replica died and it is being placed anew), failed or ended.
        frames: delivered. position: of the last one. restarts: after the loss of a replica or an error.
        lost_frames: of a live source, while no replica ran it: the time from the last frame before to the
            first one after, in frame intervals. A recording is taken up where it was, and loses none.
        dropped: frames given up to keep up.
    """

    name: str
    uri: str
    state: str = "waiting"
    frames: int = 0
    position: int = -1
    restarts: int = 0
    lost_frames: int = 0
    lost_seconds: float = 0.0
    dropped: int = 0
    pid: int = 0
    error: str = ""
    hint: str = ""
    captured: float = 0.0
    png: bytes | None = field(default=None, repr=False)
    _frames_before: int = 0  # by replicas that are gone
    _dropped_before: int = 0
    _resumed: bool = False

    def lost(self, error: str, hint: str = "") -> None:
        """Its replica is gone, or the source failed."""
        self.state, self.error, self.hint = "lost", error, hint
        self.restarts += 1
        self._frames_before, self._dropped_before = self.frames, self.dropped
        self._resumed = True

    def take(self, progress: Progress) -> None:
        """A frame, or the end. Counts are totals of the replica: reports in between may be missing."""
        if progress.frames:
            self._count(progress)
        if progress.elsewhere:
            self.lost(progress.error, progress.hint)
        elif progress.ended:
            self.state = "failed" if progress.error else "ended"
            self.error, self.hint = progress.error, progress.hint

    def _count(self, progress: Progress) -> None:
        if self._resumed and self.frames and progress.live:
            seconds = max(0.0, progress.captured - self.captured)
            self.lost_seconds += seconds
            self.lost_frames += max(0, round(seconds * progress.rate) - 1)
        self._resumed = False
        self.state, self.error, self.hint = "running", "", ""
        self.frames = self._frames_before + progress.frames
        self.position, self.captured, self.pid = progress.position, progress.captured, progress.pid
        self.dropped = self._dropped_before + progress.dropped
        self.png = progress.png or self.png

    def to_json(self) -> dict[str, Any]:
        """Without the picture."""
        values = asdict(self)
        return {name: values[name] for name in values if name != "png" and not name.startswith("_")}
