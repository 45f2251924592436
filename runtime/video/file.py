"""Recordings: the frames of a container of libav, from a file or from the network, tolerant of damage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import av
import av.error

from ..errors import VideoError
from .decoding import SOFTWARE_HINT, check_accelerated, undecodable
from .frames import Converter, as_rate, pixel_aspect
from .reader import VideoReader
from .reading import DAMAGE, LENIENT, Reading, reason
from .recorded_time import RecordedTime
from .surface import DecodedFrame, picture_of, picture_size, taken, with_picture

# libav renders plain text as a "video" of a terminal; nobody who passes a text file means that.
_NOT_VIDEO_FORMATS = {"tty", "rawvideo"}
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC


def open_container(uri: str, accelerator: Any) -> Any:
    """Open a file with libav.

    Args:
        accelerator: see `decoding.acceleration`.

    Raises:
        VideoError: it is no video, or may not be read.
    """
    try:
        return av.open(uri, hwaccel=accelerator, **LENIENT)
    except RuntimeError as error:  # PyAV's, where no stream can be accelerated
        if accelerator is None:
            raise
        raise undecodable(uri, str(error)) from error
    except PermissionError as error:
        raise VideoError(f"{uri}: permission denied.", "Check the permissions of the file.") from error
    except av.error.InvalidDataError as error:
        raise VideoError(
            f"{uri}: not a video, or damaged beyond use.",
            "An MP4 cut off while being written lacks its index (moov): only a repair tool can help.",
        ) from error
    except DAMAGE as error:
        raise VideoError(
            f"{uri}: cannot be opened: {error}.", "Check that it is a video that a player can open."
        ) from error


class FileReader(VideoReader):
    """Decodes the first real video stream of a container; multi-threaded, tolerant of damage.

    `accelerated`: the container was opened with an accelerator, which must be what decodes. `close` may be
    called from another thread than the one that iterates (see `Reading`).
    """

    def __init__(self, uri: str, container: Any, *, threads: int = 0, accelerated: bool = False) -> None:
        super().__init__(uri)
        self._container = container
        self._reading = Reading(container.close)
        try:
            self._stream = self._pick_stream()
            if accelerated:
                check_accelerated(uri, self._stream)
                threads = 1  # each would hold surfaces of the GPU
            self._stream.codec_context.thread_count = threads
            with contextlib.suppress(AttributeError, ValueError):
                self._stream.thread_type = "AUTO"
            self._dts_only = container.format.name == "avi"  # AVI stores no presentation times
            self.rate = as_rate(
                self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
            )
            self._announced_end = self._announce()
            self._decoded = 0
            self._converter = Converter()
            self._damaged = 0
            self._failure = ""
            self._time = RecordedTime(1.0 / float(self.rate))
            self._frames = self._decode()
            self._first = self._reading.next(self._frames)
            if self._first is None:
                why = f": {self._failure}" if self._failure else ""
                raise VideoError(
                    f"{uri}: not a single frame could be decoded{why}.",
                    "The file is damaged or its codec is unknown to this build of FFmpeg."
                    if not accelerated
                    else f"The GPU may not decode this profile, chroma format or size. {SOFTWARE_HINT}",
                )
        except DAMAGE as error:
            container.close()
            raise VideoError(
                f"{uri}: cannot be read: {reason(error)}.",
                "Check that a player can play it; it may be damaged.",
            ) from error
        except BaseException:
            container.close()
            raise
        self.height, self.width = picture_size(picture_of(self._first))

    def _pick_stream(self) -> Any:
        name = self._container.format.name
        # A picture attached to music (cover art) is not video.
        videos = [s for s in self._container.streams.video if not _is_cover(s)]
        if name in _NOT_VIDEO_FORMATS:
            raise VideoError(
                f"{self.uri}: not a video (looks like {name}).",
                "Pass a video file, a folder of images or camera:N.",
            )
        if not videos:
            kinds = sorted({s.type for s in self._container.streams}) or ["nothing"]
            raise VideoError(
                f"{self.uri}: no video stream in it (found: {', '.join(kinds)}).",
                "Pass a file that has pictures.",
            )
        stream = videos[0]
        if getattr(stream, "codec_context", None) is None:
            raise VideoError(
                f"{self.uri}: the codec of its video stream is unknown to FFmpeg.",
                "Convert it to H.264 first.",
            )
        return stream

    def _announce(self) -> float | None:
        """Seconds that the container promises for the video, None where it promises nothing reliable."""
        stream = self._stream
        self.frames_estimate = int(stream.frames) or None
        seconds: float | None = None
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif "DURATION" in stream.metadata:  # Matroska
            with contextlib.suppress(ValueError):
                h, m, s = stream.metadata["DURATION"].split(":")
                seconds = int(h) * 3600 + int(m) * 60 + float(s)
                seconds = seconds if math.isfinite(seconds) else None
        elif self._container.duration and len(self._container.streams) == 1:
            seconds = self._container.duration / 1e6
        if self.frames_estimate is None and seconds:
            self.frames_estimate = max(1, round(seconds * float(self.rate)))
        return seconds

    def _decode(self) -> Iterator[DecodedFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except DAMAGE as error:
                self._failure = reason(error)
                yield from self._convert(None)
                break
            if packet is None:
                break
            yield from self._convert(packet)
            if packet.size == 0 and packet.pts is None and packet.dts is None:
                break  # the last: PyAV would go on with streams that appeared on the way, and fail
        self._conclude()

    def _convert(self, packet: Any) -> Iterator[DecodedFrame]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.error.EOFError:
            return
        except DAMAGE as error:
            self._damaged += 1
            self._failure = self._failure or reason(error)
            return
        for frame in frames:
            if frame.is_corrupt:  # decoded with parts missing: worse than no frame
                self._damaged += 1
                continue
            try:
                picture = taken(frame, self._converter)
            except DAMAGE as error:  # of a format or size that cannot be
                self._damaged += 1
                self._failure = self._failure or reason(error)
                continue
            timestamp = self._timestamp(frame)
            if self._decoded == 0:
                self.pixel_aspect = pixel_aspect(self._stream, frame)
            index, self._decoded = self._decoded, self._decoded + 1
            yield with_picture(picture, timestamp, index)

    def _timestamp(self, frame: Any) -> float:
        """Seconds since the first frame, strictly increasing whatever the file says."""
        ticks = frame.dts if frame.pts is None or self._dts_only else frame.pts
        base = frame.time_base or self._stream.time_base
        return self._time.place(float(ticks * base) if ticks is not None and base else None)

    def _conclude(self) -> None:
        """Works out, once everything was read, whether the input ended early."""
        if self._time.repaired:
            self.notes.append(f"{self._time.repaired} missing or not increasing time stamps were repaired")
        if self._damaged:
            self.notes.append(f"{self._damaged} damaged packets or frames were dropped")
        end = self._time.last + 1.0 / float(self.rate)
        promised = self._announced_end
        frames = self.frames_estimate
        short = promised is not None and end < promised - max(1.5 / float(self.rate), 0.01 * promised)
        fewer = frames is None or self._decoded < frames - max(1, frames // 100)
        if self._failure or (short and fewer):
            of = f" of about {frames}" if frames else ""
            of_seconds = f" of {promised:.2f}" if promised else ""
            why = f" ({self._failure})" if self._failure else ""
            self.truncated = (
                f"only {self._decoded}{of} frames ({end:.2f}{of_seconds} s) could be decoded{why}"
            )

    def __iter__(self) -> Iterator[DecodedFrame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        while (frame := self._reading.next(self._frames)) is not None:
            yield frame

    def close(self) -> None:
        self._reading.close()


def _is_cover(stream: Any) -> bool:
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and bool(
        int(getattr(disposition, "value", disposition)) & _ATTACHED_PICTURE
    )
