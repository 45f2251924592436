"""A GPU that is full: the error says what the bundle needs, what is free, and which presets would fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.runtime import stream
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.cuda.budget import budget, explained, preset_budget
from streamsplat_edge.runtime.cuda.presets import PRESETS
from streamsplat_edge.runtime.engines import memory, onnxruntime
from streamsplat_edge.runtime.errors import DeviceMemoryError, EngineError

MIB = 1 << 20


class Full(OnCpuDevice):
    """Refuses what goes beyond so many bytes, in the words of `CupyDevice`."""

    room: float = float("inf")

    def _allocated(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        self.room -= int(np.prod(shape)) * dtype.itemsize
        if self.room < 0:
            raise DeviceMemoryError(
                "Out of memory on Test GPU while allocating: 1 of 8 MiB are free.", "Close.", 400 * MIB
            )
        return super()._allocated(shape, dtype)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build_fake_bundle(tmp_path / "fake.bundle")


@pytest.fixture
def full(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Full:
    device = Full(kernels)
    monkeypatch.setattr(onnxruntime, "_provider", lambda *_: "CPUExecutionProvider")
    monkeypatch.setattr(stream, "_open_device", lambda: device)
    return device


def needs_of(text: str) -> dict[str, int]:
    """Presets and the MiB that a text says they need."""
    return {name: int(mib) for name, mib in re.findall(r"(tiny|small|base) \((\d+) MiB\)", text)}


def test_a_full_gpu_at_the_start(
    bundle: Bundle, full: Full, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need = budget(bundle)
    full.room = need.scene // 2
    clip = sample_clip(tmp_path / "clip.mp4", 5)
    out = tmp_path / "o.mp4"
    command = ("run", clip, "--bundle", bundle.path, "-o", out, "--device", "cuda", "--quiet")
    assert cli.main([*map(str, command)]) == 2
    said = capsys.readouterr().err
    assert "error: Out of memory on Test GPU while allocating: 1 of 8 MiB are free. A stream of " in said
    assert f"{bundle.name} needs at least {need.total / MIB:.0f} MiB: Gaussians and images " in said
    hint = said[said.index("hint: Close.") :]
    fits, not_ = hint.split("would not:")
    assert "would fit into the 400 MiB there: tiny (" in fits and "base (" in not_
    assert not out.exists()


def test_a_full_gpu_for_a_second_stream_and_in_a_push(bundle: Bundle, full: Full) -> None:
    with stream.open_stream(bundle, device="cuda", threads=1) as opened:
        full.room = 10
        with pytest.raises(DeviceMemoryError, match=r"needs at least .*would fit into the 400 MiB there"):
            opened.fork()
        image = np.zeros((16, 32, 3), np.uint8)
        opened.push(image, 0.0)  # nothing is allocated any more

        def refuse(*_: Any) -> None:
            raise DeviceMemoryError("Full.", "", None)

        opened.stages.engines["encode"].run = refuse  # type: ignore[method-assign]
        with pytest.raises(DeviceMemoryError, match=r"^Full\. A stream of .*Presets need at least: tiny \("):
            opened.push(image, 1.0)
        assert opened.interval == (0.0, 0.0), "the stream is as it was"


def test_what_fits_is_computed(bundle: Bundle) -> None:
    needs = {name: preset_budget(preset).total for name, preset in PRESETS.items()}
    assert needs["tiny"] < needs["small"] < needs["base"]
    for available in (0, *needs.values(), *(n - 1 for n in needs.values())):
        hint = explained(DeviceMemoryError("Full.", "", available), bundle).hint
        fit, _, others = hint.partition("would not:")
        assert set(needs_of(fit)) == {name for name, need in needs.items() if need <= available}
        assert set(needs_of(fit)) | set(needs_of(others)) == set(needs)
        assert needs_of(hint) == {name: round(need / MIB) for name, need in needs.items()}
    assert "no preset" in explained(DeviceMemoryError("Full.", "", 0), bundle).hint


def test_engines_that_run_out_of_memory(
    bundle: Bundle, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = driver.DeviceInfo("Test GPU", "8.7", 300 * MIB)
    monkeypatch.setattr(driver, "cuda_device", lambda index: gpu)
    monkeypatch.setattr(onnxruntime, "_provider", lambda *_: "CPUExecutionProvider")
    variant = bundle.variants("encode")[0]
    words = "BFCArena: Failed to allocate memory for requested buffer of size 1048576"

    class Session:
        def run_with_iobinding(self, *_: Any) -> None:
            raise RuntimeError(words)

    with onnxruntime.OnnxRuntimeEngine(variant, device="cpu", memory=device) as engine:
        inputs = {s.name: device.zeros(s.shape, s.dtype) for s in engine.inputs}
        outputs = {s.name: device.zeros(s.shape, s.dtype) for s in engine.outputs}
        engine.run(inputs, outputs)
        monkeypatch.setattr(engine, "_session", Session())
        with pytest.raises(DeviceMemoryError, match=r"stage `encode`: BFCArena.*300 MiB are free") as full:
            engine.run(inputs, outputs)
        assert full.value.available == 300 * MIB
        words = "an operator is missing"
        with pytest.raises(EngineError, match="operator is missing") as other:
            engine.run(inputs, outputs)
        assert not isinstance(other.value, DeviceMemoryError)


def test_words_that_mean_memory(monkeypatch: pytest.MonkeyPatch, device: OnCpuDevice) -> None:
    monkeypatch.setattr(driver, "cuda_device", lambda index: None)
    for words in ("CUDA failure 2: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc"):
        error = memory.failure(words, "", device)
        assert isinstance(error, DeviceMemoryError) and "cannot be read" in str(error)
        assert not isinstance(memory.failure(words, "", None), DeviceMemoryError), "the host's is another's"
