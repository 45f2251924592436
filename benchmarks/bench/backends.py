"""The backends that are compared. Each opens a stream of the bundle, or says why it cannot.

Heavy packages are imported when a backend is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...extras import require
from ...runtime.bundle import Bundle, StageVariant, sha256_of
from ...runtime.engines import Engine
from ...runtime.errors import EngineError, InputError
from ...runtime.stream import Stream, open_stream
from .published import PublishedStream


@dataclass(frozen=True)
class Request:
    """What is to be measured, the same for every backend. Travels to the process of each.

    Attributes:
        bundle, clip: paths. frames: use the first so many; None is all. gap: None is the bundle's.
        device: where PyTorch runs, `cpu` or `cuda`; the other backends have theirs in their name.
        threads: 0 is all cores. warm_up: frames before the clock. paced: frames per second, or None.
        checkpoint, preset, dino, depth: weights for PyTorch, as for `export`. lpips: weights for LPIPS.
    """

    bundle: Path
    clip: str
    frames: int | None = None
    gap: int | None = None
    device: str = "cpu"
    threads: int = 0
    warm_up: int = 16
    paced: float | None = None
    checkpoint: Path | None = None
    preset: str = ""
    dino: Path | None = None
    depth: Path | None = None
    lpips: Path | None = None


@dataclass(frozen=True)
class Backend:
    """One way to run the model.

    Attributes:
        name, title: for options and for people. devices: where it can run.
        packages: distributions whose versions belong to its results.
    """

    name: str
    title: str
    devices: tuple[str, ...]
    packages: tuple[str, ...]
    opener: Callable[[Bundle, Request], Stream]

    def open(self, bundle: Bundle, request: Request) -> Stream:
        """A stream that is ready to run.

        Raises:
            StreamSplatError: it cannot run here, or not this bundle; the message is the reason.
        """
        return self.opener(bundle, request)


def _engine(engine: str, device: str, precision: str | None = None) -> Callable[[Bundle, Request], Stream]:
    def opened(bundle: Bundle, request: Request) -> Stream:
        return open_stream(bundle, engine=engine, device=device, threads=request.threads, precision=precision)

    return opened


def _quantised(bundle: Bundle, request: Request) -> Stream:
    int8 = _PreferInt8(bundle)
    if not any(int8.quantised(stage) for stage in bundle.stage_names):
        raise EngineError(
            f"{bundle.path} has no int8 files for ONNX Runtime.", "Quantise it: streamsplat-edge calibrate."
        )
    return open_stream(int8, engine="onnxruntime", device="cpu", threads=request.threads)


class _PreferInt8(Bundle):
    """A bundle whose stages give their int8 file first, on whatever CPU; calibration leaves some stages as
    they are."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.path, bundle._manifest)

    def variants(self, stage: str) -> tuple[StageVariant, ...]:
        return (*self.quantised(stage), *super().variants(stage))

    def quantised(self, stage: str) -> tuple[StageVariant, ...]:
        return tuple(
            replace(variant, faster_on=None)
            for variant in super().variants(stage)
            if variant.quantised and "onnxruntime" in variant.engines
        )


def _torch(compiled: bool) -> Callable[[Bundle, Request], Stream]:
    def opened(bundle: Bundle, request: Request) -> Stream:
        checkpoint = find_checkpoint(bundle, request.checkpoint)
        require("export", "torch", "safetensors", "onnx")
        import torch

        from ...export.load import Source, load
        from ...export.stage_engines import module_engines

        if request.device == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"PyTorch {torch.__version__} sees no CUDA device.", "Use --device cpu.")
        if request.threads:
            torch.set_num_threads(request.threads)
        model = bundle.model
        source = Source(
            checkpoint, request.preset, request.dino, request.depth, size=(model.height, model.width)
        )
        stages: Mapping[str, Engine] = module_engines(
            bundle, load(source), device=request.device, compiled=compiled
        )
        kind = Stream if compiled else PublishedStream
        stream = kind(bundle, stages, threads=request.threads)
        stream.warm_up()
        return stream

    return opened


def find_checkpoint(bundle: Bundle, given: Path | None) -> Path:
    """The weights that the bundle was exported from: what was given, or the checkout's own.

    Raises:
        InputError: there is none, or it is another one (its SHA-256 is compared with the bundle's).
    """
    stated = bundle.provenance.get("checkpoint_sha256")
    # Only the last part of the name, which the bundle's author chose.
    own = Path(__file__).resolve().parents[2] / "training" / "weights" / Path(bundle.model.preset).name
    checkpoint = own / "model.safetensors" if given is None else given
    if not checkpoint.is_file():
        reason = "no weights for PyTorch were given" if given is None else f"there is no {checkpoint}"
        raise InputError(
            f"{reason}, and a bundle holds none.", "Give what it was exported from: --checkpoint FILE."
        )
    if (stated is not None and sha256_of(checkpoint) != stated) or (stated is None and given is None):
        raise InputError(
            f"{checkpoint} is not what {bundle.path} was exported from.",
            "Give that: --checkpoint FILE.",
        )
    return checkpoint


BACKENDS = (
    Backend("torch-eager", "PyTorch eager, published schedule", ("cpu", "cuda"), ("torch",), _torch(False)),
    Backend("torch-compiled", "PyTorch compiled", ("cpu", "cuda"), ("torch",), _torch(True)),
    Backend(
        "onnxruntime",
        "ONNX Runtime CPU fp32",
        ("cpu",),
        ("onnxruntime",),
        _engine("onnxruntime", "cpu", "fp32"),
    ),
    Backend("onnxruntime-int8", "ONNX Runtime CPU int8", ("cpu",), ("onnxruntime",), _quantised),
    Backend("openvino", "OpenVINO CPU", ("cpu",), ("openvino",), _engine("openvino", "cpu")),
    Backend(
        "onnxruntime-cuda",
        "ONNX Runtime CUDA",
        ("cuda",),
        ("onnxruntime", "cupy-cuda13x"),
        _engine("onnxruntime", "cuda"),
    ),
    Backend("tensorrt", "TensorRT", ("cuda",), ("tensorrt", "cupy-cuda13x"), _engine("tensorrt", "cuda")),
    Backend(
        "tensorrt-rtx",
        "TensorRT-RTX",
        ("cuda",),
        ("tensorrt-rtx-cu13", "cupy-cuda13x"),
        _engine("tensorrt_rtx", "cuda"),
    ),
)
BY_NAME = {backend.name: backend for backend in BACKENDS}
