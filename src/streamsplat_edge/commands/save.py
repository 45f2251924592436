"""The options `--save` and `--camera` of `run`: what they mean, and what is refused at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.outputs.camera_path import CameraPath, parse_camera
from ..runtime.outputs.targets import Target, check_target, parse_target
from ..runtime.panels import parse_layout


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


def check_saves(args: argparse.Namespace, others: Mapping[Path, str]) -> None:
    """Refuses files that could not be written, or that would get in the way of the input or of each other.

    Args:
        others: the other outputs' options by absolute path.

    Raises:
        InputError, OutputError: with what to do instead.
    """
    taken = dict(others)
    source = Path(args.input)
    for target in save_targets(args):
        check_target(target, force=args.force)
        place = target.path.absolute()
        if place in taken:
            raise InputError(
                f"{taken[place]} and --save are the same file {target.path}.", "Give each its own name."
            )
        taken[place] = "--save"
        if place.parent in others:  # of -o: a folder that appears at the end, and replaces what is there
            raise InputError(
                f"--save {target.path} is in the folder of {others[place.parent]}.", "Choose another folder."
            )
        folder = target.path.parent
        if target.digits and source.is_dir() and folder.is_dir() and folder.samefile(source):
            raise InputError(f"--save {target.path} is in the folder of the input.", "Choose another folder.")
        if target.path.exists() and source.exists() and target.path.samefile(source):
            raise InputError(f"--save {target.path} is the input itself.", "Choose another name.")
