"""Which pairs of key frames of the user's videos are recorded: balanced over shots, without repetition."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..runtime.errors import InputError, VideoError
from ..runtime.preprocess import Resizer
from ..runtime.scene_cut import SceneCutDetector
from ..runtime.video import open_video
from ..runtime.video.reader import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_ROWS, _COLS = 9, 16
_SAME = 0.01  # mean difference of two thumbnails, colours in [0, 1], below which a pair adds nothing
_REMEMBERED = 32  # pairs of a shot that a new one is compared with
# Where there are fewer shots, a part of each is held out instead of whole ones.
_SHOTS_TO_SPLIT = 5
_HELD_OUT = 5  # one in so many


@dataclass(frozen=True)
class Pair:
    """Two key frames of one shot.

    Attributes:
        video: path. shot: number of the shot in the video. first, last: frame numbers.
    """

    video: str
    shot: int
    first: int
    last: int


def find_videos(paths: Iterable[Path]) -> list[Path]:
    """Videos, and folders of images, in the order given; a folder of videos stands for all below it.

    Raises:
        InputError: a path does not exist, or there is no video in any.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist.", "Give videos, or folders of videos or images.")
        if path.is_file():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
        if inside:
            found += inside
        elif any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir()):
            found.append(path)
    if not found:
        raise InputError(
            f"There are no videos in {', '.join(map(str, paths))}.",
            "Give videos, or folders of videos or images.",
        )
    return list(dict.fromkeys(found))


def survey(videos: Sequence[Path], gap: int, *, progress: bool = False) -> list[list[Pair]]:
    """Per shot, the pairs of key frames `gap` frames apart that differ from those before; shots of one frame
    and repeated pictures give none.

    A video that cannot be read is left out with a warning on stderr.

    Raises:
        VideoError: none of them can be read. InputError: none has two key frames in one shot.
    """
    shots: list[list[Pair]] = []
    failures: list[VideoError] = []
    for path in tqdm(videos, disable=not progress, desc="look at videos", unit="video"):
        try:
            shots += _shots(path, gap)
        except VideoError as error:
            failures.append(error)
            print(f"warning: left out: {error.message}", file=sys.stderr)
    if len(failures) == len(videos):
        raise failures[0]
    shots = [shot for shot in shots if shot]
    if not shots:
        raise InputError(
            f"No shot of the videos is longer than {gap} frames and shows any motion.",
            "Give longer videos of what the model will see.",
        )
    return shots


def hold_out(shots: Sequence[Sequence[Pair]]) -> tuple[list[list[Pair]], list[list[Pair]]]:
    """Shots to calibrate on, and shots to measure on: other shots, or the last part of each where there
    are few.

    Raises:
        InputError: too little material to leave any out.
    """
    if len(shots) >= _SHOTS_TO_SPLIT:
        rest = [list(shot) for i, shot in enumerate(shots) if i % _HELD_OUT]
        return rest, [list(shot) for i, shot in enumerate(shots) if i % _HELD_OUT == 0]
    keep = [max(1, len(shot) - max(1, len(shot) // _HELD_OUT)) for shot in shots]
    rest = [list(shot[:n]) for shot, n in zip(shots, keep, strict=True)]
    held = [list(shot[n:]) for shot, n in zip(shots, keep, strict=True) if len(shot) > n]
    if not held:
        raise InputError(
            "There is too little video to leave a part out for measuring.",
            "Give more, or other videos to measure on: --gate-data.",
        )
    return rest, held


def choose(shots: Sequence[Sequence[Pair]], count: int) -> list[Pair]:
    """At most `count` pairs: the same number of every shot as far as it has them, evenly spaced in it.

    The result depends on nothing but the arguments, and is in the order of the shots.
    """
    quota = [0] * len(shots)
    left = min(count, sum(map(len, shots)))
    while left:
        open_shots = [i for i, shot in enumerate(shots) if quota[i] < len(shot)]
        share = max(1, left // len(open_shots))
        # Where there are more shots than pairs left, those chosen are spread over all.
        spread = np.linspace(0, len(open_shots) - 1, min(left, len(open_shots))).round().astype(int)
        for i in (open_shots[k] for k in dict.fromkeys(spread.tolist())):
            added = min(share, len(shots[i]) - quota[i], left)
            quota[i] += added
            left -= added
    chosen: list[Pair] = []
    for shot, number in zip(shots, quota, strict=True):
        chosen += [shot[int((i + 0.5) * len(shot) / number)] for i in range(number)]
    return chosen


def read_pairs(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, tuple[np.ndarray, np.ndarray], float]]:
    """The pictures of pairs, uint8 RGB, and the seconds between them. Decodes every video once.

    Raises:
        VideoError: a video can no longer be read as far as it could.
    """
    for video in dict.fromkeys(pair.video for pair in pairs):
        wanted = [pair for pair in pairs if pair.video == video]
        numbers = {n for pair in wanted for n in (pair.first, pair.last)}
        waiting: dict[int, tuple[np.ndarray, float]] = {}
        with closing(open_video(video)) as reader:
            for frame in reader:
                if frame.index not in numbers:
                    continue
                waiting[frame.index] = (np.array(frame.image), frame.timestamp)
                while wanted and wanted[0].last in waiting:
                    pair = wanted.pop(0)
                    (first, start), (last, end) = waiting[pair.first], waiting[pair.last]
                    yield pair, (first, last), end - start
                    oldest = wanted[0].first if wanted else frame.index + 1
                    waiting = {n: value for n, value in waiting.items() if n >= oldest}
                if not wanted:
                    break
        if wanted:
            raise VideoError(
                f"{video} ended at frame {max(waiting, default=0)}, before frame {wanted[0].last}.",
                "Was it changed? Start again with another --work folder.",
            )


def _shots(path: Path, gap: int) -> list[list[Pair]]:
    detector, resizer = SceneCutDetector(), Resizer(_ROWS, _COLS)
    planes = np.zeros((3, _ROWS, _COLS), np.float32)
    shots: list[list[Pair]] = [[]]
    seen: list[np.ndarray] = []
    before: tuple[int, np.ndarray] | None = None
    with closing(open_video(str(path))) as reader:
        for frame in reader:
            if detector.is_cut(frame.image):
                shots.append([])
                before, seen = None, []
            if before is not None and frame.index - before[0] < gap:
                continue
            resizer.into(frame.image, planes)
            thumbnail = planes.copy()
            if before is not None:
                both = np.stack([before[1], thumbnail])
                if all(float(np.abs(both - other).mean()) > _SAME for other in seen):
                    seen = [*seen[1 - _REMEMBERED :], both]
                    shots[-1].append(Pair(str(path), len(shots) - 1, before[0], frame.index))
            before = (frame.index, thumbnail)
    return shots
