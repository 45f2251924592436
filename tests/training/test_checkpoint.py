"""Published key names and shapes, wrappers, refusals, and weights that survive the trip through a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from keyed_weights import apply_keyed_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamsplat_edge.runtime.errors import InputError, OutputError
from streamsplat_edge.training.checkpoint import (
    TRAINING_ONLY,
    canonical_key,
    load_static_weights,
    load_weights,
    read_config,
    save_weights,
)
from streamsplat_edge.training.config import ModelConfig, preset
from streamsplat_edge.training.model import StreamSplat

KEYS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "checkpoint_keys.json").read_text())
SMALL = ModelConfig(
    name="small-test",
    height=16,
    width=32,
    patch=8,
    dim=32,
    head_dim=8,
    encoder_depth=1,
    decoder_depth=1,
    upsample_windows=(16, 32),
)
PREFIXES = [
    "",
    "model.",
    "model._orig_mod.",
    "module.model._orig_mod.",
    "_orig_mod.module.model.",
    "module.module.",
]
EXTRA = "gs_predictor.predictor.mix_layer.xyz_dynamic_"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def base_on_meta(probabilistic: bool = False) -> StreamSplat:
    with torch.device("meta"):
        return StreamSplat(preset("base"), probabilistic=probabilistic)


def keyed_model(**kwargs: Any) -> StreamSplat:
    model = StreamSplat(SMALL, **kwargs).eval()
    apply_keyed_weights(model)
    return model


def blank_model(**kwargs: Any) -> StreamSplat:
    torch.manual_seed(99)
    return StreamSplat(SMALL, **kwargs).eval()


def outputs(model: StreamSplat) -> list[Tensor]:
    rgbd = torch.rand(2, 4, SMALL.height, SMALL.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, features, gaussians = model.encode(rgbd)
        return [tokens, features, gaussians, *model.deform(tokens[None], features[None])]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def write(path: Path, state: dict[str, Tensor], prefix: str = "model.") -> Path:
    save_file({prefix + k: v.clone() for k, v in state.items()}, str(path))
    return path


# -- the published names


def test_base_has_the_published_keys() -> None:
    model = base_on_meta()
    ours = {f"model.{k}": (list(v.shape), str(v.dtype)) for k, v in model.state_dict().items()}
    published = {k: (v["shape"], f"torch.{v['dtype']}") for k, v in KEYS["checkpoint"].items()}
    assert ours == published
    parameters = {f"model.{k}" for k, _ in model.named_parameters()}
    assert parameters == {k for k, v in KEYS["checkpoint"].items() if v["kind"] == "parameter"}


def test_base_has_the_published_number_of_parameters() -> None:
    model = base_on_meta()
    counts = {k.split(" ")[0]: v for k, v in KEYS["parameter_counts"].items()}
    for name in ("gs_predictor", "gs_predictor.encoder", "gs_predictor.predictor", "decoder", "encoder_proj"):
        assert sum(p.numel() for p in model.get_submodule(name).parameters()) == counts[name], name
    assert sum(p.numel() for p in model.parameters()) == counts["total_in_checkpoint(parameters)"]
    trained = sum(p.numel() for p in model.parameters_of("dynamic"))
    assert trained == counts["trainable_in_stage2"]


def test_base_has_the_published_stage_1_keys() -> None:
    model = base_on_meta(probabilistic=True)
    ours = {
        "model." + k.replace("gs_layer.xyz_static.", "mix_layer.xyz_static_mean."): list(v.shape)
        for k, v in model.gs_predictor.state_dict().items()
    }
    assert ours == {k: v["shape"] for k, v in KEYS["stage1_static_encoder_checkpoint"]["keys"].items()}


def test_extra_stage_2_keys_are_the_published_ones() -> None:
    dropped = KEYS["dropped_or_ignored"]
    extra = next(v for k, v in dropped.items() if k.startswith("extra_keys_in_a_stage2"))
    assert {canonical_key(k) for k in extra} <= TRAINING_ONLY
    assert not set(base_on_meta().state_dict()) & TRAINING_ONLY


# -- round trips


def test_saved_weights_give_the_same_outputs(tmp_path: Path) -> None:
    model, loaded = keyed_model(), blank_model()
    path = tmp_path / "model.safetensors"
    save_weights(model, path, {"step": "7"})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert read_config(path) == SMALL
    assert not same(outputs(model), outputs(loaded))
    load_weights(loaded, path)
    assert same(outputs(model), outputs(loaded))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrapped_names(tmp_path: Path, prefix: str) -> None:
    model, loaded = keyed_model(), blank_model()
    load_weights(loaded, write(tmp_path / "w.safetensors", model.state_dict(), prefix))
    assert same(outputs(model), outputs(loaded))


def test_wrapped_submodules(tmp_path: Path) -> None:
    model, loaded = keyed_model(), blank_model()
    state = {k.replace("decoder.", "decoder._orig_mod.", 1): v for k, v in model.state_dict().items()}
    assert any("._orig_mod." in k for k in state)
    load_weights(loaded, write(tmp_path / "w.safetensors", state))
    assert same(outputs(model), outputs(loaded))


def test_stored_buffers_replace_the_computed_ones(tmp_path: Path) -> None:
    state = dict(keyed_model().state_dict())
    state["gs_dynamic_predictor.dynamic_scalar"] = torch.tensor([0.25, 0.05, 0.25])
    model = blank_model()
    load_weights(model, write(tmp_path / "w.safetensors", state))
    assert model.gs_dynamic_predictor.dynamic_scalar.tolist() == [0.25, torch.tensor(0.05).item(), 0.25]


def test_half_precision_files_load_into_float32(tmp_path: Path) -> None:
    model = blank_model()
    state = {k: v.half() for k, v in keyed_model().state_dict().items()}
    load_weights(model, write(tmp_path / "w.safetensors", state))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_stage_1_file_fills_the_static_half(tmp_path: Path) -> None:
    source = keyed_model(probabilistic=True)
    state = {
        k.replace("gs_layer.xyz_static.", "mix_layer.xyz_static_mean."): v
        for k, v in source.gs_predictor.state_dict().items()
    }
    path = write(tmp_path / "stage1.safetensors", state, "model._orig_mod.")
    for probabilistic in (False, True):
        model = blank_model(probabilistic=probabilistic)
        decoder = {k: v.clone() for k, v in model.decoder.state_dict().items()}
        load_static_weights(model, path)
        assert same(outputs(source)[:3], outputs(model)[:3])
        assert all(torch.equal(v, decoder[k]) for k, v in model.decoder.state_dict().items())
    scale = "gs_predictor.predictor.mix_layer.xyz_static_scale.weight"
    assert torch.equal(model.state_dict()[scale], source.state_dict()[scale])
    with pytest.raises(InputError, match=r"missing gs_predictor\.encoder") as error:
        load_weights(blank_model(), path)
    assert "unexpected model._orig_mod.encoder." in str(error.value)


# -- sampling heads


def test_extra_stage_2_keys_are_tolerated_by_name_only(tmp_path: Path) -> None:
    state = dict(keyed_model().state_dict())
    extra = {
        f"{EXTRA}{head}.{leaf}": torch.zeros(3) for head in ("mean", "scale") for leaf in ("weight", "bias")
    }
    model = blank_model()
    load_weights(model, write(tmp_path / "w.safetensors", {**state, **extra}, "model._orig_mod."))
    assert same(outputs(keyed_model()), outputs(model))
    for name in (f"{EXTRA}mean.extra", "decoder.mix_layer.xyz_dynamic_mean.weight", "lpips_loss.weight"):
        path = write(tmp_path / "x.safetensors", {**state, name: torch.zeros(3)})
        with pytest.raises(InputError, match=f"unexpected model.{name}".replace(".", r"\.")):
            load_weights(blank_model(), path)


def test_the_sampling_head_may_come_and_go(tmp_path: Path) -> None:
    sampling, plain = keyed_model(probabilistic=True), keyed_model()
    save_weights(sampling, tmp_path / "sampling.safetensors", {})
    save_weights(plain, tmp_path / "plain.safetensors", {})
    into_plain, into_sampling = blank_model(), blank_model(probabilistic=True)
    load_weights(into_plain, tmp_path / "sampling.safetensors")
    load_weights(into_sampling, tmp_path / "plain.safetensors")
    assert same(outputs(plain), outputs(into_plain)) and same(outputs(plain), outputs(into_sampling))
    again = blank_model(probabilistic=True)
    load_weights(again, tmp_path / "sampling.safetensors")
    name = "gs_predictor.predictor.mix_layer.xyz_static_scale.weight"
    assert torch.equal(again.state_dict()[name], sampling.state_dict()[name])


# -- refusals


def test_missing_unexpected_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    state = dict(keyed_model().state_dict())
    del state["encoder_proj.weight"]
    state["encoder_proj.wieght"] = torch.zeros(2)
    state["gs_predictor.predictor.gs_layer.rgb.bias"] = torch.zeros(4)
    model = blank_model()
    before = outputs(model)
    with pytest.raises(InputError) as error:
        load_weights(model, write(tmp_path / "w.safetensors", state))
    message = str(error.value)
    assert "missing encoder_proj.weight\n" in message
    assert "unexpected model.encoder_proj.wieght\n" in message
    assert "gs_predictor.predictor.gs_layer.rgb.bias: (4,), expected (3,)\n" in message
    assert same(before, outputs(model))


def test_another_preset_is_refused(tmp_path: Path) -> None:
    save_weights(StreamSplat(replace(SMALL, dim=64)), tmp_path / "w.safetensors", {})
    with pytest.raises(InputError, match=r"and \d+ more misshapen") as error:
        load_weights(blank_model(), tmp_path / "w.safetensors")
    assert str(error.value).count("\n") < 45 and "another preset" in error.value.hint


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("head_dim", {"head_dim": 4}),
        ("upsample_windows", {"upsample_windows": (32, 16)}),
        ("depth_mapping", {"depth_mapping": "paper"}),
        ("depth_input", {"depth_input": "stage"}),
        ("depth_levels", {"depth_input": "stage", "depth_levels": 8}),
    ],
)
def test_weights_of_a_model_with_the_same_shapes_that_computes_something_else_are_refused(
    tmp_path: Path, field: str, changes: dict[str, Any]
) -> None:
    other = StreamSplat(replace(SMALL, **changes))
    assert all(v.shape == other.state_dict()[k].shape for k, v in blank_model().state_dict().items())
    path = tmp_path / "w.safetensors"
    save_weights(other, path, {})
    for load in (load_weights, load_static_weights):
        with pytest.raises(InputError, match=f"differing {field}: "):
            load(blank_model(), path)


def test_the_static_half_fits_models_that_differ_in_the_rest(tmp_path: Path) -> None:
    save_weights(keyed_model(), tmp_path / "w.safetensors", {}, "static")
    model = StreamSplat(replace(SMALL, decoder_depth=2, condition="dino", condition_dim=8, condition_len=4))
    load_static_weights(model, tmp_path / "w.safetensors")
    static = keyed_model().gs_predictor.state_dict()
    assert all(torch.equal(v, static[k]) for k, v in model.gs_predictor.state_dict().items())


def test_the_same_tensor_twice_is_refused(tmp_path: Path) -> None:
    state = dict(keyed_model().state_dict())
    state["_orig_mod.encoder_proj.weight"] = torch.zeros(8, 8)
    with pytest.raises(InputError, match="twice"):
        load_weights(blank_model(), write(tmp_path / "w.safetensors", state))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    model = blank_model()
    pickled = tmp_path / "model.pt"
    torch.save(model.state_dict(), pickled)
    truncated = tmp_path / "cut.safetensors"
    save_weights(model, truncated, {})
    truncated.write_bytes(truncated.read_bytes()[:-100])
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    renamed = tmp_path / "pickled.safetensors"
    renamed.write_bytes(pickled.read_bytes())
    for path, hint in (
        (pickled, "Convert it to safetensors"),
        (renamed, "Convert it to safetensors"),
        (truncated, "cut short: copy or download it again"),
        (empty, "cut short: copy or download it again"),
        (tmp_path, ""),
        (tmp_path / "absent.safetensors", ""),
    ):
        for use in (lambda p: load_weights(model, p), lambda p: load_static_weights(model, p), read_config):
            with pytest.raises(InputError, match="not a readable safetensors file") as error:
                use(path)
            assert hint in error.value.hint


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = dict(keyed_model().state_dict())
    name = "gs_predictor.predictor.gs_layer.rgb.bias"
    state[name] = torch.zeros(3).to(dtype)
    with pytest.raises(InputError, match=f"mistyped {name}: .*expected one of F64, F32, F16, BF16"):
        load_weights(blank_model(), write(tmp_path / "w.safetensors", state))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """Also where they are not once they have the model's type."""
    state = dict(keyed_model().state_dict())
    name = "gs_predictor.predictor.gs_layer.rgb.bias"
    state[name] = torch.tensor([0.0, value, 0.0], dtype=torch.float64)
    model = blank_model()
    before = outputs(model)
    static = {key: value for key, value in state.items() if key.startswith("gs_predictor.")}
    for load, stored in ((load_weights, state), (load_static_weights, static)):
        with pytest.raises(InputError, match=f"holds NaN or infinity in {name}\\.") as error:
            load(model, write(tmp_path / "w.safetensors", stored))
        assert "earlier file" in error.value.hint
    assert same(before, outputs(model))


def test_others_may_read_the_weights(tmp_path: Path) -> None:
    """As far as the umask lets them."""
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    save_weights(blank_model(), path, {})
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_read_config_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = {"x": torch.zeros(1)}
    save_file(state, str(path))
    with pytest.raises(InputError, match="does not say which model"):
        read_config(path)
    for text in ("{", "[1]", json.dumps({**SMALL.to_dict(), "dimm": 3}), '{"name": "x"}'):
        save_file(state, str(path), {"model": text})
        with pytest.raises(InputError, match="no usable model configuration"):
            read_config(path)


def test_a_full_disk_leaves_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(keyed_model(), path, {})
    before = load_file(str(path))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_weights(blank_model(), path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert all(torch.equal(v, before[k]) for k, v in load_file(str(path)).items())
