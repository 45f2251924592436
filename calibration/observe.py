"""What the layers of a stage read in a recording, and the ranges that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ..runtime.bundle import StageVariant
from . import activations
from .activations import Activation
from .forms import Clips
from .layers import Layer, load_graph
from .ranges import FORMATS, clip_of
from .recording import Recording

Seen = Mapping[str, Activation]


def observe(
    source: StageVariant, layers: Sequence[Layer], recording: Recording, *, progress: bool = False
) -> dict[str, Activation]:
    """Statistics of every tensor that `layers` of a stage read in the whole recording.

    Args:
        source: fp32 file of the stage. layers: of it.

    Raises:
        InputError: NaN or infinity, naming the layer that reads it.
    """
    (found,) = observe_parts(source, layers, recording, [range(len(recording))], progress=progress)
    return found


def observe_parts(
    source: StageVariant,
    layers: Sequence[Layer],
    recording: Recording,
    parts: Sequence[Sequence[int]],
    *,
    progress: bool = False,
) -> list[dict[str, Activation]]:
    """The same for each of several parts of the recording, given as numbers of pairs."""

    def calls(part: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        return recording.calls(source.stage, source.inputs, part)

    total = sum(map(len, parts)) * (1 if source.stage == "deform" else 2)
    readers: list[Callable[[], Iterable[Mapping[str, np.ndarray]]]] = [partial(calls, p) for p in parts]
    return activations.collect_parts(
        load_graph(source.path), layers, readers, stage=source.stage, progress=progress, total=total
    )


def clips_of(
    seen: Seen, layers: Sequence[Layer], method: str, precision: str, *, percentile: float = 99.99
) -> Clips:
    """Per node the clips of what it reads; 0 where it read only zeros.

    Args:
        seen: statistics of the tensors that `layers` read.
        method, percentile: see `ranges`. precision: `int8` or `fp8`.
    """
    form = FORMATS[precision]
    names = dict.fromkeys(name for layer in layers for name in layer.activations)
    clips = {name: clip_of(seen[name].histogram, method, form, percentile=percentile) for name in names}
    return {layer.node: tuple(clips[name] for name in layer.activations) for layer in layers}


def silent(clips: Mapping[str, Clips]) -> list[tuple[str, str]]:
    """(stage, node) of layers that read nothing but zeros, for which there is no range."""
    return [
        (stage, node) for stage, found in clips.items() for node, values in found.items() if not all(values)
    ]
