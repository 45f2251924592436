"""Moments of a run: what is shown about one time, and which times are kept for the contact sheet."""

from __future__ import annotations

from dataclasses import dataclass

from .compose import PICTURES, Image


@dataclass(frozen=True)
class Moment:
    """What the panels of a layout and the contact sheet show about one time.

    Images are at model resolution except `source`, which has the size of the input.

    Attributes:
        depth, novel: None where nobody asked for them.
        phase: position in the current interval, 0 to 1; key frames lie at 0 and 1.
        yaw, pitch: degrees of the novel view.
        psnr: of the reconstruction against the input at model resolution, dB.
    """

    source: Image
    reconstruction: Image
    depth: Image | None
    novel: Image | None
    index: int
    timestamp: float
    key: bool
    phase: float
    yaw: float
    psnr: float
    pitch: float = 0.0

    def picture(self, name: str) -> Image:
        """The picture of a name of `PICTURES`. ValueError where there is none."""
        images = (self.source, self.reconstruction, self.depth, self.novel)
        image = dict(zip(PICTURES, images, strict=True))[name]
        if image is None:
            raise ValueError(f"this moment was made without '{name}'")
        return image

    @property
    def angles(self) -> str:
        """Yaw and pitch of the novel view as text, to be written beside it."""
        return f"{self.yaw:+.1f}°" + (f" {self.pitch:+.1f}°" if self.pitch else "")


class MomentKeeper:
    """Keeps a bounded, evenly spread choice of moments of a stream of unknown length, for the contact sheet.

    Key frames and frames in between are kept apart so that a sheet can show both.
    """

    def __init__(self, capacity: int = 12) -> None:
        self._capacity = capacity
        self._kept: dict[bool, list[Moment]] = {True: [], False: []}
        self._stride = {True: 1, False: 1}
        self._seen = {True: 0, False: 0}

    def wants(self, key: bool, phase: float) -> bool:
        """Whether the next moment of this kind would be kept; saves making its pictures. Counts it."""
        if not key and not 0.3 <= phase <= 0.7:
            return False  # the middle of an interval is the hardest and the fairest to show
        seen, self._seen[key] = self._seen[key], self._seen[key] + 1
        return seen % self._stride[key] == 0

    def add(self, moment: Moment) -> None:
        """Keep a moment that `wants` asked for; where that is too many, every other one goes."""
        kept = self._kept[moment.key]
        kept.append(moment)
        if len(kept) > self._capacity:
            self._kept[moment.key] = kept[::2]
            self._stride[moment.key] *= 2

    def choose(self, rows: int = 4) -> list[Moment]:
        """Up to `rows` moments in order of time, key frames and in between in turn, spread evenly."""
        everything = [m for kept in self._kept.values() for m in kept]
        if not everything:
            return []
        first, last = min(m.timestamp for m in everything), max(m.timestamp for m in everything)
        chosen: dict[int, Moment] = {}
        for row in range(rows):
            goal = first + (last - first) * (row + 0.5) / rows
            pool = [m for m in self._kept[row % 2 == 0] or everything if m.index not in chosen]
            if pool:
                moment = min(pool, key=lambda m: abs(m.timestamp - goal))
                chosen[moment.index] = moment
        return sorted(chosen.values(), key=lambda m: m.timestamp)
