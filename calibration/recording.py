"""What goes into every stage, recorded by running the real pipeline on pairs of key frames, kept on disk.

A recording is a folder. Per key frame it holds what is computed once per frame (the prepared picture and the
outputs of `condition` and `encode`), and `deform` reads two of them; the arrays are files that grow by being
written to, so that memory does not depend on their number. A recording that was interrupted goes on where it
stopped, as long as bundle, videos and settings are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..export.stage_engines import Recorder, file_engines
from ..runtime.bundle import Bundle, TensorSpec
from ..runtime.engines import Engine, select_variant
from ..runtime.errors import InputError, OutputError
from ..runtime.stream import Stream
from ..runtime.video import write_bytes
from ..runtime.video.output import output_error
from .videos import Pair, read_pairs

Arrays = dict[str, np.ndarray]

_PLAN, _DONE = "recording.json", "done"


class _Idle(Engine):
    """Stands for `deform` while recording: nothing recorded depends on what it would compute, and at full
    size it costs three times as much as all other stages."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.stage, self.inputs, self.outputs = "deform", inputs, outputs
        self.description, self.precision = "not run", "none"

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        for values in outputs.values():
            values[...] = 0


class Recording:
    """A finished or growing recording; see the module's docstring. Create with `record`.

    Attributes:
        folder: of its files. pairs: what is recorded. key: stands for the pairs and the bundle.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, tuple[int, ...]], pairs: Sequence[Pair], key: str
    ) -> None:
        self.folder, self.pairs, self.key = folder, tuple(pairs), key
        self._tensors = dict(tensors)

    def __len__(self) -> int:
        return len(self.pairs)

    def calls(
        self, stage: str, inputs: Sequence[TensorSpec], pairs: Sequence[int] | None = None
    ) -> Iterator[Arrays]:
        """The inputs of every recorded run of a stage, in memory one at a time.

        Args:
            stage: name. inputs: of that stage. pairs: numbers of the pairs, None for all.
        """
        kept = {name: np.load(self._path(name), mmap_mode="r") for name in self._tensors}
        chosen = range(len(self.pairs)) if pairs is None else pairs
        if stage == "deform":
            for i in chosen:
                yield {
                    spec.name: np.array(kept[spec.name.rpartition("_")[0]][2 * i + int(spec.name[-1])])[None]
                    for spec in inputs
                }
            return
        for i in (frame for pair in chosen for frame in (2 * pair, 2 * pair + 1)):
            yield {spec.name: np.array(kept[_key(stage, spec.name)][i])[None] for spec in inputs}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def record(
    bundle: Bundle,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    engine: str = "onnxruntime",
    progress: bool = False,
) -> Recording:
    """Record the inputs of every stage for the key frames of `pairs`.

    Args:
        bundle: its fp32 files run. pairs: in the order of `videos.choose`.
        folder: of the recording; one that is there already is completed, or started again where it is of
            other pairs or another bundle.
        engine: what runs the stages.

    Raises:
        EngineError, VideoError: running or decoding fails; what is recorded until then is kept.
        InputError: no room on the disk.
        OutputError: the disk refuses.
    """
    tensors = _tensors_of(bundle)
    recording = Recording(folder, tensors, pairs, _key_of(bundle, pairs, engine))
    done = _prepare(recording)
    if done == len(pairs):
        return recording
    try:
        opened, recorders = _stream(bundle, engine)
        arrays = {name: np.load(recording._path(name), mmap_mode="r+") for name in tensors}
        with (
            tqdm(total=len(pairs), initial=done, disable=not progress, desc="record", unit="pair") as bar,
            opened as stream,
        ):
            for i, (_, images, seconds) in enumerate(read_pairs(pairs[done:]), start=done):
                stream.reset()
                for image, time in zip(images, (0.0, seconds), strict=True):
                    stream.push(image, time)
                _keep(recorders, arrays, 2 * i)
                for array in arrays.values():
                    array.flush()
                write_bytes(folder / _DONE, str(i + 1).encode())
                bar.update(1)
    except OSError as error:
        raise output_error(folder, error) from error
    return recording


def _stream(bundle: Bundle, engine: str) -> tuple[Stream, dict[str, Recorder]]:
    """A stream of all stages but `deform`, whose inputs the others make, and its recorders."""
    files = {
        stage: select_variant(bundle, stage, engine, "fp32")
        for stage in bundle.stage_names
        if stage != "deform"
    }
    recorders = {stage: Recorder(opened) for stage, opened in file_engines(files, engine).items()}
    deform = bundle.variants("deform")[0]
    return Stream(bundle, {**recorders, "deform": _Idle(deform.inputs, deform.outputs)}), recorders


def _keep(recorders: Mapping[str, Recorder], arrays: Mapping[str, np.ndarray], row: int) -> None:
    """Move what the two pushes recorded into rows `row` and `row + 1`."""
    for stage, recorder in recorders.items():
        for i, (inputs, outputs) in enumerate(recorder.calls):
            for name, value in inputs.items():
                arrays[_key(stage, name)][row + i] = value[0]
            for name in outputs.keys() & arrays.keys():
                arrays[name][row + i] = outputs[name][0]
        recorder.calls.clear()


def _key(stage: str, name: str) -> str:
    """Name of a recorded input: `rgb` is of another size in `depth` and `condition`."""
    return f"{stage}.{name}"


def _tensors_of(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """Name -> shape per key frame of everything recorded."""
    found: dict[str, tuple[int, ...]] = {}
    for stage in bundle.stage_names:
        variant = bundle.variants(stage)[0]
        if stage == "deform":
            for spec in variant.inputs:
                found[spec.name.rpartition("_")[0]] = spec.shape[1:]
        else:
            found |= {_key(stage, spec.name): spec.shape[1:] for spec in variant.inputs}
    return found


def _key_of(bundle: Bundle, pairs: Sequence[Pair], engine: str) -> str:
    """What a recording depends on."""
    videos = {pair.video: _stamp(Path(pair.video)) for pair in pairs}
    files = {s: select_variant(bundle, s, engine, "fp32").sha256 for s in bundle.stage_names}
    content: Any = [files, engine, videos, [asdict(pair) for pair in pairs]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _prepare(recording: Recording) -> int:
    """Make the folder ready; returns how many pairs it holds already."""
    folder = recording.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder / _PLAN
        if plan.is_file() and json.loads(plan.read_text()).get("key") == recording.key:
            done = folder / _DONE
            return int(done.read_text()) if done.is_file() else 0
        strangers = {p.name for p in folder.iterdir()} - {_PLAN, _DONE}
        if any(not name.endswith(".npy") for name in strangers):
            raise OutputError(f"{folder} holds other files.", "Give an empty folder: --work.")
        for path in folder.iterdir():
            path.unlink()
        frames = 2 * len(recording.pairs)
        needed = sum(4 * frames * int(np.prod(shape)) for shape in recording._tensors.values())
        free = shutil.disk_usage(folder).free
        if needed > 0.95 * free:
            raise InputError(
                f"{len(recording.pairs)} samples take {needed / 1e9:.1f} GB in {folder}; "
                f"{free / 1e9:.1f} GB are free.",
                "Use fewer --samples, or a folder on another disk: --work.",
            )
        for name, shape in recording._tensors.items():
            np.lib.format.open_memmap(
                recording._path(name), mode="w+", dtype=np.float32, shape=(frames, *shape)
            )
        write_bytes(plan, json.dumps({"key": recording.key, "pairs": len(recording.pairs)}).encode())
    except (OSError, ValueError) as error:
        raise output_error(folder, error) from error
    return 0
