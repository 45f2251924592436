"""The ways to run the chain that are measured, each with the same pictures and times."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from ...export.build import build_bundle
from ...export.export import runtime_config
from ...export.load import LoadedModel
from ...export.plan_builder import BuildOptions
from ...runtime import engines
from ...runtime.bundle import Bundle
from ...runtime.cuda.device import Device
from ...runtime.cuda.scene import CudaScene
from ...runtime.engines import Engine
from ...runtime.errors import EngineError
from ...runtime.stream import Stream, open_stream, shapes
from .eager import EagerLoop
from .models import at_precision, write_files
from .torch_engine import TorchOnDevice, torch_device


class Runner(Protocol):
    """A chain that is ready."""

    description: Mapping[str, str]

    def key_frame(self, picture: np.ndarray, time: float, times: Sequence[float]) -> list[np.ndarray]:
        """Push a picture and render at `times`; returns when the images are on the host."""
        ...

    def reset(self) -> None:
        """Begin a stream anew."""
        ...

    def close(self) -> None: ...


class Bench:
    """What the methods share: the model, the device, and files that are written when first needed.

    Args:
        device: where the runtime computes; `open_device` says where not.
        work: folder for files and plans; None is a temporary one.
    """

    def __init__(self, loaded: LoadedModel, device: Callable[[], Device], work: Path | None = None) -> None:
        self.loaded, self._open = loaded, device
        self._stack = ExitStack()
        self._work = work

    @cached_property
    def device(self) -> Device:
        return self._open()

    @cached_property
    def files(self) -> Bundle:
        """All stages in fp16."""
        folder = self._work
        if folder is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        found = folder / f"{self.loaded.config.name}.bundle"
        if found.exists():
            return Bundle.load(found)
        folder.mkdir(parents=True, exist_ok=True)
        return write_files(self.loaded, "fp16", folder)

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        opener: gives a chain that is ready, or raises StreamSplatError, whose message is the reason.
        ours: our chain, as against the published script's way.
    """

    name: str
    title: str
    opener: Callable[[Bench], Runner]
    ours: bool = True


class _Eager:
    def __init__(self, bench: Bench, precision: str) -> None:
        import torch

        device = torch_device(bench.device)
        if device != "cpu" and not torch.cuda.is_available():
            raise EngineError(f"PyTorch {torch.__version__} sees no CUDA device.", "Install its CUDA build.")
        self._loop = EagerLoop(bench.loaded, precision, device)
        self.description: Mapping[str, str] = {
            "all": f"PyTorch {torch.__version__} {precision} eager, {device}"
        }
        self.key_frame, self.reset = self._loop.key_frame, self._loop.reset

    def close(self) -> None:
        pass


class _Ours:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.description: Mapping[str, str] = stream.description

    def key_frame(self, picture: np.ndarray, time: float, times: Sequence[float]) -> list[np.ndarray]:
        self._stream.push(picture, time)
        return [frame.rgb for frame in self._stream.render_many(times, depth=False)]

    def reset(self) -> None:
        self.description = self._stream.description  # by now it says what are graphs
        self._stream.reset()

    def close(self) -> None:
        self._stream.close()


def _torch(compiled: bool) -> Callable[[Bench], Runner]:
    def opened(bench: Bench) -> Runner:
        device, loaded = bench.device, bench.loaded
        stages: dict[str, Engine] = {
            graph.name: TorchOnDevice(
                at_precision(graph, "fp16", torch_device(device)), device, "fp16", compiled=compiled
            )
            for graph in loaded.graphs()
        }
        model = runtime_config(loaded.config)
        bundle: Any = SimpleNamespace(model=model, name=model.preset)  # a stream asks for no more of one
        stream = Stream(bundle, stages, scene=CudaScene(device, model, *shapes(stages)))
        stream.warm_up()
        return _Ours(stream)

    return opened


def _files(engine: str) -> Callable[[Bench], Runner]:
    def opened(bench: Bench) -> Runner:
        engines.require(engine, "cuda")  # before anything is exported
        bundle = bench.files
        if engine != "onnxruntime":
            build_bundle(bundle.path, BuildOptions(engine, "fp16"))
        return _Ours(open_stream(bundle.path, engine=engine, device="cuda", precision="fp16"))

    return opened


METHODS = (
    Method("eager-bf16", "published way, eager, bf16", lambda bench: _Eager(bench, "bf16"), ours=False),
    Method("tensorrt", "ours, TensorRT, fp16", _files("tensorrt")),
    Method("tensorrt-rtx", "ours, TensorRT-RTX, fp16", _files("tensorrt_rtx")),
    Method("onnxruntime", "ours, ONNX Runtime CUDA, fp16", _files("onnxruntime")),
    Method("torch-compiled", "ours, torch.compile, fp16", _torch(True)),
    Method("torch", "ours, torch eager, fp16", _torch(False)),
)
BY_NAME = {method.name: method for method in METHODS}
