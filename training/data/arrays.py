"""Array files: written whole or not at all, in one pass whatever their length; read, or refused as broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.video.output import output_error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system become OutputError: a full disk must not look like a clip that cannot be read."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def read(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """`np.load` of one array. ValueError where the file is damaged, OSError where it cannot be opened."""
    try:
        array: Any = np.load(path, mmap_mode="r" if mapped else None)
    # An empty file, a header that ends in the middle, and what looks like an archive.
    except (EOFError, TokenError, BadZipFile) as error:
        raise ValueError(f"not an array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive, not an array")
    return array


def save(path: Path, array: NDArray[Any]) -> None:
    """`np.save` under a temporary name, then renamed. OutputError, nothing left behind, where it fails."""
    temporary = path.with_suffix(".tmp")
    try:
        with writing(path):
            with temporary.open("wb") as sink:
                np.save(sink, array)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Growing:
    """An array of unknown length on disk: `append` rows, then `save_as`. A context manager that tidies up.

    Args:
        path: of the temporary file.
        shape: of a row.
        dtype: of the array.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.rows = 0
        with writing(path):
            self._file = path.open("wb")

    def append(self, row: NDArray[Any]) -> None:
        """Add a row; OutputError where the disk refuses."""
        assert (row.shape, row.dtype) == (self.shape, self.dtype), (row.shape, row.dtype)
        with writing(self.path):
            self._file.write(np.ascontiguousarray(row).tobytes())
        self.rows += 1

    def save_as(self, target: Path) -> None:
        """Write the rows as a `.npy` file. At least one."""
        with writing(self.path):
            self._file.flush()
        save(target, np.memmap(self.path, self.dtype, "r", shape=(self.rows, *self.shape)))

    def __enter__(self) -> Growing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with writing(self.path):
                self._file.close()
        finally:
            self.path.unlink(missing_ok=True)
