"""One connection to a live source: packets in, whole frames out, until it ends, breaks or falls silent.

What a connection never does is fall behind: with `keep_up`, frames that waited too long (because decoding or
whoever reads the frames was too slow) are given up, before their colours are converted and, if that is not
enough, before they are decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import av.error

from ..errors import VideoError
from ..video.frames import as_rate, pixel_aspect
from ..video.reading import DAMAGE
from .clock import SourceClock

# A read that took longer than this had to wait: nothing was queued, so nothing is behind because of us.
_WAITED_SECONDS = 0.005
LATE_SECONDS = 1.0  # queued for longer: decoded, since later frames need it, but not handed on
LOST_SECONDS = 4.0  # queued for longer: decoding is the bottleneck; skip to the next key frame
# After damage, frames wait for a key frame, but not for ever: some encoders refresh the picture bit by bit.
RESYNC_SECONDS = 2.0
_UNREADABLE_MAX = 50
_ARRIVALS = 64  # packets whose arrival is remembered until their frame comes out of the decoder


class ConnectionLost(Exception):
    """The connection is of no more use; the text says why. `final`: the source came to its regular end."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass
class SourceEvents:
    """What happened to a live source, over all its connections.

    Attributes:
        reconnects: after which frames came again. failed_attempts: after which none came.
        outage_seconds: without a connection, in all.
        damaged: packets or frames that could not be decoded whole. resync: whole frames left out after damage
            because they build on damaged ones (until the next key frame).
        late: frames given up because they had waited too long.
        repaired_times: missing, repeated or impossible time stamps. sizes: changes of the frame size.
    """

    reconnects: int = 0
    failed_attempts: int = 0
    outage_seconds: float = 0.0
    damaged: int = 0
    resync: int = 0
    late: int = 0
    repaired_times: int = 0
    sizes: int = 0


@dataclass(frozen=True)
class Picture:
    """A decoded frame; its raw stamp in seconds or None; arrival and capture on perf_counter."""

    frame: av.VideoFrame
    raw: float | None
    arrival: float
    captured: float
    decode_ms: float


