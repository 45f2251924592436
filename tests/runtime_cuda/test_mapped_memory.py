"""A stream where GPU and CPU have the same memory: nothing large is copied, and nothing written too soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice
from test_cuda_stream import check_same, on_device, picture

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import EngineError
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import open_stream

TIMES = [0.0, 0.3, 1.0]


@pytest.fixture
def mapped(device: OnCpuDevice) -> OnCpuDevice:
    device.mapped = True
    return device


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build_fake_bundle(tmp_path / "fake.bundle", depth_stage=True, condition_stage=True)


def test_equals_the_host_without_copying_images(
    bundle: Bundle, mapped: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    copy = mapped.copy

    def counted(target: np.ndarray, source: np.ndarray) -> None:
        if target.ctypes.data != source.ctypes.data:
            copied.append(target.nbytes)
        copy(target, source)

    monkeypatch.setattr(mapped, "copy", counted)
    with on_device(bundle, mapped) as ours, open_stream(bundle) as theirs:
        for number in range(8):
            for each in (ours, theirs):
                each.push(picture(number), float(number), cut=number == 4)
            interval = ours.interval
            assert interval is not None
            times = [interval[0] + share * (interval[1] - interval[0]) for share in TIMES]
            for a, b in zip(ours.render_many(times), theirs.render_many(times), strict=True):
                side = [each.render(a.timestamp, view=View.swing(0.3, 0.0, 1.0)) for each in (ours, theirs)]
                check_same(*side)
                check_same(a, b)
    small = 512  # states, counts and times
    assert copied and max(copied) <= small < bundle.model.height * bundle.model.width * 3


def test_an_image_is_not_overwritten_while_a_failed_key_frame_may_read_it(
    bundle: Bundle, mapped: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    with on_device(bundle, mapped) as ours:
        for number in range(2):
            ours.push(picture(number), float(number))

        def fails(*_: object) -> None:
            raise EngineError("Broken.")

        with monkeypatch.context() as patch:
            patch.setattr(ours.stages.engines["deform"], "run", fails)
            with pytest.raises(EngineError):
                ours.push(picture(2), 2.0)
        scene: Any = ours.scene
        load = scene._next.load
        monkeypatch.setattr(mapped, "synchronize", lambda: events.append("wait"))
        monkeypatch.setattr(scene._next, "load", lambda image: (events.append("load"), load(image)))
        ours.push(picture(3), 2.0)
        assert events[:2] == ["wait", "load"]
        events.clear()
        monkeypatch.setattr(scene._next, "load", lambda image: events.append("load"))
        ours.push(picture(4), 3.0)
        assert events[0] == "load", "the key frame before the last was waited for"
