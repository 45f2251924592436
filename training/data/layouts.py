"""What a folder of training media is, and the clips and photographs in it.

| layout | recognised by | clips |
|---|---|---|
| media | manifest.json or images.json | as the manifest says |
| co3d | CATEGORY/set_lists/ | CATEGORY/SEQUENCE/images/ |
| davis | JPEGImages/ and ImageSets/2017/ | JPEGImages/RESOLUTION/SEQUENCE/ |
| youtube-vos | train/ or valid/ with JPEGImages/, or JPEGImages/ and meta.json | .../JPEGImages/VIDEO/ |
| re10k | train/*.txt or test/*.txt with poses | the folder of frames of every pose file |
| plain | videos, folders of two images or more, photos/ | every video and every folder of images |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES

from . import datasets
from .sources import Source, images_in, natural

HELD_OUT = 10  # one clip in so many is for evaluation where nothing says which
_ENTRY = ("name", "file", "split", "fps", "crop", "shots", "frames")  # what a clip's manifest entry must have
_SPLITS = ("train", "eval")
_LABELS = (".depth", ".mask")  # NAME.depth.npy belongs to the clip NAME


@dataclass(frozen=True)
class Photo:
    """A photograph: file, split, its name in the cache."""

    path: Path
    split: str
    name: str


@dataclass(frozen=True)
class Content:
    """What a folder holds.

    Attributes:
        layout: name of the layout.
        clips: in the order they are cached.
        photos: photographs.
        sprites: folder of RGBA cut-outs; need not exist.
        skipped: what cannot be used: {"name", "reason"}.
    """

    layout: str
    clips: list[Source]
    photos: list[Photo] = field(default_factory=list)
    sprites: Path = Path("sprites")
    skipped: list[dict[str, str]] = field(default_factory=list)


def _is_media(root: Path) -> bool:
    return (root / "manifest.json").exists() or (root / "images.json").exists()


def _is_plain(root: Path) -> bool:
    return (root / "photos").is_dir() or bool(_plain_clips(root, 1.0))


# In the order they are tried: name, test, and what the test looks for in words.
_LAYOUTS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "media": (_is_media, "manifest.json or images.json"),
    "co3d": (datasets.is_co3d, "CATEGORY/set_lists/"),
    "davis": (datasets.is_davis, "JPEGImages/ and ImageSets/2017/"),
    "youtube-vos": (
        datasets.is_youtube_vos,
        "train/JPEGImages/ or valid/JPEGImages/, or JPEGImages/ beside meta.json",
    ),
    "re10k": (datasets.is_re10k, "pose files train/*.txt or test/*.txt"),
    "plain": (_is_plain, "videos, folders of two images or more, or photos/"),
}
LAYOUTS = tuple(_LAYOUTS)


def detect(root: Path) -> str:
    """Name of the first layout whose marks are there.

    Raises:
        InputError: no such folder, or it matches nothing; says what was looked for.
    """
    _check_folder(root)
    for name, (matches, _) in _LAYOUTS.items():
        if matches(root):
            return name
    looked = "; ".join(f"{name}: {marks}" for name, (_, marks) in _LAYOUTS.items())
    raise InputError(
        f"{root} holds no training media that is known. Looked for {looked}.",
        "Give the folder that holds these directly; docs/data.md describes the layouts.",
    )


def read_folder(root: Path, layout: str = "auto", rate: float = 24.0) -> Content:
    """The clips and photographs of a folder.

    Args:
        root: the folder.
        layout: one of `LAYOUTS`, or "auto" to detect it.
        rate: frames per second of image sequences of the layout "plain".

    Raises:
        InputError: see `detect`; the layout asked for has not its marks; a list in it is of no use; nothing
            to train on.
    """
    _check_folder(root)
    if layout == "auto":
        layout = detect(root)
    matches, marks = _LAYOUTS[layout]
    if layout != "media" and not matches(root):
        raise InputError(f"{root} is not of the layout {layout}: it needs {marks}.", "Leave out --layout.")
    if layout == "media":
        content = _media(root)
    elif layout == "plain":
        content = _plain(root, rate)
    else:
        clips, skipped = datasets.READERS[layout](root)
        content = Content(layout, _split_by_name(clips), skipped=skipped)
    _check_names(root, content.clips)
    if not content.clips and not content.photos:
        reasons = "; ".join(f"{s['name']}: {s['reason']}" for s in content.skipped[:3])
        raise InputError(f"{root} ({layout}) has nothing to train on. {reasons}".strip(), "See docs/data.md.")
    return content


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder.", "Give the folder that holds the training media.")


def _check_names(root: Path, clips: list[Source]) -> None:
    names = [clip.name for clip in clips]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InputError(f"{root} has several clips named {', '.join(twice[:3])}.", "Rename all but one.")
    labels = (name for name in names for label in _LABELS if name.endswith(label))
    clash = next((name for name in labels if name.rpartition(".")[0] in names), None)
    if clash is not None or "index" in names:
        name = clash or "index"
        raise InputError(
            f"{root} has a clip named {name}, which in a cache is the name of another file.", "Rename it."
        )


def _split_by_name(clips: list[Source]) -> list[Source]:
    """Clips whose split is still open ("") get one.

    Of ten or more, those for which SHA-256 of `relative` (with forward slashes), as a number, is divisible by
    ten are for evaluation: a clip stays on its side when others come and go. Fewer are all for training.
    """
    open_ones = [clip for clip in clips if not clip.split]

    def split(clip: Source) -> str:
        if clip.split or len(open_ones) < HELD_OUT:
            return clip.split or "train"
        digest = hashlib.sha256(clip.relative.as_posix().encode()).hexdigest()
        return "eval" if int(digest, 16) % HELD_OUT == 0 else "train"

    return [replace(clip, split=split(clip)) for clip in clips]


def _plain(root: Path, rate: float) -> Content:
    photos = []
    for path in sorted((root / "photos").rglob("*")):
        relative = path.relative_to(root / "photos")
        if path.suffix.lower() in IMAGE_SUFFIXES:
            photos.append(Photo(path, _side(relative) or "train", _plain_name(relative)))
    return Content("plain", _split_by_name(_plain_clips(root, rate)), photos, root / "sprites")


def _plain_clips(root: Path, rate: float) -> list[Source]:
    """Every video and every folder of two images or more below `root`, but for photos/ and sprites/.

    Below train/ and eval/ the split is given by that; elsewhere it is left open.
    """
    folders = [root, *sorted(p for p in root.rglob("*") if p.is_dir())]
    clips = []
    for folder in folders:
        relative = folder.relative_to(root)
        if any(part.startswith(".") for part in relative.parts) or relative.parts[:1] in (
            ("photos",),
            ("sprites",),
        ):
            continue
        files = sorted((p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES), key=natural)
        stems = [p.stem for p in files]
        for path in files:
            # a.mp4 and a.mkv keep their suffixes, or they would be one clip.
            name = path.name if stems.count(path.stem) > 1 else path.stem
            clips.append(Source(_plain_name(relative / name), _side(relative), path, relative / name))
        images = images_in(folder)
        if len(images) >= 2:
            place = relative if relative.parts else Path(root.resolve().name)
            clips.append(
                Source(_plain_name(place), _side(relative), folder, place, images=tuple(images), fps=rate)
            )
    return clips


def _plain_name(relative: Path) -> str:
    return "__".join(relative.parts)


def _side(relative: Path) -> str:
    return relative.parts[0] if relative.parts and relative.parts[0] in _SPLITS else ""


def _media(root: Path) -> Content:
    """The media folder: manifest.json and images.json (one of them may be missing), sprites/."""
    manifest, images = root / "manifest.json", root / "images.json"
    entries = [] if images.exists() and not manifest.exists() else _read_list(manifest, _ENTRY)
    photos = _read_list(images, ("file", "split")) if images.exists() else []
    clips = [
        Source(
            name=entry["name"],
            split=entry["split"],
            path=root / entry["file"],
            relative=Path(entry["file"]).with_suffix(""),
            fps=float(entry["fps"]),
            crop=tuple(entry["crop"]),
            shots=entry["shots"],
            frames=entry["frames"],
            info={"licence": entry.get("licence", ""), "kind": entry.get("kind", "")},
        )
        for entry in entries
    ]
    found = [Photo(root / p["file"], p["split"], Path(p["file"]).stem) for p in photos]
    return Content("media", clips, found, root / "sprites")


def _read_list(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """A JSON list of objects that have the `needed` fields, and no name twice."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).", "Give the media folder.") from error
    if not isinstance(entries, list):
        raise InputError(f"{path} is not a list.", "docs/data.md describes the media folder.")
    names = set()
    for number, entry in enumerate(entries):
        missing = [field for field in needed if not isinstance(entry, dict) or field not in entry]
        if missing:
            raise InputError(f"{path}: entry {number} lacks {', '.join(missing)}.", "Add what is missing.")
        name = entry.get("name") or Path(entry["file"]).stem
        if name in names or Path(name).name != name:
            raise InputError(
                f"{path}: entry {number} is named {name!r}, which is taken or not a plain name.",
                "Every clip and photograph needs a file name of its own.",
            )
        names.add(name)
    return entries
