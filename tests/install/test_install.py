"""The package as users get it: wheel, wheel from the sdist, and editable install, in a fresh environment.

Builds use the build tools of the test environment (they are in the extra [dev]) instead of fetching them
again; the wheel is installed with what its own metadata requires, nothing more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "training", "export", "calibration", "benchmarks")
HEAVY = ("torch", "onnx", "onnxscript", "cv2", "safetensors", "openvino", "cupy", "tensorrt", "websockets")

pytestmark = pytest.mark.install


def call(*command: object, cwd: Path, **environment: str) -> str:
    """Runs a command, and fails with its output where it fails. Returns what it printed on stdout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "COV_"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, (
        f"{command} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
    )
    return result.stdout


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked (and not ignored), so that no build leaves a trace in the checkout."""
    target = tmp_path_factory.mktemp("source") / "streamsplat-edge"
    names = call(*("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"), cwd=ROOT)
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="session")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    call(sys.executable, "-c", code, out, cwd=source)
    (path,) = out.glob("*.tar.gz")
    return path


def build_wheel(folder: Path, out: Path) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--quiet", "-w", out)
    call(sys.executable, "-m", "pip", "wheel", *options, folder, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sources as they lie in a checkout: `pip install .`"""
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist_wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist alone, with nothing of the checkout near it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build_wheel(unpacked, tmp_path_factory.mktemp("sdist_wheel"))


class Environment:
    """A fresh virtual environment without access to this one's packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"

    def pip(self, *arguments: object) -> str:
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "--quiet")
        return call(*pip, *arguments, cwd=self.folder)

    def code(self, text: str) -> str:
        return call(self.python, "-c", text, cwd=self.folder)


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Holds the wheel and what its metadata requires, as `pip install streamsplat-edge` brings it in."""
    made = Environment(tmp_path_factory.mktemp("env") / "venv")
    made.pip("install", wheel)
    return made


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, source: Path) -> None:
    names = members(wheel)
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2 and "streamsplat_edge" in tops, tops  # the other is the metadata
    assert {f"streamsplat_edge/{p}/__init__.py" for p in PACKAGES} <= names
    assert "streamsplat_edge/py.typed" in names and "streamsplat_edge/_core.pyi" in names
    assert [n for n in names if n.startswith("streamsplat_edge/_core.") and n.endswith(".so")]
    assert [n for n in names if n.endswith("licenses/LICENSE")]
    for folder, package in (("src/streamsplat_edge", ""), *((p, p + "/") for p in PACKAGES)):
        for path in (source / folder).rglob("*.py"):
            name = f"streamsplat_edge/{package}{path.relative_to(source / folder).as_posix()}"
            assert name in names, f"{name} is not in the wheel"
    for path in (source / "runtime" / "view" / "static").iterdir():
        assert f"streamsplat_edge/runtime/view/static/{path.name}" in names
    garbage = [
        n
        for n in names
        if n.endswith((".onnx", ".mp4", ".png", ".pyc", ".cpp", ".h", ".a", ".log")) or "/tests/" in n
        if not n.startswith("streamsplat_edge/kernels/")
    ]
    assert not garbage
    assert "streamsplat_edge/kernels/streamsplat.cu" in names  # for NVRTC; a test looks at its headers
    assert "streamsplat_edge/benchmarks/results/.gitkeep" not in names
    assert wheel.stat().st_size < 5e6


def test_wheel_from_sdist_is_the_same(wheel: Path, sdist_wheel: Path) -> None:
    assert members(sdist_wheel) == members(wheel)


def test_sdist_holds_what_a_build_needs_and_no_more(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {"LICENSE", "README.md", "pyproject.toml", "CMakeLists.txt", "PKG-INFO", "cuda/CMakeLists.txt"}
    assert needed <= names
    tops = {name.split("/")[0] for name in names}
    assert not tops & {"tests", "demo", "docs", "out", "runs", "build", ".ci", ".git"}, tops
    assert sdist.stat().st_size < 2e6


def test_requirements_are_lean(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    required = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    names = {re.match(r"[\w.-]+", r)[0] for r in required}  # type: ignore[index]
    assert names == {"numpy", "av", "onnxruntime", "tqdm"}
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert {"train", "export", "gpu", "dev", "openvino", "view"} <= extras
    assert metadata["Requires-Python"] == ">=3.10"


def check_command(environment: Environment) -> None:
    command = environment.folder / "bin" / "streamsplat-edge"
    version = environment.code("from importlib.metadata import version; print(version('streamsplat-edge'))")
    assert call(command, "--version", cwd=environment.folder).strip() == f"streamsplat-edge {version.strip()}"
    report = json.loads(call(command, "doctor", "--json", cwd=environment.folder))
    assert report["ready"] and report["packages"]["native core"]["status"] == "ok"
    assert "usage" in call(command, "run", "--help", cwd=environment.folder)


def test_installed_wheel_runs(environment: Environment) -> None:
    place = environment.code("import streamsplat_edge.runtime as m; print(m.__file__)")
    assert Path(place.strip()).is_relative_to(environment.folder)
    check_command(environment)


def test_runtime_needs_and_loads_nothing_heavy(environment: Environment) -> None:
    code = (
        "import sys, importlib.util as u, streamsplat_edge, streamsplat_edge.benchmarks.fps\n"
        "from streamsplat_edge.runtime import stream, pipeline, video\n"
        "streamsplat_edge.open\n"
        "print([m for m in {heavy} if m in sys.modules or u.find_spec(m)])"
    )
    assert environment.code(code.format(heavy=list(HEAVY))).strip() == "[]"


def test_installed_wheel_streams_a_bundle(environment: Environment, tmp_path: Path) -> None:
    """The three lines of the README, without onnx in the environment."""
    pytest.importorskip("onnx")
    sys.path.insert(0, str(ROOT / "tests" / "runtime"))
    from fake_bundle import build_fake_bundle

    build_fake_bundle(tmp_path / "fake.bundle")
    code = (
        "import numpy as np, streamsplat_edge\n"
        f"stream = streamsplat_edge.open({str(tmp_path / 'fake.bundle')!r})\n"
        "stream.push(np.full((36, 64, 3), 90, np.uint8), 0.0)\n"
        "stream.push(np.full((36, 64, 3), 120, np.uint8), 0.1)\n"
        "image = stream.render(0.05).rgb\n"
        "print(image.shape, image.dtype, 80 < image.mean() < 140)"
    )
    assert environment.code(code).strip() == "(16, 32, 3) uint8 True"


def test_editable_install_sees_edits(environment: Environment, source: Path, tmp_path: Path) -> None:
    """Runs last on purpose: it replaces the wheel in the shared environment."""
    site = call(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=ROOT)
    # Build tools come from the test environment; only the install goes to the fresh one.
    call(
        *(environment.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
        *("--no-build-isolation", "--no-deps", "--force-reinstall", "-e", source),
        cwd=tmp_path,
        PYTHONPATH=site.strip(),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    place = environment.code("import streamsplat_edge.runtime as m; print(m.__file__)")
    assert Path(place.strip()).is_relative_to(source)
    check_command(environment)
    (source / "runtime" / "added_after_install.py").write_text("VALUE = 7\n")
    assert (
        environment.code("from streamsplat_edge.runtime.added_after_install import VALUE; print(VALUE)")
        == "7\n"
    )
    (source / "runtime" / "added_after_install.py").write_text("VALUE = 'edited'\n")
    assert "edited" in environment.code(
        "from streamsplat_edge.runtime import added_after_install as m; print(m.VALUE)"
    )
