"""`streamsplat-edge doctor`: what this machine has, what will be used, and why.

Every package is looked at in a process of its own: a broken installation (one that raises, exits or crashes
on import) becomes a line in the report and never stops it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

from ._version import __version__
from .machine import describe_cuda, describe_machine, source_commit

_TIMEOUT = 60.0  # seconds for one package; a cold import from a slow disk takes a while

# Name in the report -> code that prints one JSON object. Runs with `python -c`.
_PROBES: dict[str, str] = {
    "numpy": "import numpy as m; r = {'version': m.__version__}",
    "av": (
        "import av as m; r = {'version': m.__version__, 'ffmpeg_avcodec': '.'.join(map(str, "
        "m.library_versions['libavcodec'])), 'libx264': 'libx264' in m.codecs_available}"
    ),
    "onnxruntime": (
        "import onnxruntime as m; r = {'version': m.__version__, 'providers': m.get_available_providers()}"
    ),
    "native core": (
        "from streamsplat_edge import _core as m; r = {'version': None, 'simd': m.simd_best(), "
        "'simd_supported': [n for n in ('avx512', 'avx2', 'neon', 'scalar') if m.simd_supported(n)]}"
    ),
    "openvino": (
        "import openvino as m; c = m.Core(); r = {'version': m.__version__, 'devices': c.available_devices, "
        "'cpu_capabilities': list(c.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))}"
    ),
    "cupy": (
        "import cupy as m; r = {'version': m.__version__, "
        "'cuda_runtime': m.cuda.runtime.runtimeGetVersion(), 'gpus': []}\n"
        "try: r['gpus'] = [m.cuda.runtime.getDeviceProperties(i)['name'].decode() "
        "for i in range(m.cuda.runtime.getDeviceCount())]\n"
        "except Exception as e: r['note'] = str(e)"
    ),
    "tensorrt": (
        "import tensorrt as m\n"
        # A folder of type stubs imports as an empty namespace.
        "if m.__file__ is None: raise ModuleNotFoundError(\"No module named 'tensorrt'\")\n"
        "r = {'version': m.__version__}"
    ),
    "tensorrt_rtx": "import tensorrt_rtx as m; r = {'version': m.__version__}",
    "websockets": "import websockets as m; r = {'version': m.__version__}",
    "glfw": "import glfw as m; r = {'version': m.__version__}",
    "moderngl": "import moderngl as m; r = {'version': m.__version__}",
}
_REQUIRED = ("numpy", "av", "onnxruntime", "native core")
_MENDING = {
    "native core": "pip install . (needs a C++17 compiler and CMake)",
    "numpy": "pip install --force-reinstall numpy",
    "av": "pip install --force-reinstall av",
    "onnxruntime": "pip install --force-reinstall onnxruntime",
}
# Only looked up, never imported: seconds to load, and the runtime does not use them.
_METADATA_ONLY = ("tqdm", "torch", "onnx", "safetensors", "opencv-python-headless", "nanobind")


def probe(name: str, code: str) -> dict[str, Any]:
    """Runs one probe. Result: `status` "ok", "missing" or "broken", then what the probe found."""
    script = f"import json, sys\nsys.path = [p for p in sys.path if p]\n{code}\nprint('\\n' + json.dumps(r))"
    try:
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=_TIMEOUT, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return {"status": "broken", "problem": f"did not answer within {_TIMEOUT:.0f} s"}
    except OSError as error:
        return {"status": "broken", "problem": str(error)}
    lines = result.stdout.strip().splitlines()
    try:
        if result.returncode == 0 and lines:
            return {"status": "ok", **json.loads(lines[-1])}
    except json.JSONDecodeError:
        pass
    errors = result.stderr.strip().splitlines()
    problem = errors[-1] if errors else f"ended with exit code {result.returncode}"
    # Exactly this module: where one that it needs is missing, the package is there and broken.
    missing = problem == f"ModuleNotFoundError: No module named '{name}'" or (
        name == "native core" and "cannot import name '_core'" in problem and "circular" not in problem
    )
    return {"status": "missing" if missing else "broken", "problem": problem}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _METADATA_ONLY:
        try:
            found[name] = metadata.version(name)
        except Exception:  # damaged metadata raises many kinds of errors
            found[name] = None
    return found


def examine() -> dict[str, Any]:
    """The whole report as a JSON-ready dictionary."""
    with ThreadPoolExecutor(len(_PROBES)) as pool:
        packages = dict(zip(_PROBES, pool.map(lambda item: probe(*item), _PROBES.items()), strict=True))
    machine = describe_machine()
    cuda = describe_cuda()
    verdicts, problems = judge(packages, machine, cuda)
    return {
        "streamsplat_edge": {"version": __version__, "commit": source_commit()},
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "machine": machine,
        "packages": packages,
        "other_versions": _versions(),
        "cuda": cuda,
        "will_use": verdicts,
        "problems": problems,
        "ready": not problems,
    }


def judge(
    packages: dict[str, dict[str, Any]], machine: dict[str, Any], cuda: dict[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """What `run` will use and why, and what is wrong with required parts and how to mend it."""
    problems = []
    for name in _REQUIRED:
        found = packages[name]
        if found["status"] != "ok":
            problems.append(f"{name} is {found['status']} ({found['problem']}): {_MENDING[name]}")
    runtime, openvino, core = packages["onnxruntime"], packages["openvino"], packages["native core"]
    cores = machine["cores_usable"]
    verdicts: dict[str, str] = {}
    if runtime["status"] == "ok":
        verdicts["engine"] = (
            f"ONNX Runtime {runtime['version']}, CPUExecutionProvider, {cores} threads: the default of `run`"
        )
        if "CUDAExecutionProvider" in runtime["providers"] and cuda["gpus"]:
            ready = packages["cupy"]["status"] == "ok"
            verdicts["engine on request"] = (
                "--device cuda: this ONNX Runtime has the CUDA provider, CuPy and a GPU are here"
                if ready
                else "--device cuda needs CuPy: pip install 'streamsplat-edge[gpu]'"
            )
        elif cuda["gpus"]:
            verdicts["gpu"] = (
                "not used: this ONNX Runtime has no CUDA provider (install onnxruntime-gpu instead)"
            )
    if cuda["gpus"] == []:
        verdicts["gpu"] = "none: no NVIDIA GPU answers; --device cuda will be refused"
    if openvino["status"] == "ok":
        bf16 = "BF16" in openvino.get("cpu_capabilities", [])
        verdicts["--engine openvino"] = f"available, {openvino['version']}, " + (
            "bf16 in hardware: usually the faster choice here" if bf16 else "fp32 (this CPU has no bf16)"
        )
    elif openvino["status"] == "missing":
        verdicts["--engine openvino"] = "not installed: pip install 'streamsplat-edge[openvino]'"
    else:
        verdicts["--engine openvino"] = f"broken: {openvino['problem']}"
    if packages["websockets"]["status"] == "ok":
        verdicts["--view"] = f"available, websockets {packages['websockets']['version']}"
    else:
        verdicts["--view"] = f"{packages['websockets']['status']}: pip install 'streamsplat-edge[view]'"
    window = [packages[name]["status"] for name in ("glfw", "moderngl")]
    if window == ["ok", "ok"]:
        verdicts["--display"] = f"available where there is a screen, glfw {packages['glfw']['version']}"
    else:
        problem = "broken" if "broken" in window else "missing"
        verdicts["--display"] = f"{problem}: pip install 'streamsplat-edge[display]'"
    if core["status"] == "ok":
        verdicts["rasterizer"] = f"C++ core on the CPU, {core['simd']} code, the widest that this CPU runs"
    if packages["av"]["status"] == "ok":
        verdicts["video encoder"] = (
            "libx264 (H.264)" if packages["av"]["libx264"] else "mpeg4: this PyAV was built without libx264"
        )
    return verdicts, problems


def main(args: argparse.Namespace) -> int:
    """Prints the report; exit code 1 when a required part is missing or broken."""
    report = examine()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(describe(report)))
    return 0 if report["ready"] else 1


def describe(report: dict[str, Any]) -> list[str]:
    """The report in lines of text."""
    own, python, machine = report["streamsplat_edge"], report["python"], report["machine"]
    cores = f"{machine['cores_usable']} of {machine['cores_total']} cores"
    if machine["cpu_quota"]:
        cores += f", limited to {machine['cpu_quota']:g} CPUs"
    lines = [
        f"streamsplat-edge {own['version']}" + (f" (commit {own['commit']})" if own["commit"] else ""),
        f"  python      {python['version']} ({python['implementation']}) {python['executable']}",
        f"  system      {machine['distribution'] or machine['system']}, {machine['architecture']}, "
        f"{machine['system']}",
        f"  cpu         {machine['cpu'] or 'unknown'}, {cores}",
        f"  features    {' '.join(machine['cpu_features']) or 'unknown'}",
        f"  memory      {machine['memory_gib']} GiB, {machine['memory_available_gib']} GiB available",
    ]
    if machine["device"] or report["cuda"]["jetson_release"]:
        lines.append(
            f"  device      {machine['device'] or ''} {report['cuda']['jetson_release'] or ''}".rstrip()
        )
    lines.append("packages")
    for name, found in report["packages"].items():
        lines.append(f"  {name:<13}{_package(found)}")
    others = ", ".join(f"{n} {v}" for n, v in report["other_versions"].items() if v)
    lines.append(f"  {'also':<13}{others or 'nothing'}")
    lines.append("cuda")
    for gpu in report["cuda"]["gpus"]:
        lines.append(f"  gpu         {', '.join(gpu.values())}")
    if not report["cuda"]["gpus"]:
        lines.append("  gpu         none found")
    lines.append(f"  nvcc        {report['cuda']['nvcc'] or 'not found'}")
    lines.append("will be used")
    lines += [f"  {key}: {value}" for key, value in report["will_use"].items()]
    lines += [f"problem: {problem}" for problem in report["problems"]] or ["ready"]
    return lines


def _package(found: dict[str, Any]) -> str:
    if found["status"] != "ok":
        return found["status"] if found["status"] == "missing" else f"BROKEN: {found['problem']}"
    words = [str(found["version"])] if found["version"] else []
    for key, value in found.items():
        if key not in ("status", "version"):
            text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
            words.append(f"{key.replace('_', ' ')}: {text}")
    return "  ".join(words)
