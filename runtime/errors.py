"""Errors a user can act on. Every one carries what happened and, where known, what to do about it."""

from __future__ import annotations


class StreamSplatError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what happened, naming the file, stage or value concerned.
        hint: what the user can do about it (one sentence), printed by the command line on its own line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    @property
    def told(self) -> str:
        """What a command prints on stderr: what happened and, on a line of its own, what to do."""
        return f"error: {self.message}" + (f"\nhint: {self.hint}" if self.hint else "")


class BundleError(StreamSplatError):
    """The bundle is missing, damaged, of another version, or reaches outside its folder."""


class EngineError(StreamSplatError):
    """The engine, provider or precision that was asked for cannot run here."""


class MismatchError(EngineError):
    """A stage file or plan is not what the manifest says: it has other inputs or outputs, which no engine can
    run, or is of another precision."""


class DeviceMemoryError(EngineError):
    """The device has not enough memory.

    Attributes:
        available: bytes that another model could have had: free ones, and where they are known those of this
            program's arrays; None where the device does not tell.
    """

    def __init__(self, message: str, hint: str = "", available: int | None = None) -> None:
        super().__init__(message, hint)
        self.available = available


class DeviceLostError(EngineError):
    """The device failed in a way that this process cannot recover from; what was made so far is whole."""


class VideoError(StreamSplatError):
    """The input cannot be read as video."""


class OutputError(StreamSplatError):
    """The output cannot be written."""


class InputError(StreamSplatError):
    """An argument or an array has a value, shape or type that cannot be used."""


class UnexpectedError(StreamSplatError):
    """Something failed in a way that nobody foresaw; `__cause__` is what was raised."""


def as_error(error: Exception, where: str) -> StreamSplatError:
    """The same error where a user can act on it, else one that names `where` and the type, with its cause."""
    if isinstance(error, StreamSplatError):
        return error
    text = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
    if isinstance(error, MemoryError):
        hint = "There is not enough memory: use a smaller model or input, or free memory."
    else:
        hint = "If the input is whole, this is a defect: please report it with the traceback."
    wrapped = UnexpectedError(f"{where}: failed unexpectedly ({text}).", hint)
    wrapped.__cause__ = error
    return wrapped
