"""The options `--save` and `--camera` of `run`: what they mean, and what is refused at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.outputs.camera_path import CameraPath, parse_camera
from ..runtime.outputs.targets import Target, check_target, parse_target
from ..runtime.panels import parse_layout
from ..runtime.sources import existing_path


def save_targets(args: argparse.Namespace) -> list[Target]:
    """What the options `--save` ask for."""
    return [parse_target(text) for text in args.save]


def camera_path(args: argparse.Namespace) -> CameraPath:
    """The path of the option `--camera`."""
    return parse_camera(args.camera) if args.camera else CameraPath()


def shown(args: argparse.Namespace) -> set[str]:
    """What the video and the saved files show: pictures of a layout, and kinds of `--save`."""
    return {*(parse_layout(args.layout) if args.output else ()), *(t.kind for t in save_targets(args))}


def shows_depth(args: argparse.Namespace) -> bool:
    """Whether an output needs the depth of frames: shows it, or turns a camera about the scene's middle."""
    turns = camera_path(args).pivot is None
    return bool(args.contact_sheet) or "depth" in shown(args) or ("novel" in shown(args) and turns)


def claim(taken: dict[Path, str], option: str, path: Path, source: Path | None) -> None:
    """Enters an output under its absolute path.

    Args:
        taken: options by path, until now. source: the input, where it is a path.

    Raises:
        InputError: another output is the same file, or it is the input.
    """
    place = path.absolute()
    if place in taken:
        raise InputError(f"{taken[place]} and {option} are the same file {path}.", "Give each its own name.")
    taken[place] = option
    if path.exists() and source is not None and path.samefile(source):
        raise InputError(f"{option} {path} is the input itself.", "Choose another name.")


def check_saves(args: argparse.Namespace, others: Mapping[Path, str]) -> None:
    """Refuses files that could not be written, or that would get in the way of the input or of each other.

    Args:
        others: the other outputs' options by absolute path.

    Raises:
        InputError, OutputError: with what to do instead.
    """
    taken = dict(others)
    source = existing_path(args.input)
    for target in save_targets(args):
        check_target(target, force=args.force)
        claim(taken, "--save", target.path, source)
        folder = target.path.parent
        above = others.get(folder.absolute())  # of -o: appears at the end, and replaces what is there
        if above is not None:
            raise InputError(f"--save {target.path} is in the folder of {above}.", "Choose another folder.")
        if target.digits and source is not None and folder.is_dir() and folder.samefile(source):
            raise InputError(f"--save {target.path} is in the folder of the input.", "Choose another folder.")