@dataclass
class Connection:
    """Reads and decodes the first video stream of an opened container. Iterate once; then `close`.

    Args:
        container: opened for reading; closed with the connection.
        events: counted into.
        keep_up: give up frames that waited too long.
        silence: seconds after which the container breaks off a read, for the message.
        stopped: asked between packets; True ends the iteration.
        release: called after the container was closed (to end a process that fed it, say).
        finished: asked when the packets ended: whether there will never be more.
    """

    container: Any
    events: SourceEvents
    keep_up: bool
    silence: float
    stopped: Callable[[], bool]
    release: Callable[[], None] = lambda: None
    finished: Callable[[], bool] = lambda: False
    _clock: SourceClock = field(default_factory=SourceClock)
    _arrivals: dict[int, float] = field(default_factory=dict)
    _resync_until: float = 0.0  # whole frames are left out until a key frame comes or this moment passes
    _unreadable: int = 0  # packets in a row
    _skipping: bool = False  # packets are left out until a key frame that is not late

    def __post_init__(self) -> None:
        streams = [s for s in self.container.streams.video if getattr(s, "codec_context", None) is not None]
        if not streams:
            self.close()
            raise VideoError("there is no video in it that can be decoded.", "Does a player show it?")
        self._stream = streams[0]
        # Frame threads hold back as many frames as there are threads; slices cost no delay.
        self._stream.thread_type = "SLICE"
        self.rate = as_rate(self._stream.average_rate or self._stream.codec_context.framerate)

    def pixel_aspect(self, picture: Picture) -> Fraction:
        """Of one of its pictures; see `frames.pixel_aspect`."""
        return pixel_aspect(self._stream, picture.frame)

    def __iter__(self) -> Iterator[Picture]:
        """Raises ConnectionLost when there will be no more, after the frames that the decoder still holds."""
        try:
            yield from self._read()
        except ConnectionLost:
            yield from self._decode(None, time.perf_counter(), 0.0)
            raise

    def _read(self) -> Iterator[Picture]:
        packets = self.container.demux(self._stream)
        while not self.stopped():
            asked = time.perf_counter()
            try:
                packet = next(packets, None)
            except BlockingIOError:  # a camera that has nothing yet
                time.sleep(0.002)
                packets = self.container.demux(self._stream)
                continue
            except av.error.InvalidDataError as error:  # one bad packet is no broken connection, many are
                self._damage(time.perf_counter())
                self._unreadable += 1
                if self._unreadable > _UNREADABLE_MAX:
                    raise ConnectionLost(str(error)) from error
                packets = self.container.demux(self._stream)
                continue
            except DAMAGE as error:
                # A read that libav broke off for its time-out comes back as any of several errors.
                silent = time.perf_counter() - asked > 0.9 * self.silence
                raise ConnectionLost(
                    f"nothing came for {self.silence:g} s" if silent else str(error)
                ) from error
            arrival = time.perf_counter()
            if packet is None or packet.size == 0:
                raise ConnectionLost("the source ended", final=self.finished())
            self._unreadable = 0
            lag = self._observe(packet, arrival)
            if arrival - asked > _WAITED_SECONDS:
                lag = 0.0
            lag = lag if self.keep_up else 0.0
            if not self._skips(packet, lag):
                yield from self._decode(packet, arrival, lag)

    def _observe(self, packet: Any, arrival: float) -> float:
        stamp = packet.dts if packet.pts is None else packet.pts
        raw = None if stamp is None or not packet.time_base else float(stamp * packet.time_base)
        if packet.pts is not None:
            self._arrivals[packet.pts] = arrival
            if len(self._arrivals) > _ARRIVALS:
                del self._arrivals[next(iter(self._arrivals))]
        return self._clock.observe(raw, arrival)

    def _skips(self, packet: Any, lag: float) -> bool:
        """Whether a packet is given up undecoded; counts it."""
        if lag > LOST_SECONDS:
            self._skipping = True
        elif self._skipping and packet.is_keyframe and lag < LATE_SECONDS:
            self._skipping = False
            self._stream.codec_context.flush_buffers()
        self.events.late += self._skipping
        return self._skipping

    def _decode(self, packet: Any, arrival: float, lag: float) -> Iterator[Picture]:
        start = time.perf_counter()
        try:
            if packet is not None and packet.is_corrupt:
                self._damage(arrival)
            frames = self._stream.codec_context.decode(packet)
        except av.error.EOFError:  # flushed already
            return
        except DAMAGE:
            self._damage(arrival)
            return
        milliseconds = (time.perf_counter() - start) * 1e3
        for frame in frames:
            if frame.is_corrupt:  # parts are missing: worse than no frame
                self._damage(arrival)
            elif self._resync_until > arrival and not frame.key_frame:
                self.events.resync += 1
            elif lag > LATE_SECONDS:
                self.events.late += 1
            else:
                self._resync_until = 0.0
                yield self._picture(frame, arrival, milliseconds)
                milliseconds = 0.0

    def _picture(self, frame: Any, arrival: float, milliseconds: float) -> Picture:
        base = frame.time_base or self._stream.time_base
        raw = None if frame.pts is None or not base else float(frame.pts * base)
        arrival = self._arrivals.pop(frame.pts, arrival)
        return Picture(frame, raw, arrival, self._clock.captured(raw, arrival), milliseconds)

    def _damage(self, now: float) -> None:
        self.events.damaged += 1
        if self._resync_until <= now:  # damage while waiting does not prolong the wait
            self._resync_until = now + RESYNC_SECONDS

    def close(self) -> None:
        """Frees the container. Only while no other thread reads; calling twice is harmless."""
        self.container.close()
        self.release()
