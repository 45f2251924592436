"""What quantisation does to rendered frames: pairs of key frames, rendered by the fp32 bundle and by others.

For every pair, pictures, outputs of every fp32 stage and rendered frames are kept on disk. Another set of
stages is then judged by running only what it changes and what depends on that; all else is replayed.
Frames are rendered at the beginning, middle and end of a pair in the camera's view, and in the middle from a
camera that is swung aside: errors of depth are seen nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..export.compare import frame_psnr
from ..export.stage_engines import Recorder, file_engines
from ..runtime.bundle import Bundle
from ..runtime.engines import Engine, ForwardingEngine, select_variant
from ..runtime.errors import InputError
from ..runtime.rasterizer import View
from ..runtime.stream import Stream
from ..runtime.video.output import output_error
from .videos import Pair, read_pairs

_TIMES = (0.0, 0.5, 1.0)  # of a pair
# The novel view of `run --layout side-by-side`, standing still.
_SWING = View.swing(yaw=math.radians(6.0), pitch=math.radians(2.0), pivot_depth=1.0)
_DEPENDANTS = {"depth": ("encode", "deform"), "condition": ("deform",), "encode": ("deform",), "deform": ()}


@dataclass(frozen=True)
class Score:
    """PSNR in dB of rendered frames against fp32; infinite where equal.

    Attributes:
        worst, mean: of the frames in the camera's view; the mean is that of their squared errors together.
        novel: the worst of the frames in the swung view.
    """

    worst: float
    mean: float
    novel: float

    def to_json(self) -> dict[str, float]:
        """Infinite values as 999, since JSON has no infinity."""
        return {name: round(min(value, 999.0), 3) for name, value in asdict(self).items()}


class _Switch(ForwardingEngine):
    """A stage of the judge's stream: replays what the fp32 stage gave, or runs an engine."""

    def __init__(self, reference: Engine) -> None:
        super().__init__(reference)
        self.engine: Engine | None = None  # None replays
        self.replay: list[dict[str, np.ndarray]] = []

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        if self.engine is not None:
            self.engine.run(inputs, outputs)
            return
        for name, value in self.replay.pop(0).items():
            np.copyto(outputs[name], value)


class Judge:
    """Renders pairs with other stages and compares; see the module's docstring. Close it, or use `with`.

    Attributes:
        key: stands for the pairs and the fp32 files.

    Args:
        bundle: its fp32 files are the truth.
        pairs: to measure on.
        folder: for what is kept; a judge of the same pairs and bundle finds it done.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no pairs. VideoError, EngineError: decoding or running fails.
        OutputError: the disk refuses.
    """

    def __init__(
        self, bundle: Bundle, pairs: Sequence[Pair], folder: Path, *, progress: bool = False
    ) -> None:
        if not pairs:
            raise InputError("There are no frames to measure on.", "Give videos with --gate-data.")
        files = {s: select_variant(bundle, s, "onnxruntime", "fp32") for s in bundle.stage_names}
        self._switches = {s: _Switch(e) for s, e in file_engines(files, "onnxruntime").items()}
        self._stream = Stream(bundle, self._switches)
        content = [[asdict(p) for p in pairs], {s: f.sha256 for s, f in files.items()}]
        self.key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        self._files = [folder / f"{self.key}-{i:04d}.npz" for i in range(len(pairs))]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._prepare(pairs, progress)
        except OSError as error:
            self.close()
            raise output_error(folder, error) from error

    def score(self, stages: Mapping[str, Engine]) -> Score:
        """Render all pairs with `stages` in place of the fp32 ones, and compare."""
        changed = set(stages)
        for stage in stages:
            changed |= set(_DEPENDANTS[stage]) & self._switches.keys()
        canonical: list[float] = []
        novel: list[float] = []
        for file in self._files:
            kept = dict(np.load(file))
            for stage, switch in self._switches.items():
                switch.engine = stages.get(stage, switch.inner) if stage in changed else None
                switch.replay = _outputs(kept, stage)
            got = self._render(kept["first"], kept["last"], float(kept["seconds"]))
            psnr = [frame_psnr(a, b) for a, b in zip(got, kept["truth"], strict=True)]
            canonical += psnr[:-1]
            novel.append(psnr[-1])
        errors = [0.0 if math.isinf(p) else 10 ** (-p / 10) for p in canonical]
        mean = float(np.mean(errors))
        return Score(min(canonical), -10 * math.log10(mean) if mean else math.inf, min(novel))

    def close(self) -> None:
        """Release the fp32 stages."""
        self._stream.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _render(self, first: np.ndarray, last: np.ndarray, seconds: float) -> list[np.ndarray]:
        stream = self._stream
        stream.reset()
        stream.push(first, 0.0)
        stream.push(last, seconds)
        frames = []
        for t, view in (*((t, None) for t in _TIMES), (0.5, _SWING)):
            stream.render(t * seconds, view=view, copy=False)
            frames.append(stream.buffers.rgb.copy())
        return frames

    def _prepare(self, pairs: Sequence[Pair], progress: bool) -> None:
        missing = [i for i, file in enumerate(self._files) if not file.is_file()]
        recorders = {}
        for stage, switch in self._switches.items():
            switch.engine = recorders[stage] = Recorder(switch.inner)
        wanted = [pairs[i] for i in missing]
        bar = tqdm(total=len(missing), disable=not progress or not missing, desc="reference", unit="pair")
        with bar:
            for i, (_, (first, last), seconds) in zip(missing, read_pairs(wanted), strict=True):
                frames = self._render(first, last, seconds)
                kept: dict[str, Any] = {"first": first, "last": last, "seconds": seconds}
                kept["truth"] = np.stack(frames)
                for stage, recorder in recorders.items():
                    for call, (_, outputs) in enumerate(recorder.calls):
                        kept |= {f"{stage}/{call}/{name}": value for name, value in outputs.items()}
                    recorder.calls.clear()
                draft = self._files[i].with_suffix(".tmp.npz")
                np.savez(draft, **kept)
                draft.replace(self._files[i])
                bar.update(1)


def _outputs(kept: Mapping[str, np.ndarray], stage: str) -> list[dict[str, np.ndarray]]:
    """What a stage gave, call by call."""
    calls: dict[int, dict[str, np.ndarray]] = {}
    for key, value in kept.items():
        parts = key.split("/")
        if parts[0] == stage:
            calls.setdefault(int(parts[1]), {})[parts[2]] = value
    return [calls[i] for i in sorted(calls)]
