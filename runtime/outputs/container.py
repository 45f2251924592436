"""`.4dgs` files (the `fourdgs` container, https://4dgs.dev): a whole recording in one compressed file.

The format describes a Gaussian by a place, a velocity, a window of time and a bell curve of opacity over
time; a stream's Gaussians fit that except in two points. Depth moves in straight lines (here its inverse
does), and the fade becomes the bell curve closest to it (`births`). Values are quantised within the bounds
the file declares.

`fourdgs` (extra `[container]`) holds a whole scene in memory when it writes one; here its records are
written pair by pair, because a stream has no end. Only its building blocks are used: how values are
quantised and how records are laid out stays its business.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import OutputError
from ..video.output import AtomicFile, output_error
from .cloud import OPACITY_MIN, Picture

INSTALL_HINT = "Install it: pip install 'streamsplat-edge[container]'."
PICTURE_KEY = "streamsplat-edge picture"  # attribute of the header
_MODEL = "gaussian-birth"
_LEVEL = 1  # of deflate: files a tenth larger than at 6, written three times as fast


@dataclass(frozen=True)
class Births:
    """Gaussians of one window of time, axes as in `cloud.Cloud`.

    Attributes:
        means [N, 3]: where each is at its birth time. scales [N, 3]. rgb [N, 3]. opacity [N].
        motion [N, 3]: per second. birth [N]: seconds. spread [N]: sigma of the bell curve in seconds, or
            infinity for constant opacity. quats [N, 4]: w, x, y, z; None for axis-aligned Gaussians.
    """

    means: np.ndarray
    scales: np.ndarray
    rgb: np.ndarray
    opacity: np.ndarray
    motion: np.ndarray
    birth: np.ndarray
    spread: np.ndarray
    quats: np.ndarray | None = None


def check_fourdgs() -> None:
    """OutputError where the package is missing."""
    try:
        import fourdgs  # noqa: F401
    except ImportError as error:
        raise OutputError(".4dgs files need the package fourdgs.", INSTALL_HINT) from error


class ContainerWriter:
    """Writes windows of time one after the other.

    Compressed chunks go to a nameless file in the target's folder and are put behind the header, which
    must know them all, on `close`: for a moment the file needs twice its room.

    Args:
        path: target, appears on `close`.
        picture: kept as an attribute; None where it is not known.
    """

    def __init__(self, path: Path | str, picture: Picture | None) -> None:
        check_fourdgs()
        self._picture = picture
        self._windows: list[tuple[float, float]] = []
        self._index: list[Any] = []
        self._count = 0
        self._low, self._high = np.full(3, np.inf), np.full(3, -np.inf)
        self._bounds: Any = None
        self._file = AtomicFile(path)
        try:
            self._chunks: IO[bytes] = tempfile.TemporaryFile(dir=Path(path).absolute().parent)  # noqa: SIM115
        except OSError as error:
            self._file.discard()
            raise output_error(path, error) from error

    def add(self, births: Births, start: float, end: float) -> None:
        """Adds what lives from `start` to `end` (exclusive), in seconds since the first call's start.

        Raises:
            OutputError: it could not be stored; nothing is left.
        """
        count = len(births.means)
        if count == 0:
            return
        from fourdgs import quantization as quantise
        from fourdgs import records

        if self._bounds is None:  # the precision of places follows the size of the first Gaussians
            median = max(float(np.median(births.scales)), 1e-6)
            self._bounds = quantise.Bounds.for_profile("default", median_scale=median)
        order = quantise.morton_order(births.means)  # neighbours compress better side by side
        blob = records.encode_chunk(start, end, 0, count, self._streams(births, order, end - start))
        try:
            place = self._chunks.tell()
            self._chunks.write(blob)
        except OSError as error:
            self.abort()
            raise output_error(self._file.path, error) from error
        self._index.append(records.ChunkIndexEntry(start, end, place, len(blob), count))
        self._windows.append((start, end))
        self._count += count
        self._low = np.minimum(self._low, births.means.min(0))
        self._high = np.maximum(self._high, births.means.max(0))

    def _streams(self, births: Births, order: np.ndarray, seconds: float) -> bytes:
        from fourdgs import opcode
        from fourdgs import quantization as quantise
        from fourdgs.serialization import encode_stream

        steps = quantise.Steps.of(self._bounds)
        count = len(order)
        endless = ~np.isfinite(births.spread)
        spread = quantise.quantize(np.log(np.where(endless, 1.0, births.spread)), steps.sigma_log)
        spread[endless] = 0
        support = quantise.support_k(OPACITY_MIN)
        life = quantise.life_class(spread, steps.sigma_log, endless, np.full(count, seconds), support)
        velocity_step = quantise.motion_steps(life, steps.motion)[:, None]
        birth_step = quantise.mu_steps(spread, steps.sigma_log, endless, steps.time)
        births_at = quantise.quantize(births.birth, birth_step)
        # Places belong to times of birth: they move with what rounding does to those.
        means = births.means + births.motion * (births_at * birth_step - births.birth)[:, None]
        if births.quats is None:
            quats = np.tile(np.array([0.0, 0, 0, 1]), (count, 1))
        else:
            quats = births.quats[:, [1, 2, 3, 0]]  # the format has w last
        largest, rest = quantise.quantize_rotation(quats, steps.rot)
        colours = quantise.quantize(np.clip(births.rgb, 0, 1), steps.rgb)
        columns = (
            (opcode.A_POSITION, quantise.quantize(means, steps.pos), 3),
            (opcode.A_SCALE, quantise.quantize(np.log(np.maximum(births.scales, 1e-9)), steps.scale_log), 3),
            (opcode.A_ROTATION_INDEX, largest, 1),
            (opcode.A_ROTATION, rest, 3),
            (opcode.A_COLOR, quantise.rct_forward(colours), 3),
            (opcode.A_OPACITY, quantise.quantize(np.clip(births.opacity, 0, 1), steps.alpha), 1),
            (opcode.A_MOTION, quantise.quantize(births.motion, velocity_step), 3),
            (opcode.A_MU_T, births_at, 1),
            (opcode.A_SIGMA_T, spread, 1),
            (opcode.A_FLAGS, endless.astype(np.int64), 1),
            (opcode.A_WINDOW_INDEX, np.full(count, len(self._windows)), 1),
        )
        return b"".join(
            encode_stream(kind, values[order], channels=channels, level=_LEVEL)
            for kind, values, channels in columns
        )

    def close(self) -> None:
        """Makes the file appear; without a Gaussian there is none."""
        if not self._count:
            self.abort()
            return
        try:
            self._assemble()
        except OSError as error:
            self.abort()
            raise output_error(self._file.path, self._file.error or error) from error
        self._chunks.close()
        self._file.commit()

    def _assemble(self) -> None:
        from fourdgs import quantization as quantise
        from fourdgs import records, serialization

        from ..._version import __version__

        steps = quantise.Steps.of(self._bounds)
        header = records.Header(
            duration_sec=self._windows[-1][1],
            gaussian_count=self._count,
            aabb=[*map(float, self._low), *map(float, self._high)],
            profile="",
            library=f"streamsplat-edge {__version__}",
            temporal_model=_MODEL,
            cutoff=OPACITY_MIN,
            sh_degree=0,
            flags=0,
            attributes={} if self._picture is None else {PICTURE_KEY: self._picture.to_text()},
        )
        grid = records.Quantization(
            scheme="uniform-v1",
            pos_origin=[0.0, 0.0, 0.0],
            step_pos=steps.pos,
            step_scale_log=steps.scale_log,
            step_rot=steps.rot,
            step_rgb=steps.rgb,
            step_alpha=steps.alpha,
            step_motion=steps.motion,
            step_time=steps.time,
            step_sigma_log=steps.sigma_log,
            step_sh=steps.sh,
            bounds=self._bounds.as_strings(),
        )
        front = serialization.MAGIC + header.encode() + grid.encode()
        front += records.WindowTable(self._windows).encode()
        self._file.write(front)
        self._chunks.seek(0)
        shutil.copyfileobj(self._chunks, self._file, 1 << 20)
        summary_start = self._file.tell()
        for entry in self._index:
            entry.chunk_offset += len(front)
        summary = b"".join(entry.encode() for entry in self._index)
        footer = records.Footer(summary_start, 0, serialization.crc32(summary))
        self._file.write(summary + footer.encode() + serialization.MAGIC)

    def abort(self) -> None:
        """Leaves no file."""
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._chunks.close()
        self._file.discard()
