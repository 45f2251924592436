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
# What follows the user's pipeline. I420 is what encoders, cameras and libav have in common.
_TAIL = "videoconvert ! video/x-raw,format=I420 ! matroskamux streamable=true ! fdsink fd=1"
_OPTIONS = {"probesize": "32768", "analyzeduration": "0"}


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
            words = shlex.split(f"{pipeline} ! {_TAIL}")
        except ValueError as error:
            raise VideoError(f"{pipeline}: {error}.", "Check the quotes of the pipeline.") from error
        self._said = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [program, "--quiet", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for us: the pipeline ends when we close it
        )
        assert self._process.stdout is not None
        pipe = _Pipe(self._process.stdout.fileno(), connect, stopped)
        try:
            self.container: Any = av.open(pipe, format="matroska", options=_OPTIONS)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.close()
            raise VideoError(
                f"the pipeline gave no video: {self.complaint or error}.",
                f"Try it alone: {PROGRAM} {pipeline} ! fakesink",
            ) from error
        pipe.patience = silence

    @property
    def complaint(self) -> str:
        """The first error that GStreamer printed, or an empty string."""
        if self._errors.closed:
            return self._said
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = [line for line in lines if "ERROR" in line or "erroneous" in line]
        return said[0].strip().rstrip(".") if said else ""

    def close(self) -> None:
        """Ends the pipeline. Calling twice is harmless."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            if self._process.poll() is None:  # a driver that hangs
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said = self.complaint  # keeps it past the file
        self._errors.close()
