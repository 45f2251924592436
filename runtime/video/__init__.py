"""Video in and out through PyAV: files, image folders, cameras; every time stamp kept."""

from __future__ import annotations

from .frames import VideoFrame
from .output import AtomicFile, check_output, write_bytes
from .png import encode_png
from .reader import VideoReader, open_video
from .surface import DecodedFrame, SurfaceFrame
from .writer import FolderWriter, VideoWriter, open_writer

__all__ = [
    "AtomicFile",
    "DecodedFrame",
    "FolderWriter",
    "SurfaceFrame",
    "VideoFrame",
    "VideoReader",
    "VideoWriter",
    "check_output",
    "encode_png",
    "open_video",
    "open_writer",
    "write_bytes",
]
