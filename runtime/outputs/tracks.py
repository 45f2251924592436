"""Per-Gaussian tracks as `.npz`: everything the network said, so that any time can be evaluated exactly.

    format           "streamsplat-edge tracks 1"
    depth_mapping    "published" or "paper": from normalised inverse depth y to depth
    picture          width and height in pixels of the model, width over height as shown: "256 144 1.7778"
    times            float64 [K], seconds of the key frames
    begins_scene     bool [K], no pair joins this key frame to the one before
    frame_times      float64 [F], seconds of the frames of the input
    gaussians_NNNNNN float32 [G, 9] of key frame N: x, y, z, r, g, b, scale x, scale z, opacity
    motion_NNNNNN    float32 [2, G, 3] of the pair (N - 1, N): the Gaussians of N - 1, then those of N
    fade_NNNNNN      float32 [2, G, 2]

Gaussian i of key frame N is one thing from key frame N - 1 to N + 1: at N - 1 it is at xyz - motion_N[1,
i], at N at xyz, at N + 1 at xyz + motion_(N+1)[0, i], and moves in straight lines between. Members are stored
uncompressed, float32 noise hardly shrinks.
"""

from __future__ import annotations

import io
import zipfile
from array import array
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import InputError
from ..stage_tensors import GAUSSIAN_COLUMNS
from ..video.output import AtomicFile, output_error
from .cloud import Picture
from .key_frame import KeyFrame

FORMAT = "streamsplat-edge tracks 1"


class TracksWriter:
    """Writes key frame after key frame; memory grows by the directory of the zip only (2 kB per key frame).

    Args:
        path: target, appears on `close`.
        depth_mapping, picture: see the module's docstring.
    """

    def __init__(self, path: Path | str, *, depth_mapping: str, picture: Picture) -> None:
        self._times, self._frame_times = array("d"), array("d")
        self._begins: list[bool] = []
        self._file = AtomicFile(path)
        self._zip = zipfile.ZipFile(cast(Any, self._file), "w")  # it can write, seek, tell and flush
        self._put("format", np.array(FORMAT))
        self._put("depth_mapping", np.array(depth_mapping))
        self._put("picture", np.array(picture.to_text()))

    def add_key_frame(self, key: KeyFrame) -> None:
        """Stores one; they are numbered from 0 in the order they come.

        Raises:
            OutputError: it could not be stored; nothing is left.
        """
        number = f"{len(self._times):06d}"
        self._times.append(key.time)
        self._begins.append(key.motion is None)
        self._put(f"gaussians_{number}", key.gaussians)
        if key.motion is not None and key.fade is not None:
            self._put(f"motion_{number}", key.motion)
            self._put(f"fade_{number}", key.fade)

    def add_frame_time(self, seconds: float) -> None:
        self._frame_times.append(seconds)

    def _put(self, name: str, values: np.ndarray) -> None:
        data = io.BytesIO()
        np.lib.format.write_array(data, values, allow_pickle=False)
        try:
            # No getbuffer: an error leaves it to the garbage collector, where CPython 3.12.1 crashes.
            self._zip.writestr(f"{name}.npy", data.getvalue())
        except OSError as error:
            self.abort()
            raise output_error(self._file.path, self._file.error or error) from error

    def close(self) -> None:
        """Makes the file appear; without a key frame there is none."""
        if not self._times:
            self.abort()
            return
        self._put("times", np.array(self._times))
        self._put("begins_scene", np.array(self._begins))
        self._put("frame_times", np.array(self._frame_times))
        try:
            self._zip.close()
        except OSError as error:
            self.abort()
            raise output_error(self._file.path, self._file.error or error) from error
        self._file.commit()

    def abort(self) -> None:
        """Leaves no file."""
        self._zip.fp = None  # or its destructor would write the directory
        self._file.discard()


