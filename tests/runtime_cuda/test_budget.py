"""Memory counted without a device, against what the scene really asks a device for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice

from streamsplat_edge import cli
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.cuda.budget import budget
from streamsplat_edge.runtime.cuda.scene import CudaScene
from streamsplat_edge.runtime.errors import InputError


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build_fake_bundle(tmp_path / "fake.bundle", depth_stage=True, condition_stage=True)


def test_counts_what_the_scene_allocates(
    bundle: Bundle, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.mapped = True  # as on all boards
    asked = {"zeros": 0, "pinned": 0}
    original = {name: getattr(device, name) for name in asked}
    for name in asked:

        def counted(shape: tuple[int, ...], dtype: object, name: str = name) -> np.ndarray:
            array: np.ndarray = original[name](shape, dtype)
            asked[name] += array.nbytes
            return array

        monkeypatch.setattr(device, name, counted)
    inputs = {s: bundle.variants(s)[0].inputs[0].shape for s in ("depth", "condition")}
    CudaScene(device, bundle.model, inputs, bundle.variants("condition")[0].outputs[0].shape)
    need = budget(bundle)
    assert (need.scene, need.pinned) == (asked["zeros"], asked["pinned"])
    assert need.scene > need.pinned > 0
    files = {s: bundle.variants(s)[0].path.stat().st_size for s in bundle.stage_names}
    assert need.weights == files and need.total == need.scene + need.pinned + sum(files.values())


def test_info_says_it(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    need = budget(bundle)
    assert cli.main(["info", str(bundle.path), "--device", "orin-nx-16"]) == 0
    assert f"memory      {need.total / 2**20:.1f} MiB of 16 GiB on orin-nx-16" in capsys.readouterr().out
    assert cli.main(["info", str(bundle.path), "--device", "orin-nx-16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["memory"]["scene"] == need.scene and report["memory"]["device"] == "orin-nx-16"
    assert cli.main(["info", str(bundle.path), "--device", "toaster"]) == 2
    assert "no board 'toaster'" in (said := capsys.readouterr().err) and "orin-nano-8" in said
    assert cli.main(["info", str(bundle.path)]) == 0
    assert "memory" not in capsys.readouterr().out


def test_a_device_that_counts_runs_nothing(bundle: Bundle) -> None:
    from streamsplat_edge.runtime.cuda.budget import CountingDevice

    device = CountingDevice()
    for start in (
        lambda: device.launch("k", (1, 1, 1)),
        lambda: device.copy(0, 0),
        lambda: device.record(),
        lambda: device.capture(lambda: None),
        lambda: device.milliseconds(lambda: None),
    ):
        with pytest.raises(InputError, match="only counts"):
            start()
