"""What `--save PATH` means: the format by the extension, and one file or a numbered one per frame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError, OutputError
from ..video.output import check_output, output_error, write_bytes
from .container import check_fourdgs
from .depth_image import check_exr

Kind = Literal["picture", "novel", "depth", "ply", "splat", "container", "tracks"]

_SUFFIXES: dict[str, Kind] = {
    ".png": "picture",
    ".exr": "depth",
    ".ply": "ply",
    ".splat": "splat",
    ".4dgs": "container",
    ".npz": "tracks",
}
_PER_FRAME = ("picture", "novel", "depth")  # one file cannot hold a recording
_WHOLE = ("container", "tracks")  # one file holds it all
_NUMBER = re.compile(r"%0(\d)d")
NUMBERS_MAX = 10**9


@dataclass(frozen=True)
class Target:
    """One `--save`.

    Attributes:
        path: as given. kind: what it holds.
        digits: of the number in its name, 0 where it has none and there is one file.
    """

    path: Path
    kind: Kind
    digits: int = 0

    def numbered(self, number: int) -> Path:
        """The file of frame `number`, from 0."""
        return self.path.with_name(_NUMBER.sub(lambda _: f"{number:0{self.digits}d}", self.path.name))

    def existing(self) -> Iterator[Path]:
        """Files in the target's folder that have a name of this target, in the order of their numbers."""
        before, after = _NUMBER.split(self.path.name)[::2]
        pattern = re.compile(rf"{re.escape(before)}(\d{{{self.digits},}}){re.escape(after)}")
        folder = self.path.parent
        names = (p.name for p in folder.iterdir()) if folder.is_dir() else iter(())
        found = [(int(match[1]), match[0]) for match in map(pattern.fullmatch, names) if match]
        for _, name in sorted(pair for pair in found if pair[0] < NUMBERS_MAX):
            yield folder / name


def parse_target(text: str, *, option: str = "--save") -> Target:
    """The target a path describes.

    `.png` holds the reconstruction; depth (16 bits) where the file's name begins with "depth", and the
    novel view where it begins with "novel". `.exr` holds depth.

    Raises:
        OutputError: unknown extension, a number that is missing or out of place, or a package that is
            missing.
    """
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        hint = (
            "Videos and folders of PNG are written with -o. "
            if suffix in ("", ".mp4", ".mov", ".mkv")
            else ""
        )
        raise OutputError(
            f"{option} {text}: cannot save files of type '{suffix}'.", f"{hint}Use {', '.join(_SUFFIXES)}."
        )
    kind = _SUFFIXES[suffix]
    if kind == "picture":
        for word in ("depth", "novel"):
            if path.name.lower().startswith(word):
                kind = word
    numbers = _NUMBER.findall(path.name)
    if "%" in text and (len(numbers) != 1 or text.count("%") != 1):
        raise OutputError(
            f"{option} {text}: the number has another form or another place than the file's name.",
            f"Write one %05d in the name, e.g. {_example(path)}.",
        )
    if kind in _PER_FRAME and not numbers:
        raise OutputError(f"{option} {text}: one file for many frames.", f"Write e.g. {_example(path)}.")
    if kind in _WHOLE and numbers:
        raise OutputError(
            f"{option} {text}: one {suffix} file holds the whole recording.",
            "Leave the number out of its name.",
        )
    if kind == "container":
        check_fourdgs()
    if suffix == ".exr":
        check_exr()
    return Target(path, kind, int(numbers[0]) if numbers else 0)


def parse_source(text: str) -> Target:
    """What a path that is to be read describes: a file, or numbered ones.

    Raises:
        InputError: it holds no Gaussians, or has another number than one %0Nd in the file's name.
    """
    path = Path(text)
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind not in ("ply", "splat", "container", "tracks"):
        raise InputError(
            f"{text}: files of type '{path.suffix}' hold no Gaussians.", "Pass .npz, .4dgs, .ply or .splat."
        )
    numbers = _NUMBER.findall(path.name)
    if "%" in text and (len(numbers) != 1 or text.count("%") != 1 or kind in _WHOLE):
        raise InputError(f"{text}: is not the name of numbered files.", f"Write e.g. {_example(path)}.")
    return Target(path, kind, int(numbers[0]) if numbers else 0)


def _example(path: Path) -> Path:
    stem = path.stem.split("%")[0]
    return path.with_name(f"{stem}%05d{path.suffix}")


def check_target(target: Target, *, force: bool) -> None:
    """Refuses what exists already (unless `force`), and places that cannot be written to.

    The folder of numbered files may be missing: it is made when the first is written.

    Raises:
        OutputError: with the option or command that mends it.
    """
    if not target.digits:
        check_output(target.path, force=force)
        return
    try:
        first = next(target.existing(), None)
    except OSError as error:
        raise output_error(target.path, error) from error
    if first is not None and not force:
        raise OutputError(
            f"{first}: exists already.", "Pass --force to replace the files of that name, or choose another."
        )
    folder = target.path.parent
    if folder.exists():
        check_output(target.numbered(0), force=True)
    else:
        check_output(folder, force=False)


class NumberedWriter:
    """Writes the files of a numbered target one by one, each complete as soon as it is there."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._written = 0

    def write(self, data: bytes) -> None:
        """Stores the next file. OutputError where it cannot be stored; those before it stay."""
        if self._written == 0:
            self._make_room()
        write_bytes(self._target.numbered(self._written), data)
        self._written += 1

    def _make_room(self) -> None:
        """Makes the folder, and removes what an earlier, perhaps longer, run left (only with --force)."""
        try:
            self._target.path.parent.mkdir(exist_ok=True)
            for old in list(self._target.existing()):
                old.unlink()
        except OSError as error:
            raise output_error(self._target.path, error) from error
