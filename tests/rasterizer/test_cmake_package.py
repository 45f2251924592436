"""The CMake package: installed, found by another project, and its example shows what Python shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamsplat_edge import __version__
from streamsplat_edge.runtime.outputs.cloud import Cloud, Picture
from streamsplat_edge.runtime.outputs.ply import encode_ply, read_ply
from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats
from streamsplat_edge.runtime.scene import to_bytes

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Picture(96, 54, 4 / 3)  # shown in another shape than the model's


def tool(name: str) -> str | None:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package was installed, as docs/c-api.md says to."""
    folder = tmp_path_factory.mktemp("package")
    configure(ROOT / "cuda", folder / "build", f"-DCMAKE_INSTALL_PREFIX={folder / 'prefix'}")
    call("--build", folder / "build")
    call("--install", folder / "build")
    return folder / "prefix"


@pytest.fixture(scope="module")
def example(prefix: Path) -> Path:
    build = prefix.parent / "example"
    flags = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"
    configure(ROOT / "examples" / "cpp", build, f"-DCMAKE_PREFIX_PATH={prefix}", flags)
    call("--build", build)
    return build / "render_ply"


def call(*arguments: object) -> None:
    cmake = tool("cmake")
    if cmake is None or not (os.environ.get("CXX") or shutil.which("c++")):
        pytest.skip("cmake or a C++ compiler is not in PATH (the package itself was built elsewhere)")
    result = subprocess.run([cmake, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def configure(source: Path, build: Path, *options: str) -> None:
    ninja = tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    call("-S", source, "-B", build, *generator, *options)


def saved_scene() -> Splats:
    """As a stream makes them: axis-aligned, many smaller than a pixel, the depth's scale the mean of both."""
    rng = np.random.default_rng(0)
    splats = Splats.allocate(3000)
    splats.means[:] = rng.uniform([-1.1, 0.1, -1.1], [1.1, 5, 1.1], splats.means.shape)
    flat = rng.uniform(1e-3, 0.06, (3000, 2)).astype(np.float32)
    splats.scales[:] = np.stack([flat[:, 0], flat.mean(1), flat[:, 1]], 1)
    splats.opacity[:] = rng.uniform(0.05, 1, 3000)
    splats.rgb[:] = rng.uniform(-0.1, 1.1, splats.rgb.shape)  # not clamped before they are blended
    splats.count = 3000
    return splats


def rendered(splats: Splats) -> np.ndarray:
    rgb = Rasterizer(PICTURE.height, PICTURE.width).render(splats).rgb
    out = np.empty(rgb.shape, np.uint8)
    to_bytes(rgb, np.empty_like(rgb), out)
    return out


def test_example_renders_what_python_renders(example: Path, tmp_path: Path) -> None:
    splats = saved_scene()
    scene, picture = tmp_path / "scene_0000.ply", tmp_path / "out.ppm"
    scene.write_bytes(encode_ply(Cloud.from_splats(splats, PICTURE, time=0.5)))
    result = subprocess.run([example, scene, picture], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("of 3000 Gaussians, 96x54\n")
    header = b"P6\n96 54\n255\n"
    content = picture.read_bytes()
    assert content.startswith(header)
    image = np.frombuffer(content[len(header) :], np.uint8).reshape(54, 96, 3)
    assert np.ptp(image) > 150  # there is something to compare

    same_file = np.abs(image.astype(int) - rendered(read_ply(scene).to_splats()))
    # exp of another library may differ in the last bit, and so may where a value is rounded.
    assert same_file.max() <= 1 and np.count_nonzero(same_file) < 0.001 * same_file.size
    before = image - rendered(splats).astype(float)
    assert 10 * np.log10(255**2 / np.square(before).mean()) > 50


@pytest.mark.parametrize("damage", ["cut", "other fields", "no file"])
def test_example_refuses_what_is_no_scene(example: Path, tmp_path: Path, damage: str) -> None:
    scene = tmp_path / "scene.ply"
    content = encode_ply(Cloud.from_splats(saved_scene(), PICTURE))
    if damage == "cut":
        scene.write_bytes(content[:-1])
    elif damage == "other fields":
        scene.write_bytes(content.replace(b"f_dc_0", b"red_no"))
    result = subprocess.run(
        [example, scene, tmp_path / "out.ppm"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1 and "scene.ply" in result.stderr
    assert not (tmp_path / "out.ppm").exists()


def test_package_has_the_version_of_the_project(prefix: Path) -> None:
    (written,) = prefix.glob("lib*/**/streamsplat_edge-config-version.cmake")
    assert f'set(PACKAGE_VERSION "{__version__}")' in written.read_text()
    assert (prefix / "include" / "streamsplat_raster.h").is_file()
