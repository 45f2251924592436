"""The data sets of the published training in the folder layouts they are distributed in.

Every reader returns the clips (`split` "" where the data set leaves it open) and what cannot be used. `span`
is the published temporal range (REFERENCE.md section 6): DAVIS 4, YouTube-VOS 3, RealEstate10K 15, CO3D 5.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from streamsplat_edge.runtime.errors import InputError

from .sources import Source, images_in

Found = tuple[list[Source], list[dict[str, str]]]

_DAVIS_RESOLUTIONS = ("Full-Resolution", "1080p", "480p")  # the published training takes the largest
_VOS_RATE = 30.0  # file names count frames of it, every fifth is there
_CO3D_RATE = 10.0  # nominal: the frames are samples of videos whose rate the folders do not tell


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _masks(images: list[Path], folder: Path) -> tuple[Path | None, ...] | None:
    """The annotation of every image, by name; None where there is none at all."""
    by_stem = {p.stem: p for p in images_in(folder)} if folder.is_dir() else {}
    masks = tuple(by_stem.get(image.stem) for image in images)
    return masks if any(masks) else None


def _skipped(name: str, reason: str) -> dict[str, str]:
    return {"name": name, "reason": reason}


def is_davis(root: Path) -> bool:
    """Whether `root` looks like DAVIS 2017."""
    return (root / "JPEGImages").is_dir() and (root / "ImageSets" / "2017").is_dir()


def read_davis(root: Path) -> Found:
    """DAVIS 2017: ImageSets/2017/train.txt trains, val.txt evaluates; 24 frames per second.

    Of several resolutions the largest is taken; annotations of another resolution serve as well.

    Raises:
        InputError: neither list is there, or no resolution.
    """
    lists = root / "ImageSets" / "2017"
    resolutions = sorted(
        (p.name for p in _folders(root / "JPEGImages")),
        key=lambda name: _DAVIS_RESOLUTIONS.index(name) if name in _DAVIS_RESOLUTIONS else 9,
    )
    if not resolutions or not any((lists / f"{name}.txt").exists() for name in ("train", "val")):
        raise InputError(
            f"{root} lacks JPEGImages/RESOLUTION/, or ImageSets/2017/train.txt and val.txt.",
            "Unpack the DAVIS 2017 archives into one folder.",
        )
    annotations = [*resolutions, *(p.name for p in _folders(root / "Annotations"))]
    clips, skipped = [], []
    for file, split in (("train.txt", "train"), ("val.txt", "eval")):
        names = (lists / file).read_text(encoding="utf-8").split() if (lists / file).exists() else []
        for name in names:
            relative = Path("JPEGImages") / resolutions[0] / name
            images = images_in(root / relative) if (root / relative).is_dir() else []
            if len(images) < 2:
                skipped.append(_skipped(name, f"{relative} has {len(images)} images"))
                continue
            found = (_masks(images, root / "Annotations" / r / name) for r in annotations)
            clips.append(
                Source(
                    name, split, root / relative, relative, tuple(images), fps=24.0,
                    shots=[[0, len(images)]], frames=len(images), masks=next((m for m in found if m), None),
                    span=4, info={"dataset": "davis"},
                )
            )  # fmt: skip
    return clips, skipped


def _vos_parts(root: Path) -> list[tuple[Path, str]]:
    """The parts of YouTube-VOS below `root` and their split, "" where there is only one to split."""
    whole = (root / "train" / "JPEGImages").is_dir(), (root / "valid" / "JPEGImages").is_dir()
    if whole == (True, True):
        return [(root / "train", "train"), (root / "valid", "eval")]
    if any(whole):
        return [(root / ("train" if whole[0] else "valid"), "" if whole[0] else "eval")]
    return [(root, "")] if (root / "JPEGImages").is_dir() and (root / "meta.json").is_file() else []


def is_youtube_vos(root: Path) -> bool:
    """Whether `root` looks like YouTube-VOS, or its part for training."""
    return bool(_vos_parts(root))


def read_youtube_vos(root: Path) -> Found:
    """YouTube-VOS: train/ trains, valid/ evaluates. Frames are named by their number at 30 per second."""
    clips, skipped = [], []
    for part, split in _vos_parts(root):
        for folder in _folders(part / "JPEGImages"):
            images, relative = images_in(folder), folder.relative_to(root)
            if len(images) < 2:
                skipped.append(_skipped(folder.name, f"{relative} has {len(images)} images"))
                continue
            named = all(image.stem.isdigit() for image in images)
            clips.append(
                Source(
                    folder.name, split, folder, relative, tuple(images),
                    fps=_VOS_RATE if named else _VOS_RATE / 5,
                    numbers=tuple(int(image.stem) for image in images) if named else None,
                    shots=[[0, len(images)]], frames=len(images),
                    masks=_masks(images, part / "Annotations" / folder.name),
                    span=3, info={"dataset": "youtube-vos"},
                )
            )  # fmt: skip
    return clips, skipped


def _pose_files(root: Path) -> list[tuple[Path, str]]:
    """Pose files of RealEstate10K with their split: the first line an address, or a first number per line."""
    found = []
    for part, split in (("train", "train"), ("test", "eval")):
        files = sorted((root / part).glob("*.txt"))
        if files and _pose_times(files[0]):
            found += [(path, split) for path in files]
    return found


def _pose_times(path: Path) -> list[int]:
    """Time stamps of a pose file in microseconds: lines of 19 numbers, after a line with the address."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return [int(line[0]) for line in lines if len(line) == 19]
    except (OSError, ValueError):
        return []


