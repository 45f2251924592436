"""Options of `run` and `view` about the live view. Apart from the code that serves: parsing is light."""

from __future__ import annotations

import argparse
import os
import secrets
from typing import TYPE_CHECKING

from . import option_types

if TYPE_CHECKING:
    from .runtime.view.viewer import LiveViewer

TOKEN_VARIABLE = "STREAMSPLAT_VIEW_TOKEN"
"""Environment, because other users of a machine can read command lines."""

_MEGABYTE = 1 << 20


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Options for `open_viewer`."""
    parser.add_argument(
        "--view-host",
        action=option_types.Given,
        default="127.0.0.1",
        metavar="HOST",
        help="address the page is served on (default: 127.0.0.1, this machine only). Others need the token "
        f"that is printed with the address, or the one in {TOKEN_VARIABLE}",
    )
    parser.add_argument(
        "--view-port",
        action=option_types.Given,
        type=int,
        default=8400,
        metavar="N",
        help="port of the page, 0 for any (default: 8400)",
    )
    parser.add_argument(
        "--view-seconds",
        action=option_types.Given,
        type=float,
        default=20.0,
        metavar="S",
        help="seconds of the stream that the page can go back (default: 20)",
    )
    parser.add_argument(
        "--view-memory",
        action=option_types.Given,
        type=int,
        default=256,
        metavar="MB",
        help="memory for them at most (default: 256)",
    )


def open_viewer(
    args: argparse.Namespace, title: str, *, seconds: float | None = None, pixel_aspect: float = 1.0
) -> LiveViewer:
    """The viewer that the options ask for; serving begins at once. `seconds` overrides --view-seconds.

    `pixel_aspect`: of the input, see `VideoReader`.

    Raises:
        InputError: an impossible value, an address that cannot be used, or websockets is missing.
    """
    from .runtime.errors import InputError

    if not 0 <= args.view_port <= 65535:
        raise InputError(f"--view-port is {args.view_port}.", "Use 1 to 65535, or 0 for any free port.")
    if not 0 < args.view_seconds <= 3600:
        raise InputError(f"--view-seconds is {args.view_seconds}.", "Use more than 0, at most 3600.")
    if not 1 <= args.view_memory <= 65536:
        raise InputError(f"--view-memory is {args.view_memory}.", "Use 1 to 65536 MB.")
    from .runtime.view.access import is_loopback
    from .runtime.view.viewer import LiveViewer, Settings

    token = None
    if not is_loopback(args.view_host):
        token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(16)
    settings = Settings(
        args.view_host,
        args.view_port,
        token,
        args.view_seconds if seconds is None else seconds,
        args.view_memory * _MEGABYTE,
    )
    return LiveViewer(settings, title, pixel_aspect=pixel_aspect)
