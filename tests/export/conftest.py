"""One export for all tests of this folder (torch's exporter needs seconds per graph), and import paths."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from pathlib import Path

import pytest

from streamsplat_edge.cli import main
from streamsplat_edge.runtime.bundle import Bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # keyed weights

Exported = tuple[Path, str, str]  # folder, stdout, stderr


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_model import MATCHING, write_checkpoint  # torch: not for tests of plans alone

    return write_checkpoint(MATCHING, tmp_path_factory.mktemp("weights") / "model.safetensors")


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A folder with small.bundle, in fp32 and fp16, and triton/, by the command line; what it printed."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "provenance.json").write_text('{"data": "random"}')
    stdout, stderr = io.StringIO(), io.StringIO()
    command = f"export --json --precision fp32,fp16 --checkpoint {checkpoint} -o {folder}/small.bundle"
    command += f" --triton {folder}/triton --provenance {folder}/provenance.json"
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert main(command.split()) == 0, stderr.getvalue()
    return folder, stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="session")
def bundle(exported: Exported) -> Bundle:
    return Bundle.load(exported[0] / "small.bundle")


@pytest.fixture
def own_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    return Bundle.load(shutil.copytree(bundle.path, tmp_path / "own.bundle"))
