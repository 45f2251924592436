"""The documents say only what is true of this checkout: links, make targets, commands, and code that runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import DEMO_BUNDLE, PAGES, ROOT, blocks, commands
from fake_bundle import build_fake_bundle

from streamsplat_edge import __version__, source_options
from streamsplat_edge.cli import build_parser, main
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.bundle_schema import ENGINE_NAMES
from streamsplat_edge.runtime.engines import ENGINES, create, select_variant
from streamsplat_edge.runtime.outputs.camera_path import parse_camera

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cli.md"} <= {page.name for page in PAGES}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^    |`|\$ )make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
    assert set(named) <= targets


@each_page
def test_commands_parse(page: Path) -> None:
    for command in commands(page):
        if command[0] == "streamsplat-edge":
            build_parser().parse_args(command[1:])  # exits where an option does not exist
        elif command[:2] == ["python", "-m"]:
            options = [word for word in command[3:] if word.startswith("-")]
            called = [sys.executable, "-m", command[2], "--help"]
            result = subprocess.run(called, capture_output=True, text=True, timeout=120)
            assert result.returncode == 0 and all(option in result.stdout for option in options), command


def run_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runs the Python of a page from top to bottom, as a reader would, with a small bundle."""
    build_fake_bundle(tmp_path / "fake.bundle")
    monkeypatch.chdir(ROOT)
    image = np.full((36, 64, 3), 128, np.uint8)
    names: dict[str, object] = dict(frame=image, timestamp=0.0, first_image=image, second_image=image)
    code = "\n".join(blocks(page, "python"))
    assert DEMO_BUNDLE in code
    exec(code.replace(DEMO_BUNDLE, str(tmp_path / "fake.bundle")), names)
    return names


def test_three_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = run_blocks(ROOT / "README.md", tmp_path, monkeypatch)["image"]
    assert isinstance(image, np.ndarray) and image.shape == (16, 32, 3) and image.dtype == np.uint8


def test_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_blocks(ROOT / "docs" / "python-api.md", tmp_path, monkeypatch)
    assert names["report"].frames == 230  # type: ignore[attr-defined]


def test_streams_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_blocks(ROOT / "docs" / "streams.md", tmp_path, monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 2 * 20 + 2


def test_bundle_page_shows_every_field(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "bundle.md", "json")
    shown, real = json.loads(text), build_fake_bundle(tmp_path / "fake.bundle").manifest
    assert shown.keys() == real.keys() and shown["model"].keys() == real["model"].keys()
    (variant,), (written,) = (m["stages"]["encode"]["variants"] for m in (shown, real))
    assert variant.keys() == written.keys() and variant["inputs"][0].keys() == written["inputs"][0].keys()


def test_viewer_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("websockets")
    run_blocks(ROOT / "docs" / "viewer.md", tmp_path, monkeypatch)
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_outputs_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, bundle = ROOT / "docs" / "outputs.md", tmp_path / "fake.bundle"
    build_fake_bundle(bundle)
    monkeypatch.chdir(tmp_path)
    saved = ["--save", "tracks.npz", "--bundle", str(bundle), "--max-frames", "12", "--quiet"]
    assert main(["run", str(ROOT / "demo" / "clip.mp4"), *saved]) == 0
    names: dict[str, object] = {}
    exec("\n".join(blocks(page, "python")), names)
    assert len(names["times"]) == 3 and names["cloud"].count > 0  # type: ignore[arg-type, attr-defined]
    (text,) = blocks(page, "json")
    (tmp_path / "path.json").write_text(text)
    paths = re.findall(r"^\| `((?:swing|orbit|fixed):.*?)`", page.read_text(), re.MULTILINE)
    assert len(paths) == 3
    for path in ("path.json", *paths):
        parse_camera(path)


def test_backend_of_the_page_computes_what_onnx_runtime_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    names = run_blocks(ROOT / "docs" / "backends.md", tmp_path, monkeypatch)
    bundle = Bundle.load(tmp_path / "fake.bundle")
    for stage in ("encode", "deform"):
        variant = select_variant(bundle, stage, "onnxruntime")
        rng = np.random.default_rng(0)
        inputs = {spec.name: rng.random(spec.shape, np.float32) for spec in variant.inputs}
        results = []
        for load in (names["ReferenceEngine"], lambda variant: create("onnxruntime", variant)):
            outputs = {spec.name: np.full(spec.shape, np.nan, np.float32) for spec in variant.outputs}
            with load(variant) as engine:  # type: ignore[operator]
                engine.run(inputs, outputs)
            results.append(outputs)
        for name, found in results[0].items():
            np.testing.assert_allclose(found, results[1][name], atol=1e-5, err_msg=name)


def test_every_engine_is_registered_where_the_page_says() -> None:
    text = (ROOT / "docs" / "backends.md").read_text()
    for path in re.findall(r"`((?:runtime|src|tests|export)/[a-z_/]+\.py)`", text):
        assert (ROOT / path).is_file(), path
    assert ENGINES == ENGINE_NAMES == source_options.ENGINES


def test_site_is_built_without_warnings(tmp_path: Path) -> None:
    """Links and anchors between pages, and every page in the navigation: `strict` makes warnings errors."""
    pytest.importorskip("mkdocs")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    built = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= built
    assert (tmp_path / "site" / "files" / "examples" / "cpp" / "render_ply.cpp").is_file()
    pages = [path.read_text() for path in (tmp_path / "site").glob("*.html")]
    assert not any(re.search(r"<(script|link)[^>]*(src|href)=.https?://", page) for page in pages)


def test_citation_has_what_github_needs() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    for field in ("cff-version", "message", "title", "authors", "license", "version"):
        assert re.search(rf"^{field}:", text, re.MULTILINE), field
    assert f"version: {__version__}" in text and "2506.08862" in text
