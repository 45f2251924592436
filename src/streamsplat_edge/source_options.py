"""Options of `run` about inputs: how a live source is treated, and when a frame becomes a key frame.

Apart from the code that reads: parsing must stay light.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from . import option_types

if TYPE_CHECKING:
    from .runtime.key_frames import KeyFrameRule
    from .runtime.sources import LiveOptions
    from .runtime.video import VideoReader

ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
"""`runtime.engines.ENGINES`, without loading them."""


DECODERS = ("software", "cuda")
"""`runtime.video.decoding.DECODERS`, likewise."""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Options for `live_options`, `drops_frames` and `key_frame_rule`, and `--decode` of `open_video`."""
    parser.add_argument(
        "--key-frames",
        choices=("fixed", "motion"),
        default="fixed",
        help="a key frame every --gap frames, or as soon as enough has moved (default: fixed)",
    )
    parser.add_argument(
        "--policy",
        choices=("latest", "block"),
        help="latest drops (and counts) frames rather than fall behind; block keeps every frame and lets the "
        "source wait (default: latest for live sources, block for recordings)",
    )
    parser.add_argument(
        "--reconnect",
        action=option_types.Given,
        type=int,
        metavar="N",
        help="attempts in a row to get a lost live source back, 0 for none (default: without end)",
    )
    parser.add_argument(
        "--silence",
        action=option_types.Given,
        type=float,
        default=10.0,
        metavar="S",
        help="seconds without data after which a live source counts as lost (default: 10)",
    )
    parser.add_argument(
        "--source-option",
        action="append",
        default=[],
        metavar="K=V",
        help="option for libav, e.g. rtsp_transport=udp, video_size=1280x720, framerate=30 (may be repeated)",
    )
    parser.add_argument(
        "--decode",
        choices=DECODERS,
        default="software",
        help="cuda decodes files and network streams on an NVIDIA GPU (NVDEC), or an error says why not; "
        "with --device cuda the pictures stay there (default: software)",
    )


def stays_on_gpu(args: argparse.Namespace) -> bool:
    """Whether pictures are decoded on the GPU that everything else runs on."""
    return args.decode == "cuda" and args.device == "cuda"


def live_options(args: argparse.Namespace) -> LiveOptions:
    """Raises InputError for values that make no sense."""
    from .runtime.errors import InputError
    from .runtime.sources import LiveOptions

    libav: dict[str, str] = {}
    for text in args.source_option:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InputError(f"--source-option {text}: is no NAME=VALUE.", "Write rtsp_transport=udp, say.")
        libav[name] = value
    if args.reconnect is not None and args.reconnect < 0:
        raise InputError(f"--reconnect is {args.reconnect}.", "Use 0 (never) or more attempts.")
    if not 0 < args.silence < 86_400:
        raise InputError(f"--silence is {args.silence}.", "Use a positive number of seconds.")
    return LiveOptions(
        keep_up=args.policy != "block",
        silence_seconds=args.silence,
        attempts=args.reconnect,
        libav=libav,
    )


def drops_frames(args: argparse.Namespace, reader: VideoReader) -> bool:
    """Whether frames are dropped rather than waited for.

    Raises:
        InputError: `latest` was asked for a recording.
    """
    from .runtime.errors import InputError

    if args.policy == "latest" and not reader.live and not reader.reconnects:
        raise InputError(
            f"{reader.uri}: is a recording, which waits; --policy latest would skip most of it.",
            "Leave --policy out, or use block.",
        )
    return args.policy == "latest" or (reader.live and args.policy != "block")


def key_frame_rule(args: argparse.Namespace) -> KeyFrameRule | None:
    """The rule that `--key-frames` names."""
    from .runtime.key_frames import MotionGap

    return MotionGap() if args.key_frames == "motion" else None