def is_re10k(root: Path) -> bool:
    """Whether `root` looks like RealEstate10K."""
    return bool(_pose_files(root))


def read_re10k(root: Path) -> Found:
    """RealEstate10K: train/ trains, test/ evaluates. Only the times of the pose files are used.

    The frames of PART/ID.txt lie in PART/ID/, frames/PART/ID/, images/PART/ID/, PART/frames/ID/ or
    PART/images/ID/. They are named by their time stamp, or there are as many as lines with poses.
    """
    clips, skipped = [], []
    for pose, split in _pose_files(root):
        part, name = pose.parent.name, pose.stem
        places = [Path(part) / name]
        for folder in ("frames", "images"):
            places += [Path(folder) / part / name, Path(part) / folder / name]
        relative = next((p for p in places if (root / p).is_dir()), None)
        images = images_in(root / relative) if relative else []
        if relative is None or len(images) < 2:
            skipped.append(_skipped(name, f"no folder of frames ({', '.join(map(str, places))})"))
            continue
        stamps = _pose_times(pose)
        stems = [int(i.stem) if i.stem.isdigit() else -1 for i in images]
        place_of = {stamp: number for number, stamp in enumerate(stamps)}
        if all(stem in place_of for stem in stems):
            times = stems
        elif len(images) == len(stamps):
            times = stamps
        else:
            skipped.append(_skipped(name, f"{len(images)} frames, {len(stamps)} poses"))
            continue
        steps = np.diff(times)
        if (steps <= 0).any():
            skipped.append(_skipped(name, "time stamps do not increase"))
            continue
        clips.append(
            Source(
                name, split, root / relative, relative, tuple(images), fps=float(1e6 / np.median(steps)),
                numbers=tuple(place_of[t] for t in times), times=tuple((t - times[0]) / 1e6 for t in times),
                shots=[[0, len(images)]], frames=len(images), span=15, info={"dataset": "re10k"},
            )
        )  # fmt: skip
    return clips, skipped


def is_co3d(root: Path) -> bool:
    """Whether `root` looks like CO3Dv2."""
    return any((folder / "set_lists").is_dir() for folder in _folders(root))


def read_co3d(root: Path) -> Found:
    """CO3Dv2: the frames that the lists set_lists/set_lists_manyview_dev_*.json name, as published.

    A category without such a list gives all its sequences. The lists split the frames of a sequence, which is
    of no use here: the split is left open, by sequence. Masks and depths of the data set are not used: its
    objects stand still (published: masks of zeros), and its depths have holes.
    """
    clips, skipped = [], []
    for category in _folders(root):
        if not (category / "set_lists").is_dir():
            continue
        listed = _co3d_lists(root, category)
        for sequence in sorted(listed) if listed else [p.name for p in _folders(category)]:
            relative = Path(category.name) / sequence
            folder = root / relative / "images"
            images = images_in(folder) if folder.is_dir() else []
            if listed:
                images = [image for image in images if image.name in listed[sequence]]
            if len(images) < 2:
                if listed or folder.is_dir():
                    skipped.append(_skipped(str(relative), f"{len(images)} of its images are there"))
                continue
            clips.append(
                Source(
                    f"{category.name}__{sequence}", "", folder, relative, tuple(images), fps=_CO3D_RATE,
                    shots=[[0, len(images)]], frames=len(images), span=5, info={"dataset": "co3d"},
                )
            )  # fmt: skip
    return clips, skipped


def _co3d_lists(root: Path, category: Path) -> dict[str, set[str]]:
    """Sequence -> file names of its frames in the lists of a category."""
    listed: dict[str, set[str]] = {}
    for path in sorted((category / "set_lists").glob("set_lists_manyview_dev_*.json")):
        try:
            for frames in json.loads(path.read_text(encoding="utf-8")).values():
                for sequence, _, file in frames:
                    listed.setdefault(sequence, set()).add(Path(file).name)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not a list of frames of CO3Dv2 ({error}).", "Download it again."
            ) from None
    return listed


READERS: dict[str, Callable[[Path], Found]] = {
    "davis": read_davis,
    "youtube-vos": read_youtube_vos,
    "re10k": read_re10k,
    "co3d": read_co3d,
}
