"""The Triton repository agrees with the graphs it holds, and its ensemble with its models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from streamsplat_edge.cli import main
from streamsplat_edge.export.triton import write_repository
from streamsplat_edge.runtime.bundle import Bundle, sha256_of
from streamsplat_edge.runtime.errors import InputError, OutputError

_TOKEN = re.compile(r'"[^"]*"|[\w.-]+|[\[\]{}:,]')
_TYPES = {onnx.TensorProto.FLOAT: "TYPE_FP32"}


def parse(text: str) -> dict[str, Any]:
    """protobuf's text format, as far as config.pbtxt needs it; a field that appears again becomes a list."""
    assert not _TOKEN.sub("", text).strip(), "nothing else in it"
    tokens = _TOKEN.findall(text)

    def message(end: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while tokens and tokens[0] != end:
            name = tokens.pop(0)
            if tokens[0] == ":":
                tokens.pop(0)
            found = value()
            if name in fields:
                earlier = fields[name] if isinstance(fields[name], list) else [fields[name]]
                found = [*earlier, found]
            fields[name] = found
        if end:
            tokens.pop(0)
        return fields

    def value() -> Any:
        token = tokens.pop(0)
        if token == "{":
            return message("}")
        if token == "[":
            items = []
            while tokens[0] != "]":
                items.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return items
        return token.strip('"') if token[0] == '"' else int(token) if token.lstrip("-").isdigit() else token

    return message("")


def listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def tensors(entries: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {entry["name"]: (entry["data_type"], tuple(entry["dims"])) for entry in listed(entries)}


def graph_tensors(values: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        value.name: (
            _TYPES[value.type.tensor_type.elem_type],
            tuple(size.dim_value for size in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def test_models_and_ensemble_agree_with_the_graphs(exported: tuple[Path, str, str], bundle: Bundle) -> None:
    root = exported[0] / "triton"
    configs = {path.parent.name: parse(path.read_text()) for path in root.glob("*/config.pbtxt")}
    names = ("depth", "encode", "condition", "deform", "keyframe")
    assert configs.keys() == {f"tiny_{name}" for name in names}
    known: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for stage in bundle.stage_names:
        config = configs[f"tiny_{stage}"]
        model = root / f"tiny_{stage}" / "1" / "model.onnx"
        assert sha256_of(model) == bundle.variant(stage, "onnxruntime").sha256
        graph = onnx.load(model).graph
        known[config["name"]] = {**tensors(config["input"]), **tensors(config["output"])}
        assert tensors(config["input"]) == graph_tensors(graph.input)
        assert tensors(config["output"]) == graph_tensors(graph.output)
        assert config["backend"] == "onnxruntime" and config["max_batch_size"] == 0
    ensemble = configs["tiny_keyframe"]
    assert ensemble["platform"] == "ensemble" and (root / "tiny_keyframe" / "1").is_dir()
    own = {**tensors(ensemble["input"]), **tensors(ensemble["output"])}
    produced = set(tensors(ensemble["input"]))
    for step in listed(ensemble["ensemble_scheduling"]["step"]):
        taken, given = listed(step["input_map"]), listed(step["output_map"])
        assert {m["value"] for m in taken} <= produced, "only what is there already goes in"
        produced |= {m["value"] for m in given}
        for mapping in (*taken, *given):
            assert known[step["model_name"]][mapping["key"]] == own[mapping["value"]]
    assert (
        set(tensors(ensemble["output"]))
        == {"depth", "tokens", "features", "gaussians", "condition"}
        <= produced
    )


def test_nothing_is_overwritten(
    exported: tuple[Path, str, str], bundle: Bundle, checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(OutputError, match="exists already"):
        write_repository(bundle, exported[0] / "triton")
    (tmp_path / "triton").write_text("a file")
    command = f"export --checkpoint {checkpoint} -o {tmp_path}/x.bundle --triton {tmp_path}/triton"
    assert main(command.split()) == 2, "said before anything is exported"
    assert "exists already" in capsys.readouterr().err and not (tmp_path / "x.bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["triton"]


def test_names_that_lead_elsewhere(
    bundle: Bundle, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle's name is its author's, and becomes the name of folders here."""
    for name in ("../x", "a/b", '"quoted"', "..", "two words"):
        folder = Path(shutil.copytree(bundle.path, tmp_path / "named.bundle", dirs_exist_ok=True))
        manifest = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").write_text(json.dumps({**manifest, "name": name}))
        with pytest.raises(InputError, match="cannot be named"):
            write_repository(Bundle.load(folder), tmp_path / "triton")
    command = f"export --checkpoint {checkpoint} -o {tmp_path}/x.bundle --triton {tmp_path}/triton --name a/b"
    assert main(command.split()) == 2, "said before anything is exported"
    assert "cannot be named" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["named.bundle"]
