"""One backend measured from beginning to end, in a process of its own.

Memory is that of a process: backends that shared one would be charged with each other's, and one that crashes
would take the others' results with it.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from ...commands import report
from ...runtime.bundle import Bundle
from ...runtime.compose import psnr
from ...runtime.errors import StreamSplatError
from ...runtime.pipeline import Pipeline, Rendered
from ...runtime.power import Nvml, PowerMeter, find_rails
from ...runtime.stream import Stream
from ..identity import NOT_MEASURED, state
from ..memory import peak_mib, resident_mib, slope
from ..passes import Clip, Kept, free_running, paced, truths, unsteady
from .backends import BY_NAME, Request
from .throttle import ThrottleWatch

MEASURED, UNAVAILABLE, FAILED, LEFT_OUT = "measured", "not available", "failed", "left out"
_RANDOM_WEIGHTS_DB = 20.0  # key frames of a trained model are far above: it has seen them


def in_own_process(name: str, request: Request) -> dict[str, Any]:
    """`measure_backend` in a fresh process; one that dies is a result, too."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_backend, name, request).result()
        except BrokenProcessPool:
            return _without(name, FAILED, "its process died without a message (crash or lack of memory)")


def measure_backend(name: str, request: Request) -> dict[str, Any]:
    """The results of a backend, ready for JSON; `status` says whether there are any, `reason` why not."""
    backend = BY_NAME[name]
    try:
        bundle, clip = Bundle.load(request.bundle), Clip(request.clip, request.frames)
        start = time.perf_counter()
        stream = backend.open(bundle, request)
    except StreamSplatError as error:
        return _without(name, UNAVAILABLE, str(error))
    except Exception as error:  # engines of others: one that breaks must not end the comparison
        return _without(name, FAILED, _described(error))
    try:
        with stream:
            loaded = time.perf_counter() - start
            results = measure_stream(stream, clip, request)
    except Exception as error:
        return _without(name, FAILED, _described(error))
    return {
        "name": name,
        "title": backend.title,
        "status": MEASURED,
        "software": report.software(*backend.packages),
        "model_load_seconds": loaded,
        **results,
    }


def measure_stream(stream: Stream, clip: Clip, request: Request, nvml: Nvml | None = None) -> dict[str, Any]:
    """Warm-up, one pass as fast as possible, one paced, and the quality of the first."""
    nvml = Nvml() if nvml is None else nvml
    model = stream.model
    warm_up = Pipeline(clip, stream, gap=request.gap, max_frames=request.warm_up)
    start = time.perf_counter()
    for _ in warm_up:
        pass
    warm_seconds = time.perf_counter() - start
    # Written to once, so that keeping the images takes no new memory while it is watched.
    pictures = np.empty((sum(1 for _ in clip), model.height, model.width, 3), np.uint8)
    pictures.fill(0)
    memory: list[list[float]] = []
    device_memory: list[float] = []

    def watch(rendered: Rendered) -> None:
        memory.append([len(memory) + 1, resident_mib()])
        device_memory.extend(mib for gpu in nvml.gpus if (mib := gpu.memory_mib()) is not None)

    before, throttling = [state(), *(gpu.state() for gpu in nvml.gpus)], ThrottleWatch(nvml)
    with PowerMeter(*find_rails(nvml), keep=True) as meter:
        results, kept = free_running(clip, stream, request.gap, pictures=pictures, after=watch)
    reasons = throttling.reasons()
    peak = peak_mib()
    power = meter.result(results["frames"]["total"])
    live: Any = NOT_MEASURED
    if request.paced is not None:
        live = paced(clip, stream, request.gap, request.paced)
    gain = slope(memory)
    values = {
        "stages": stream.description,
        "warm_up_seconds": warm_seconds,
        "state": {"before": before, "after": [state(), *(gpu.state() for gpu in nvml.gpus)]},
        **results,
        "paced": live,
        "memory": {
            "peak_mib": round(peak, 1),
            "of_which_kept_images_mib": round(pictures.nbytes / 2**20, 1),
            "slope": gain if gain else f"{NOT_MEASURED}: fewer than 16 frames",
            "samples_mib": [round(mib, 2) for _, mib in memory],
            "device_peak_mib": max(device_memory) if device_memory else f"{NOT_MEASURED}: {nvml.problem}",
            "definition": "largest resident set of the backend's process; device: in use by all processes",
        },
        "power": power,
        "throttling": reasons,
        **quality(clip, kept, request),
    }
    return values | {"warnings": warnings(values, stream.bundle.provenance)}


def quality(clip: Clip, kept: dict[int, Kept], request: Request) -> dict[str, Any]:
    """PSNR of the kept images, SSIM where its packages are there, LPIPS where its weights were given."""
    decibels = report.Quality()
    others = {"ssim": (report.Tally(), report.Tally()), "lpips": (report.Tally(), report.Tally())}
    problem, meter = "", None
    height, width = next(iter(kept.values())).rgb.shape[:2]
    try:
        from ...training.metrics import SSIM_WINDOW, Meter
        from ...training.perceptual import load_lpips

        if min(height, width) < SSIM_WINDOW:
            problem = f"{NOT_MEASURED}: the images are smaller than the window"
        else:
            meter = Meter(load_lpips(request.lpips) if request.lpips else None)
    except ImportError as error:
        problem = f"{NOT_MEASURED}: {error} (extra [train])"
    for image, truth in truths(clip, kept, height, width):
        decibels.add(psnr(image.rgb, truth), image.is_key)
        scores = meter(truth, {"image": image.rgb})["image"] if meter else {}
        for metric in others.keys() & scores.keys():
            others[metric][0 if image.is_key else 1].add(scores[metric])
    result: dict[str, Any] = {"psnr_db": decibels.summary()}
    for metric, (key, between) in others.items():
        missing = problem or f"{NOT_MEASURED}: no weights were given (--lpips)"
        measured = key.count + between.count > 0
        result[metric] = (
            {"key_frames": key.summary(), "in_between": between.summary()} if measured else missing
        )
    return result


def warnings(values: dict[str, Any], provenance: dict[str, Any]) -> list[str]:
    """What a reader must know before using the numbers."""
    found = []
    if names := unsteady(values["latency_ms"]):
        found.append(f"not steady, coefficient of variation above 2.5 %: {', '.join(names)}")
    if values["throttling"]:
        found.append(f"the machine was held back: {'; '.join(values['throttling'])}")
    key = values["psnr_db"]["key_frames"]["mean"]
    if "checkpoint_sha256" not in provenance:
        found.append(
            "the bundle names no checkpoint, its weights may be random; these give about 9 times the tile "
            "pairs of trained ones"
        )
    elif key is not None and key < _RANDOM_WEIGHTS_DB:
        found.append(f"key frames have {key:.1f} dB, as of random weights or of a model for other pictures")
    return found


def left_out(name: str, reason: str) -> dict[str, Any]:
    """The entry of a backend that was not tried."""
    return _without(name, LEFT_OUT, reason)


def _without(name: str, status: str, reason: str) -> dict[str, Any]:
    return {"name": name, "title": BY_NAME[name].title, "status": status, "reason": reason}


def _described(error: Exception) -> str:
    if isinstance(error, StreamSplatError):
        return str(error)
    traceback.print_exception(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