class Tracks:
    """Reads a file of tracks, two key frames at a time.

    Attributes:
        times [K], begins_scene [K], frame_times [F]: see the module's docstring. gaussians: G per key frame.
        depth_mapping, picture: likewise.

    Raises:
        InputError: not such a file, damaged, or with values that cannot be used.
    """

    KEY_FRAMES_MAX = 10_000_000
    GAUSSIANS_MAX = 4_000_000

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: cannot be read: {error}.", "Pass a .npz file of tracks.") from error
        try:
            self._open()
        except BaseException:
            self._zip.close()
            raise

    def _open(self) -> None:
        words = {name: self._word(name) for name in ("format", "depth_mapping")}
        if words["format"] != FORMAT or words["depth_mapping"] not in ("published", "paper"):
            raise InputError(
                f"{self.path}: is '{words['format']}' with depth mapping '{words['depth_mapping']}'.",
                f"This version reads '{FORMAT}'.",
            )
        self.depth_mapping: Any = words["depth_mapping"]
        self.picture = Picture.of_text(self._word("picture"), str(self.path))
        self.times = self._read("times", np.float64, (None,))
        self.begins_scene = self._read("begins_scene", np.bool_, self.times.shape)
        self.frame_times = self._read("frame_times", np.float64, (None,))
        self.gaussians = len(self._read("gaussians_000000", np.float32, (None, GAUSSIAN_COLUMNS)))
        good = bool(self.times.size and self.begins_scene[0])
        for times in (self.times, self.frame_times):
            good = good and np.isfinite(times).all() and bool((np.diff(times) > 0).all())
        if not good:
            raise InputError(f"{self.path}: its times make no sense.", "The file is damaged.")

    def key_frame(self, number: int) -> KeyFrame:
        """Key frame `number` with the pair that ends there; values are checked to be finite."""
        count, name = self.gaussians, f"{number:06d}"
        rows = self._read(f"gaussians_{name}", np.float32, (count, GAUSSIAN_COLUMNS))
        motion = fade = None
        if not self.begins_scene[number]:
            motion = self._read(f"motion_{name}", np.float32, (2, count, 3))
            fade = self._read(f"fade_{name}", np.float32, (2, count, 2))
        return KeyFrame(float(self.times[number]), rows, motion, fade)

    def track(self, key_frame: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Where one Gaussian is over its life: times [1 to 3] in seconds, xyz [1 to 3, 3] in the model's
        units (y is normalised inverse depth). It moves in straight lines between."""
        own = self.key_frame(key_frame)
        xyz = own.gaussians[index, :3]
        times, places = [own.time], [xyz]
        if own.motion is not None:
            times.insert(0, float(self.times[key_frame - 1]))
            places.insert(0, xyz - own.motion[1, index])
        if key_frame + 1 < len(self.times) and not self.begins_scene[key_frame + 1]:
            after = self.key_frame(key_frame + 1)
            assert after.motion is not None
            times.append(after.time)
            places.append(xyz + after.motion[0, index])
        return np.array(times), np.stack(places)

    def _word(self, name: str) -> str:
        return str(self._read(name, None, ()))

    def _read(self, name: str, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
        """One member, whose type and shape are checked before its data is read. None is any length."""
        try:
            with self._zip.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                if version != (1, 0):
                    raise ValueError(f"version {version}")
                found, fortran, kind = np.lib.format.read_array_header_1_0(member)
                limit = self.GAUSSIANS_MAX if name.startswith("gaussians") else self.KEY_FRAMES_MAX
                fits = len(found) == len(shape) and all(
                    0 <= have <= limit if want is None else have == want
                    for have, want in zip(found, shape, strict=True)
                )
                right = kind.kind == "U" and kind.itemsize <= 1024 if dtype is None else kind == dtype
                if not fits or not right or fortran:
                    raise ValueError(f"{kind} {list(found)}")
                size = kind.itemsize * int(np.prod(found, dtype=np.int64))
                data = member.read(size)
                if len(data) != size:
                    raise ValueError("cut short")
        except KeyError:
            raise InputError(f"{self.path}: has no '{name}'.", "Pass a .npz file of tracks.") from None
        except (
            ValueError,
            OSError,
            EOFError,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise InputError(
                f"{self.path}: '{name}' is damaged ({error}).", "Save the tracks again."
            ) from error
        return np.frombuffer(data, kind).reshape(found)

    def close(self) -> None:
        self._zip.close()
