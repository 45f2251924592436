"""Reads `.4dgs` files: only the parts that an instant needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .cloud import COUNT_MAX, Cloud, Picture, check_cloud
from .container import PICTURE_KEY, check_fourdgs


class ContainerReader:
    """An open file.

    Attributes:
        seconds: its length.

    Raises:
        InputError: not such a file, a damaged one, or one of the other temporal model of the format.
        OutputError: the package fourdgs is missing.
    """

    def __init__(self, path: Path | str) -> None:
        check_fourdgs()
        from fourdgs import indexed_reader
        from fourdgs.readable import FileReadable

        self.path = Path(path)
        try:
            self._source = FileReadable(self.path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
        self._decoded: dict[int, dict[str, Any]] = {}  # chunks of the last call
        try:
            self._scene = self._guarded(indexed_reader.open_indexed, self._source)
            self._check_front()
        except BaseException:
            self._source.close()
            raise

    def _check_front(self) -> None:
        scene = self._scene
        self.seconds = float(scene.header.duration_sec)
        windows = np.asarray(scene.windows, np.float64).reshape(-1, 2)
        numbers = [self.seconds, *scene.quantization.pos_origin]
        if not (0 < self.seconds < np.inf and np.isfinite(numbers).all()) or np.isnan(windows).any():
            raise InputError(f"{self.path}: its times make no sense.", "The file is damaged; save it again.")
        if scene.summary_crc_ok is False or not scene.index:
            raise InputError(f"{self.path}: its index is damaged or missing.", "Save it again.")
        if scene.header.temporal_model != "gaussian-birth":
            raise InputError(
                f"{self.path}: its model of time is '{scene.header.temporal_model[:40]}'.",
                "Only 'gaussian-birth' is read, which this program writes.",
            )
        text = scene.header.attributes.get(PICTURE_KEY)
        self.picture = None if text is None else Picture.of_text(text, str(self.path))

    def at(self, time: float) -> Cloud:
        """What is visible at `time`, in seconds from the start."""
        from fourdgs import indexed_reader

        scene = self._scene
        entries = scene.chunks_for_time(time)
        if sum(entry.gaussian_count for entry in entries) > COUNT_MAX:
            raise InputError(f"{self.path}: has more than {COUNT_MAX} Gaussians at {time:g} s.")
        offsets = {entry.chunk_offset for entry in entries}
        self._decoded = {offset: chunk for offset, chunk in self._decoded.items() if offset in offsets}
        for entry in entries:
            if entry.chunk_offset not in self._decoded:
                chunk = self._guarded(indexed_reader.read_chunk, self._source, scene, entry)
                self._decoded[entry.chunk_offset] = chunk
        parts = [self._visible(self._decoded[entry.chunk_offset], time) for entry in entries]
        if not parts:
            parts = [(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 4)), np.zeros((0, 3)), np.zeros(0))]
        with np.errstate(over="ignore"):  # `check_cloud` refuses infinity
            means, scales, quats, rgb, opacity = (
                np.concatenate(column).astype(np.float32) for column in zip(*parts, strict=True)
            )
        cloud = Cloud(means, scales, quats, rgb, opacity, time=time, picture=self.picture)
        return check_cloud(cloud, str(self.path))

    def _visible(self, chunk: dict[str, Any], time: float) -> tuple[np.ndarray, ...]:
        windows = np.asarray(self._scene.windows, np.float64).reshape(-1, 2)[chunk["window_index"]]
        since = time - chunk["mu_t"]
        with np.errstate(over="ignore", invalid="ignore"):  # `check_cloud` refuses what is not finite
            curve = np.exp(-0.5 * np.square(since / np.maximum(chunk["sigma_t"], 1e-30)))
            means = chunk["positions"] + chunk["motions"] * since[:, None]
        seen = (windows[:, 0] <= time) & (time < windows[:, 1]) & (curve >= self._scene.header.cutoff)
        colours = chunk["colors"][seen]
        quats = chunk["rotations"][seen][:, [3, 0, 1, 2]]
        return means[seen], chunk["scales"][seen], quats, colours[:, :3], colours[:, 3] * curve[seen]

    def _guarded(self, call: Any, *arguments: Any) -> Any:
        """The package's errors, and what damaged files make NumPy and struct say, as errors of ours."""
        import struct

        from fourdgs import FourdgsError

        try:
            return call(*arguments)
        except (FourdgsError, OSError, ValueError, OverflowError, IndexError, struct.error) as error:
            raise InputError(
                f"{self.path}: is not a .4dgs file that can be read: {error}.", "Save it again."
            ) from error

    def close(self) -> None:
        self._source.close()
