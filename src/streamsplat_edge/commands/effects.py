"""Options that could have no effect are refused: whoever gives one expects something of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.sources.uri import parse_uri
from ..runtime.video import VideoReader
from .save import shown

_OF_LIVE_SOURCES = ("--reconnect", "--silence", "--source-option")
_OF_THE_VIEW = ("--view-host", "--view-port", "--view-seconds", "--view-memory")
_OF_A_RUN = ("-o", "--stats", "--contact-sheet", "--save", "--json", "--layout", "--camera", "--folder-rate")


def check_effects(args: argparse.Namespace) -> None:
    """For `run` and `view` of inputs, before they are opened.

    Raises:
        InputError: an option was given that nothing in this run would look at; with what it needs.
    """
    given = _given(args)
    sources = [parse_uri(text) for text in args.inputs]
    paths = [Path(source.target) for source in sources if source.kind == "path"]
    if "--layout" in given and not args.output:
        raise _without_effect("--layout", "says what the output video shows", "Add -o OUT.mp4.")
    if "--camera" in given and not ("novel" in shown(args) or args.contact_sheet):
        raise _without_effect(
            "--camera",
            "moves novel views, and no output has any",
            "Add -o OUT.mp4 --layout novel (or side-by-side), --save novel_%05d.png or --contact-sheet.",
        )
    for option in _OF_THE_VIEW:
        if option in given and not args.view:
            raise _without_effect(option, "is about the page in a browser", "Add --view.")
    if "--folder-rate" in given and len(paths) == len(sources) and all(path.is_file() for path in paths):
        raise _without_effect(
            "--folder-rate", "is for folders of images", "Leave it out: a video has times of its own."
        )
    for option in _OF_LIVE_SOURCES:
        if option in given and len(paths) == len(sources):
            raise _without_effect(option, "is for cameras and network streams", "Leave it out.")


def check_effects_on_readers(args: argparse.Namespace, readers: Sequence[VideoReader]) -> None:
    """For inputs that are open: whether `http://` is a recording or a live stream is not known before.

    Raises:
        InputError: an option was given that is for live sources, and none is one.
    """
    if "--reconnect" in _given(args) and not any(reader.reconnects for reader in readers):
        shown = ", ".join(reader.uri for reader in readers)
        raise _without_effect(
            "--reconnect", f"is for live sources, and {shown} is a recording", "Leave it out."
        )


def check_effects_on_tracks(args: argparse.Namespace) -> None:
    """For `view` of saved tracks.

    Raises:
        InputError: an option was given that only a run looks at.
    """
    for option in (*_OF_A_RUN, *_OF_LIVE_SOURCES):
        if option in _given(args):
            raise _without_effect(option, "is for videos, and saved tracks are shown", "Leave it out.")


def _given(args: argparse.Namespace) -> set[str]:
    """The options above that the user gave, also with the value they have by default."""
    named = {
        "-o": args.output,
        "--stats": args.stats,
        "--contact-sheet": args.contact_sheet,
        "--save": args.save,
        "--json": args.json,
        "--source-option": args.source_option,
    }
    return {option for option, value in named.items() if value} | set(getattr(args, "given", ()))


def _without_effect(option: str, why: str, hint: str) -> InputError:
    return InputError(f"{option} has no effect here: it {why}.", hint)
