"""What `run` checks and finds before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import runtime
from ..runtime.errors import BundleError, OutputError
from ..runtime.panels import parse_layout
from ..runtime.sources import existing_path
from ..runtime.video import check_output
from ..runtime.video.writer import CONTAINERS
from .effects import check_effects
from .save import camera_path, check_saves, claim

DEMO_BUNDLE = "tiny.bundle"


def check_arguments(args: argparse.Namespace) -> dict[str, Path]:
    """Refuses, before anything is loaded, outputs that could not be written. Returns paths by option."""
    named = {"-o": args.output, "--stats": args.stats, "--contact-sheet": args.contact_sheet}
    outputs = {option: Path(value) for option, value in named.items() if value}
    seen: dict[Path, str] = {}
    source = existing_path(args.input)
    for option, path in outputs.items():
        claim(seen, option, path, source)
        if option == "-o" and path.suffix == "":
            continue  # a folder of images, checked by its writer
        if option == "-o" and path.suffix.lower() not in CONTAINERS:
            raise OutputError(
                f"{path}: cannot write files of type {path.suffix}.", f"Use one of {', '.join(CONTAINERS)}."
            )
        check_output(path, force=args.force)
    check_saves(args, seen)
    parse_layout(args.layout)
    camera_path(args)
    check_effects(args)
    return outputs


def find_bundle(path: str | None) -> Path:
    """The bundle that was named, else the demo bundle: of the package, of its checkout, or under ./demo.

    Raises:
        BundleError: none was named and none is there; the hint lists the places.
    """
    if path is not None:
        return Path(path)
    package = Path(runtime.__file__).resolve().parent
    places = [
        package.parent / "data" / DEMO_BUNDLE,
        package.parent / "demo" / DEMO_BUNDLE,
        Path("demo") / DEMO_BUNDLE,
    ]
    for place in places:
        if place.is_dir():
            return place
    raise BundleError(
        "no --bundle was given and the demo bundle was not found.",
        f"Pass --bundle PATH (looked for {', '.join(map(str, places))}).",
    )
