"""A bundle's stages as engines, to be compared: of its files, of the model in PyTorch, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..runtime import engines
from ..runtime.bundle import Bundle, StageVariant
from ..runtime.engines import BoundEngine, Engine, ForwardingEngine
from ..runtime.stream import Stream
from .batch import Arrays

if TYPE_CHECKING:
    from .load import LoadedModel
    from .stages import StageGraph

_TIMES = (0.0, 0.5, 1.0)  # of each pair, rendered


class ModuleEngine(BoundEngine):
    """A stage in PyTorch behind the engine interface, for reference.

    Args:
        device: of PyTorch; arrays are copied there and back.
        compiled: through `torch.compile`, when it first runs.
    """

    def __init__(
        self, variant: StageVariant, graph: StageGraph, *, device: str = "cpu", compiled: bool = False
    ) -> None:
        super().__init__(variant)
        import torch

        self._graph, self._device = graph, device
        module = graph.module.to(device)
        self._module: Any = torch.compile(module) if compiled else module
        self.precision = "fp32"
        mode = "compiled" if compiled else "eager"
        self.description = f"PyTorch {torch.__version__} fp32 {mode}, {device}"

    def _bind(self, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Callable[[], None]:
        import torch

        names = [spec.name for spec in self.inputs]
        order = [names.index(name) for name in self._graph.inputs]
        targets = {spec.name: array for spec, array in zip(self.outputs, outputs, strict=True)}

        def run() -> None:
            with torch.no_grad():
                results = self._module(*(torch.from_numpy(inputs[i].copy()).to(self._device) for i in order))
            results = results if isinstance(results, tuple) else (results,)
            for name, value in zip(self._graph.outputs, results, strict=True):
                np.copyto(targets[name], value.cpu().numpy())

        return run


class Recorder(ForwardingEngine):
    """Keeps copies of what goes into another engine and comes out."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.calls: list[tuple[Arrays, Arrays]] = []

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        kept = {name: value.copy() for name, value in inputs.items()}
        self.inner.run(inputs, outputs)
        self.calls.append((kept, {name: value.copy() for name, value in outputs.items()}))


def module_engines(
    bundle: Bundle, loaded: LoadedModel, *, device: str = "cpu", compiled: bool = False
) -> dict[str, Engine]:
    """The model in PyTorch, as the engines of a stream of this bundle; options as for `ModuleEngine`."""
    graphs = {graph.name: graph for graph in loaded.graphs()}
    return {
        stage: ModuleEngine(bundle.variants(stage)[0], graphs[stage], device=device, compiled=compiled)
        for stage in bundle.stage_names
    }


def files_of(bundle: Bundle, precision: str, engine: str, scratch: Path) -> dict[str, StageVariant]:
    """The stage files of one precision, as `engine` can run them; fp32 or the first of stages that lack it.

    Args:
        bundle, precision, engine: which files, for what. Verification runs files in engines that they are not
            recommended for.
        scratch: folder for the float32 equivalents of bf16 files, which ONNX Runtime needs.
    """
    files: dict[str, StageVariant] = {}
    for stage in bundle.stage_names:
        variants = bundle.variants(stage)
        variant = next(
            (v for wanted in (precision, "fp32") for v in variants if v.precision == wanted), variants[0]
        )
        if variant.precision == "bf16" and engine == "onnxruntime":
            from .emulate import write_emulation

            target = scratch / f"{stage}.onnx"
            write_emulation(variant.path, target)
            variant = replace(variant, path=target, weights=None)
        files[stage] = replace(variant, engines=(engine,))
    return files


def file_engines(files: Mapping[str, StageVariant], engine: str, *, device: str = "cpu") -> dict[str, Engine]:
    """The files in an engine.

    Raises:
        EngineError: the engine cannot run them here.
    """
    loaded: dict[str, Engine] = {}
    try:
        for stage, variant in files.items():
            loaded[stage] = engines.create(engine, variant, device=device, precision=variant.precision)
    except BaseException:
        for opened in loaded.values():
            opened.close()
        raise
    return loaded


def run_stream(
    bundle: Bundle, stages: Mapping[str, Engine], frames: Sequence[np.ndarray], bar: tqdm[Any] | None = None
) -> list[np.ndarray]:
    """Rendered float frames [H, W, 3] of every pair, at `_TIMES`; a step of `bar` for every key frame."""
    rendered = []
    with Stream(bundle, stages) as stream:
        for i, image in enumerate(frames):
            stream.push(image, float(i))
            if i:
                for t in _TIMES:
                    stream.render(i - 1 + t, copy=False)
                    rendered.append(stream.buffers.rgb.copy())
            if bar is not None:
                bar.update(1)
    return rendered
