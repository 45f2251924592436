"""The runtime and the command line load nothing heavy, even where it is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch", "onnx", "onnxscript", "cv2", "safetensors", "openvino", "cupy", "tensorrt",
    "websockets", "fourdgs", "glfw", "moderngl",
)  # fmt: skip


@pytest.mark.parametrize(
    "imports",
    [
        "from streamsplat_edge.runtime import bundle, compose, engines, pipeline, stream, video",
        "from streamsplat_edge.runtime import key_frames, schedule, sources, video",
        "from streamsplat_edge.runtime.outputs import convert, recording, savers",
        "import streamsplat_edge; streamsplat_edge.open",
        "from streamsplat_edge.cli import build_parser; build_parser()",
        "from streamsplat_edge.commands import convert, info, run, run_many",
        "from streamsplat_edge.benchmarks import fps, rasterizer, soak",
        "from streamsplat_edge.benchmarks.bench import report",
    ],
)
def test_no_heavy_package_is_loaded(imports: str) -> None:
    code = f"import sys\n{imports}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "", f"loaded: {result.stdout}"


def test_the_check_would_notice() -> None:
    """torch is in the test environment, so the test above can fail."""
    pytest.importorskip("torch")
    code = f"import sys, torch\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "torch" in result.stdout.split()
