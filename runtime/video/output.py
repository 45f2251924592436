"""Files that appear complete or not at all: written under a temporary name beside the target."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError


def output_error(path: Path | str, error: Exception) -> OutputError:
    """An `OutputError` that says in plain words why the system refused."""
    hints = {
        errno.ENOSPC: "Free some space or choose another disk; nothing was left behind.",
        errno.EDQUOT: "Your disk quota is used up; nothing was left behind.",
        errno.EFBIG: "The file would exceed the allowed file size (ulimit -f); nothing was left behind.",
        errno.ENOENT: "The folder does not exist; create it first.",
        errno.ENOTDIR: "Part of the path is a file, not a folder.",
        errno.EACCES: "You may not write there; choose another folder.",
        errno.EROFS: "The file system is read-only; choose another folder.",
    }
    number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    hint = hints.get(number or 0, "Choose another place.")
    return OutputError(f"{path}: cannot be written: {text or error}.", hint)


def check_output(path: Path, *, force: bool) -> None:
    """Refuses an output that exists already (unless `force`) or whose folder is missing or not writable.

    Raises:
        OutputError: with the option or command that mends it.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder.", "Give a file name.")
        if path.exists() and not path.is_file():  # replacing one, say /dev/null, would break the system
            raise OutputError(f"{path}: is a device or a pipe.", "Give the name of an ordinary file.")
        if path.exists() and not force:
            raise OutputError(
                f"{path}: exists already.", "Pass --force to replace it, or choose another name."
            )
    except OSError as error:
        raise output_error(path, error) from error
    if not path.absolute().parent.is_dir():
        missing = path.absolute().parent
        blocked = next((p for p in missing.parents if p.exists() and not p.is_dir()), None)
        if blocked is not None or missing.exists():
            raise OutputError(
                f"{path}: {blocked or missing} is a file, not a folder.", "Choose another place."
            )
        raise OutputError(f"{path}: the folder {missing} does not exist.", f"Create it: mkdir -p '{missing}'")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder is not writable.", "Choose another place.")


class AtomicFile:
    """A binary file under a temporary name until `commit`; `discard`, or an error in `with`, removes it.

    The first error of the system is kept in `error`: libav and other C writers lose it on their way back.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.error: OSError | None = None
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self._file: BinaryIO | None = self._temporary.open("wb")
        except OSError as error:
            raise output_error(self.path, error) from error

    @property
    def name(self) -> str:
        return str(self.path)

    def write(self, data: bytes) -> int:
        assert self._file is not None, "write after commit or discard"
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        assert self._file is not None, "seek after commit or discard"
        try:
            return self._file.seek(offset, whence)  # flushes, so it can meet a full disk as well
        except OSError as error:
            self.error = self.error or error
            raise

    def tell(self) -> int:
        assert self._file is not None, "tell after commit or discard"
        return self._file.tell()

    def flush(self) -> None:
        assert self._file is not None, "flush after commit or discard"
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise

    def commit(self) -> None:
        """Makes the file appear under its name. OutputError, nothing left, if a byte could not be stored."""
        if self._file is None:
            return
        try:
            if self.error is not None:
                raise self.error
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.path)
        except OSError as error:
            self.discard()
            raise output_error(self.path, error) from error
        self._file = None

    def discard(self) -> None:
        """Removes what was written; safe to call at any time and twice."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()
        self._file = None

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a whole file atomically. Raises OutputError with nothing left behind."""
    with AtomicFile(path) as file:
        try:
            file.write(data)
        except OSError as error:
            raise output_error(path, error) from error
