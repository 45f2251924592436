"""The folder of a training run: what it holds, and how that survives a kill or a full disk.

log.jsonl            one JSON object per step
state.pt             everything needed to go on after the last saved step
recipe.json          what was asked for
model.safetensors    the weights, once a call of `train` has ended
tensorboard/         event files, where the recipe asks for them
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..runtime.errors import InputError, OutputError
from ..runtime.video.output import output_error, write_bytes

_NEEDED = {"model", "optimizers", "step", "bad", "recipe"}  # of what `Run.state` makes


class RunFolder:
    """Files of a run. One process at a time: the log is locked while the folder is open.

    Raises:
        OutputError: the folder cannot be made or written.
        InputError: another process trains there.
    """

    WEIGHTS = "model.safetensors"
    TENSORBOARD = "tensorboard"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = path / "state.pt"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._log = (path / "log.jsonl").open("a+b")
        except OSError as error:
            raise output_error(path, error) from error
        try:
            # A POSIX lock: worker processes do not inherit it, so it ends with this process, not theirs.
            fcntl.lockf(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._log.close()
            raise InputError(
                f"Another process is training in {path}.", "Wait until it ends, or choose another --out."
            ) from None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()

    def read_state(self) -> dict[str, Any] | None:
        """What `write_state` stored last, on the CPU; None where nothing was.

        Raises:
            InputError: the file is damaged.
        """
        if not self._state.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly anything on damaged files
            raise InputError(
                f"{self._state} cannot be read: {error}.",
                f"It is damaged: remove {self.path} to start again, or choose another --out.",
            ) from None
        if not isinstance(state, dict) or not state.keys() >= _NEEDED:
            raise InputError(
                f"{self._state} is not the state of a run, or one of another version.",
                f"Remove {self.path} to start again, or choose another --out.",
            )
        return state

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state.

        Raises:
            OutputError: it cannot be written; the one before is untouched.
        """
        temporary = self._state.with_name(f".{self._state.name}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._state)
        except (OSError, RuntimeError) as error:  # torch wraps errors of the file in RuntimeError
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"{self._state} could not be written: {error}.",
                "Is the disk full? The state saved before is kept: make room and run the same command again.",
            ) from error

    def write_recipe(self, values: dict[str, Any]) -> None:
        """Store what was asked for, for people to read. Raises OutputError."""
        write_bytes(self.path / "recipe.json", (json.dumps(values, indent=1) + "\n").encode())

    def rewind_log(self, step: int) -> float:
        """Cut the rows of steps after `step`: they were logged, but not saved, and will be run again.

        Returns:
            The seconds logged in the last row that is left (0 without one).

        Raises:
            OutputError: the log cannot be written.
        """
        self._log.seek(0)
        end, seconds = 0, 0.0
        for line in self._log:
            try:
                row = json.loads(line)
            except ValueError:  # torn by a kill or a full disk
                break
            if row["step"] > step or not line.endswith(b"\n"):
                break
            end, seconds = end + len(line), float(row["s"])
        try:
            self._log.truncate(end)
        except OSError as error:
            raise output_error(self.path, error) from error
        return seconds

    def log(self, row: dict[str, float]) -> None:
        """Append a row; numbers that are not finite become null, which JSON has and NaN it has not.

        Raises:
            OutputError: the row cannot be written.
        """
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        try:
            self._log.write(json.dumps(finite).encode() + b"\n")
            self._log.flush()
        except OSError as error:
            raise output_error(self.path / "log.jsonl", error) from error
