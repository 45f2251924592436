"""GStreamer pipelines as sources: `gst-launch-1.0` runs the pipeline and hands on raw frames in Matroska.

A process of its own needs no Python bindings inside the virtual environment (on Jetson they belong to the
system's Python), and a pipeline that crashes or hangs takes nothing with it. Matroska keeps the time stamps,
to the millisecond, and the size.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import av
import av.error

from ..errors import VideoError

PROGRAM = "gst-launch-1.0"
# What follows the user's pipeline. I420 is what encoders, cameras and libav have in common. Standard output
# is left to what the program says.
_TAIL = "videoconvert ! video/x-raw,format=I420 ! matroskamux streamable=true ! fdsink fd={descriptor}"
_OPTIONS = {"probesize": "32768", "analyzeduration": "0"}
_NOT_LIVE = "PREROLLING"  # said of a pipeline that waits for whoever takes its frames
_END_SECONDS = 5.0  # from the end of the data to that of the process


class _Pipe:
    """A file object over a pipe for libav: `read` waits at most `silence` seconds for the next bytes."""

    def __init__(self, descriptor: int, silence: float, stopped: Callable[[], bool]) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.patience = silence
        self._stopped = stopped

    def read(self, size: int) -> bytes:
        deadline = time.monotonic() + self.patience
        while not self._poll.poll(100):  # milliseconds
            if self._stopped() or time.monotonic() > deadline:
                raise TimeoutError("silence")
        return os.read(self._descriptor, size)


class GStreamerProcess:
    """A running pipeline.

    Attributes:
        container: opened on what it gives.
        live: GStreamer calls it live: it gives frames in real time, whether somebody takes them or not.

    Raises:
        VideoError: GStreamer is not installed, or the pipeline gave no video within `connect` seconds.
    """

    def __init__(self, pipeline: str, *, connect: float, silence: float, stopped: Callable[[], bool]) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise VideoError(
                f"{PROGRAM} was not found, so no GStreamer pipeline can run.",
                "Debian, Ubuntu and Jetson: apt install gstreamer1.0-tools gstreamer1.0-plugins-good.",
            )
        try:
            words = shlex.split(pipeline)
        except ValueError as error:
            raise VideoError(f"{pipeline}: {error}.", "Check the quotes of the pipeline.") from error
        self._said = ""
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._output, given = os.pipe()
        tail = _TAIL.format(descriptor=given)
        try:
            self._process = subprocess.Popen(
                [program, *words, "!", *tail.split()],
                stdin=subprocess.DEVNULL,
                stdout=self._messages,
                stderr=self._messages,
                pass_fds=(given,),
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C is for us: the pipeline ends when we close it
            )
        finally:
            os.close(given)
        pipe = _Pipe(self._output, connect, stopped)
        try:
            self.container: Any = av.open(pipe, format="matroska", options=_OPTIONS)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.close()
            raise VideoError(
                f"the pipeline gave no video: {self.complaint or error}.",
                f"Try it alone: {PROGRAM} {pipeline} ! fakesink",
            ) from error
        except BaseException:  # Ctrl-C
            self.close()
            raise
        pipe.patience = silence
        self.live = _NOT_LIVE not in self._text()

    @property
    def complaint(self) -> str:
        """The first error that GStreamer printed, or an empty string."""
        if self._messages.closed:
            return self._said
        said = [line for line in self._text().splitlines() if "ERROR" in line or "erroneous" in line]
        return said[0].strip().rstrip(".") if said else ""

    def _text(self) -> str:
        """All that the program has said."""
        size = os.fstat(self._messages.fileno()).st_size
        return os.pread(self._messages.fileno(), size, 0).decode(errors="replace")

    def finished(self) -> bool:
        """Whether the pipeline came to its own end, after the end of its data; False where it failed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_END_SECONDS) == 0
        return False

    def close(self) -> None:
        """Ends the pipeline. Calling twice is harmless."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            if self._process.poll() is None:  # a driver that hangs
                self._process.kill()
                self._process.wait()
        if not self._messages.closed:
            os.close(self._output)
            self._said = self.complaint  # keeps it past the file
            self._messages.close()
