"""Where a TensorRT plan may run: on what it was built for, and as far as it was built to reach."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle

from streamsplat_edge.runtime.bundle import Bundle, StageVariant
from streamsplat_edge.runtime.bundle_writing import store
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.engines.plan_choice import TRUST_VARIABLE, choose_plan, host_code_allowed
from streamsplat_edge.runtime.errors import EngineError

GPU = driver.DeviceInfo("RTX", "8.6", 1 << 30)
ADA = driver.DeviceInfo("Ada", "8.9", 1 << 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_fake_bundle(tmp_path / "fake.bundle").path


def entered(folder: Path, **changes: Any) -> StageVariant:
    """The stage `encode` with a plan of TensorRT 10.3.0 for the GPU "RTX"."""
    bundle = Bundle.load(folder)
    entry = {
        "stage": "encode", "file": "plans/e.plan", "sha256": hashlib.sha256(b"plan").hexdigest(), "bytes": 4,
        "runtime": "tensorrt", "version": "10.3.0", "device": "RTX", "compute_capability": "8.6",
        "onnx_sha256": bundle.variants("encode")[0].sha256, "settings": {}, **changes,
    }  # fmt: skip
    (folder / "plans").mkdir(exist_ok=True)
    (folder / "plans/e.plan").write_bytes(b"plan")
    return store(folder, {"plans": [entry]}).variants("encode")[0]


@pytest.mark.parametrize(
    ("version", "device", "settings", "reason"),
    [
        ("10.3.0", GPU, {}, ""),
        ("10.13.2.6", GPU, {}, "built with tensorrt 10.3.0, here is 10.13.2.6"),
        ("10.13.2.6", GPU, {"version_compatible": True}, ""),
        ("10.2.9", GPU, {"version_compatible": True}, "built with tensorrt 10.3.0"),
        ("11.0.0", GPU, {"version_compatible": True}, "built with tensorrt 10.3.0"),
        ("10.13.2.6", ADA, {"version_compatible": True}, "built on RTX, here is Ada"),
        ("10.3.0", ADA, {"hardware_compatible": True}, ""),
        ("10.4.0", ADA, {"hardware_compatible": True}, "built with tensorrt 10.3.0"),
        ("10.3.0", replace(ADA, capability="7.5"), {"hardware_compatible": True}, "built on RTX"),
        ("10.3.0", replace(ADA, capability="12.0"), {"hardware_compatible": True}, ""),
        ("10.4.0", ADA, {"hardware_compatible": True, "version_compatible": True}, ""),
        ("10.4.0", ADA, {"hardware_compatible": 1, "version_compatible": "yes"}, "built with"),
    ],
)
def test_what_a_plan_was_widened_to(
    folder: Path, version: str, device: driver.DeviceInfo, settings: dict[str, Any], reason: str
) -> None:
    variant = entered(folder, settings=settings)
    if not reason:
        assert choose_plan(variant, "tensorrt", version, device) == variant.plans[0]
        return
    with pytest.raises(EngineError, match=reason) as error:
        choose_plan(variant, "tensorrt", version, device)
    assert "streamsplat-edge build" in error.value.hint


def test_plans_of_rtx_are_never_widened(folder: Path) -> None:
    settings = {"hardware_compatible": True, "version_compatible": True}
    variant = entered(folder, runtime="tensorrt_rtx", settings=settings)
    with pytest.raises(EngineError, match=r"built with tensorrt_rtx 10\.3\.0, here is 10\.4\.0"):
        choose_plan(variant, "tensorrt_rtx", "10.4.0", GPU)


def test_code_for_the_host_runs_only_where_the_user_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    assert not host_code_allowed(entered(folder).plans[0].entry)
    entry = entered(folder, settings={"version_compatible": True}).plans[0].entry
    with pytest.raises(EngineError, match="brings code that runs on the host") as error:
        host_code_allowed(entry)
    assert f"{TRUST_VARIABLE}=1" in error.value.hint
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    assert host_code_allowed(entry)
