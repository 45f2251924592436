"""Full-size check against the published model: `make test-parity` (about 4 TFLOP, minutes on two cores).

Weights made from names are written as a published checkpoint, loaded through `load_weights`, and run once;
every tensor of the golden files is compared, by values (subsampled) and by statistics over the whole tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from keyed_weights import keyed_frames, keyed_tensor, normalise_depth
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats, View, evaluate_at
from streamsplat_edge.training.checkpoint import load_weights
from streamsplat_edge.training.condition import DinoCondition, dino_config, from_original_keys
from streamsplat_edge.training.config import preset
from streamsplat_edge.training.gaussians import render_pair
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.modules import sinusoidal_table

pytestmark = pytest.mark.parity

DATA = Path(__file__).parents[1] / "data"
PAIR = np.load(DATA / "golden_pair.npz")
DEBUG = np.load(DATA / "golden_pair_debug.npz")
END = np.load(DATA / "golden_end2end.npz")
PAIR_META = json.loads(str(PAIR["meta_json"]))
DEBUG_META = json.loads(str(DEBUG["meta_json"]))
END_CHECKS = json.loads(str(END["meta_json"]))["checks"]
KEYS = json.loads((DATA / "checkpoint_keys.json").read_text())

# Relative L2. Ours is within 7.2e-7, the reference within 1.03e-6 of float64; a wrong epsilon in the norms of
# the upsampler, the smallest mistake known, gives 4.9e-6 (REFERENCE.md section 10).
TOLERANCE = 2.5e-6
# The official float32 kernels stay within 4.3e-7 of the stored image outside fragile pixels, 3.4e-4 inside.
IMAGE_TOLERANCE = 2e-6
FRAGILE_TOLERANCE = 1e-3
EXTREME_TOLERANCE = 5e-5  # absolute, of minimum and maximum

Array = NDArray[Any]


def _write_checkpoint(path: Path) -> None:
    """A file with the published keys and keyed weights; position tables from the stored frequencies."""
    div_term = torch.from_numpy(PAIR["pe_div_term"])
    buffers = StreamSplat(preset("base")).state_dict()
    state: dict[str, Tensor] = {}
    for key, entry in KEYS["checkpoint"].items():
        name, shape = key.removeprefix("model."), tuple(entry["shape"])
        if name.endswith(".pe"):
            state[f"model._orig_mod.{name}"] = sinusoidal_table(shape[0], shape[1], div_term)
        elif entry["kind"] == "buffer":
            state[f"model._orig_mod.{name}"] = buffers[name]
        else:
            state[f"model._orig_mod.{name}"] = torch.from_numpy(keyed_tensor(name, shape))
    save_file(state, str(path))


def _keyed_dino() -> DinoCondition:
    prefix = "condition_encoder."
    original = {
        key.removeprefix("model."): torch.from_numpy(keyed_tensor(prefix + key, tuple(entry["shape"])))
        for key, entry in KEYS["condition_encoder"]["keys"].items()
    }
    condition = DinoCondition(dino_config())
    report = condition.model.load_state_dict(from_original_keys(original), strict=False)
    assert report.missing_keys == ["embeddings.mask_token"] and not report.unexpected_keys
    return condition


def _run(model: StreamSplat, condition: DinoCondition) -> dict[str, Array]:
    """Every named tensor of the golden files, from one pass over pair "a"."""
    found: dict[str, Array] = {}

    def record(name: str, module: nn.Module, view: Any = lambda x: x) -> None:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            found[name] = view(tensor).float().numpy().copy()

        module.register_forward_hook(hook)

    tokens_last = lambda x: x.flatten(2).transpose(1, 2)  # noqa: E731
    first = lambda x: x[:1]  # noqa: E731
    backbone = condition.model
    backbone.embeddings.patch_embeddings.projection.register_forward_pre_hook(
        lambda _m, inputs: found.__setitem__("dino_input", tokens_last(inputs[0]).numpy().copy())
    )
    record("dino_patch_embed", backbone.embeddings.patch_embeddings)
    record("dino_block0", backbone.encoder.layer[0])
    record("dino_block11", backbone.encoder.layer[11])
    record("dino_all", backbone.layernorm)
    encoder = model.gs_predictor.encoder.transformer_encoder
    record("enc_conv", encoder.conv, tokens_last)
    record("enc_ln1", encoder.layernorm1)
    record("enc_block0_attn", encoder.get_submodule("transformer.resblocks.0.attn"))
    record("enc_block0", encoder.transformer.resblocks[0])
    record("enc_block9", encoder.transformer.resblocks[9])
    upsampler = model.gs_predictor.gaussian_upsampler
    record("ups_ps0", upsampler.get_submodule("upsampler_0"), first)
    record("ups_at0b0", upsampler.get_submodule("attention_0.resblocks.0"), first)
    record("ups_at0b1", upsampler.get_submodule("attention_0.resblocks.1"), first)
    record("ups_ps1", upsampler.get_submodule("upsampler_1"), first)
    record("ups_at1b1", upsampler.get_submodule("attention_1.resblocks.1"), first)
    decoder = model.decoder.transformer_decoder
    record("dec_condln", decoder.condition_ln)
    record("dec_ln1", decoder.layernorm1)
    block = decoder.transformer.resblocks[0]
    record("dec_block0_self", block.get_submodule("self_attn"))
    record("dec_block0_cross", block.get_submodule("cross_attn"))
    record("dec_block0", block)
    record("dec_block9", decoder.transformer.resblocks[9])
    record("dec_all", decoder.layernorm2)
    record("up_dynamic", model.gaussian_upsampler)
    record("encoder_proj_0", model.encoder_proj, lambda x: x[:, 0])

    rgb, depth = keyed_frames("a")
    frames = np.concatenate([rgb, normalise_depth(depth)[..., None]], axis=-1)
    rgbd = torch.from_numpy(frames).permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens, features, gaussians = model.encode(rgbd)
        patches = condition(rgbd[:, :3])
        motion, fade = model.deform(tokens[None], features[None], patches[None])
    found |= {"gaussians": gaussians.numpy(), "motion": motion[0].numpy(), "fade": fade[0].numpy()}
    found["dec_tokens"] = found.pop("dec_all")[0]
    dino = found.pop("dino_all")
    up_dynamic = found.pop("up_dynamic")
    for frame in range(2):
        found[f"enc_tokens_{frame}"] = tokens[frame].numpy()
        found[f"up_static_{frame}"] = features[frame].numpy()
        found[f"up_dynamic_{frame}"] = up_dynamic[frame]
        found[f"dino_patch_{frame}"] = patches[frame].numpy()
        found[f"dino_cls_{frame}"] = dino[frame, :1]
        g = gaussians[frame].numpy()
        found[f"gs{frame}_xyz"] = np.stack([g[:, 0:3], motion[0, frame].numpy()], axis=1)
        found[f"gs{frame}_rgb"] = g[:, 3:6]
        found[f"gs{frame}_scale"] = g[:, 6:8]
        found[f"gs{frame}_opacity"] = np.concatenate([g[:, 8:9], fade[0, frame].numpy()], axis=1)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Array]]:
    path = tmp_path_factory.mktemp("parity") / "published.safetensors"
    _write_checkpoint(path)
    model = StreamSplat(preset("base")).eval()
    load_weights(model, path)
    path.unlink()  # 730 MB
    yield _run(model, _keyed_dino())


def relative_l2(value: Array, reference: Array) -> float:
    reference = reference.astype(np.float64)
    return float(np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference))


def _check_statistics(name: str, value: Array, expected: Array) -> None:
    mean, std, low, high, norm = expected
    v = value.astype(np.float64)
    size = norm / np.sqrt(v.size)
    assert abs(np.linalg.norm(v) - norm) <= TOLERANCE * norm, name
    assert abs(v.mean() - mean) <= TOLERANCE * size, name
    assert abs(v.std() - std) <= 2 * TOLERANCE * size, name
    assert abs(v.min() - low) <= EXTREME_TOLERANCE and abs(v.max() - high) <= EXTREME_TOLERANCE, name


# The published output carries rotations; with the released options they are constant, so the model has none.
CONSTANT = {"gs0_rot", "gs1_rot"}
PAIR_NAMES = sorted(set(PAIR_META["subsample"]) - CONSTANT)
DEBUG_NAMES = sorted(k for k, v in DEBUG_META.items() if isinstance(v, dict))


def test_every_golden_tensor_is_compared() -> None:
    names = {k for k in (*PAIR.files, *DEBUG.files) if "__" not in k}
    stored = names - {"pe_div_term", "pe_rows", "pe_row_index", "meta_json"}
    assert stored == {*PAIR_NAMES, *DEBUG_NAMES, *CONSTANT}
    for name in CONSTANT:
        constant = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]], np.float32)
        assert np.array_equal(PAIR[name], np.broadcast_to(constant, PAIR[name].shape))


def test_position_tables(found: dict[str, Array]) -> None:
    div_term = torch.from_numpy(PAIR["pe_div_term"])
    table = sinusoidal_table(2304, 768, div_term).numpy()
    assert np.abs(table[PAIR["pe_row_index"]] - PAIR["pe_rows"]).max() <= 1e-6
    # The frequencies computed here may round differently from the stored ones, by one unit in the last place.
    own = sinusoidal_table(2304, 768).numpy()
    assert np.abs(own - table).max() <= 4e-4


@pytest.mark.parametrize("name", PAIR_NAMES)
def test_pair(found: dict[str, Array], name: str) -> None:
    value = found[name]
    assert value.shape == tuple(PAIR[f"{name}__shape"])
    picked = value[tuple(slice(start, None, step) for start, step in PAIR_META["subsample"][name])]
    assert picked.shape == PAIR[name].shape
    error = relative_l2(picked, PAIR[name])
    print(f"{name}: relative L2 {error:.2e}")
    assert error <= TOLERANCE
    _check_statistics(name, value, PAIR[f"{name}__stats"])


@pytest.mark.parametrize("name", DEBUG_NAMES)
def test_intermediate(found: dict[str, Array], name: str) -> None:
    value, entry = found[name], DEBUG_META[name]
    assert value.shape == tuple(entry["shape"])
    picked = value[:, :: entry["token_step"], :: entry["channel_step"]]
    assert picked.shape == DEBUG[name].shape
    error = relative_l2(picked, DEBUG[name])
    print(f"{name}: relative L2 {error:.2e}")
    assert error <= TOLERANCE
    _check_statistics(name, value, DEBUG[f"{name}__stats"])


def _splats(found: dict[str, Array], t: float) -> Splats:
    count = found["gaussians"].shape[1]
    splats = Splats.allocate(2 * count)
    splats.count = 2 * count
    for frame in range(2):
        gaussians, motion, fade = (found[k][frame] for k in ("gaussians", "motion", "fade"))
        evaluate_at(gaussians, motion, fade, t - frame, "published", splats, frame * count)
    return splats


class _Pixel(NamedTuple):
    """What is drawn at a pixel, front to back: alpha, view depth, and colour of each Gaussian."""

    alpha: Array
    depth: Array
    rgb: Array


def _pixel(splats: Splats, row: int, col: int) -> _Pixel:
    """In float64 from REFERENCE.md section 3; ordered by float32 depth, then index."""
    n, view = splats.count, View.canonical()
    x, y, depth = (splats.means[:n].astype(np.float64) @ view.rotation.T.astype(np.float64)).T
    centre = np.stack([((x + 1) * 512 - 1) / 2, ((y + 1) * 288 - 1) / 2])
    variance = (splats.scales[:n, [0, 2]].T.astype(np.float64) * [[256], [144]]) ** 2 + 0.3
    middle, det = variance.mean(0), variance.prod(0)
    radius = np.ceil(3 * np.sqrt(middle + np.sqrt(np.maximum(0.1, middle**2 - det))))
    tile = np.array([[col // 16], [row // 16]])
    covers = (tile >= np.trunc((centre - radius) / 16)) & (tile < np.trunc((centre + radius + 15) / 16))
    alpha = splats.opacity[:n] * np.exp(-((centre - [[col], [row]]) ** 2 / variance).sum(0) / 2)
    drawn = np.flatnonzero(covers.all(0) & (depth > 0) & (alpha >= 1 / 255))
    drawn = drawn[np.argsort(depth[drawn].astype(np.float32), kind="stable")]
    return _Pixel(np.minimum(0.99, alpha[drawn]), depth[drawn], splats.rgb[drawn].astype(np.float64))


def _tied(pixel: _Pixel) -> Array:
    """Places i where Gaussians i and i + 1 have one depth but for rounding: four units in the last place."""
    return np.flatnonzero(np.diff(pixel.depth) <= 4 * np.spacing(pixel.depth[1:].astype(np.float32)))


def _stop(pixel: _Pixel) -> int:
    """The first Gaussian that is not drawn any more, because too little would shine through."""
    through = np.cumprod(1 - pixel.alpha)
    return int(np.argmax(through < 1e-4)) if through[-1] < 1e-4 else len(through)


def _colour(pixel: _Pixel) -> Array:
    """Composited over grey, as the golden images are."""
    stop = _stop(pixel)
    alpha = pixel.alpha[:stop]
    through = np.concatenate([[1.0], np.cumprod(1 - alpha)])
    return np.asarray((through[:-1] * alpha) @ pixel.rgb[:stop] + 0.5 * through[-1])


def _order_decides(splats: Splats, row: int, col: int, golden: Array) -> bool:
    """Whether a tie of depth explains the reference's value: drawing stops at it, or exchanging the two
    Gaussians gives that very colour."""
    pixel = _pixel(splats, row, col)
    ties = _tied(pixel)
    if _stop(pixel) - 1 in ties:
        return True
    for i in ties if golden.shape == (3,) else ():
        order = np.arange(len(pixel.alpha))
        order[[i, i + 1]] = i + 1, i
        if np.abs(_colour(_Pixel(*(x[order] for x in pixel))) - golden).max() <= IMAGE_TOLERANCE:
            return True
    return False


def _check_image(name: str, image: Array, splats: Splats) -> None:
    fragile = END[f"{name.split('_')[0]}_fragile"].copy()
    difference = np.abs(image[::4, ::4] - END[name]).reshape(*fragile.shape, -1).max(axis=-1)
    # The file's mask belongs to the reference's own inputs. Ours differ by rounding, which depends on the
    # processor and can exchange two Gaussians: allowed at few pixels, only where it is shown to matter.
    off = np.argwhere((difference > IMAGE_TOLERANCE) & ~fragile)
    assert len(off) <= 0.005 * fragile.size, f"{name}: {len(off)} pixels off"
    for row, col in off:
        fragile[row, col] = _order_decides(splats, 4 * int(row), 4 * int(col), END[name][row, col])
    worst = difference[~fragile].max()
    print(f"{name}: largest difference {worst:.2e}, {difference.max():.2e} in fragile pixels")
    assert worst <= IMAGE_TOLERANCE and difference.max() <= FRAGILE_TOLERANCE
    mean, norm = END[f"{name}__stats"][[0, 4]]
    v = image.astype(np.float64)
    assert v.mean() == pytest.approx(mean, rel=1e-6) and np.linalg.norm(v) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("index", range(4))
def test_end_to_end(found: dict[str, Array], index: int) -> None:
    """Positions, opacities and images at four times, by the runtime's arithmetic and both rasterizers."""
    t, key = float(END[f"t{index}_time"]), f"t{index}"
    splats = _splats(found, t)
    means = splats.means[::37]
    assert np.abs(means[:, [0, 2]] - END[f"{key}_means"][:, [0, 2]]).max() <= 2e-6
    assert np.allclose(means[:, 1], END[f"{key}_means"][:, 1], rtol=1e-5, atol=0)
    assert np.abs(splats.opacity[::37] - END[f"{key}_opacity"]).max() <= 2e-6
    assert np.abs(splats.scales[::37] - END[f"{key}_scales"]).max() <= 1e-6

    buffers = Rasterizer(288, 512).render(splats)
    assert buffers.stats.culled_behind == END_CHECKS[key]["behind"]
    assert buffers.stats.pairs == pytest.approx(END_CHECKS[key]["instances"], rel=1e-5)
    pair = [torch.from_numpy(found[k])[None] for k in ("gaussians", "motion", "fade")]
    rendered = render_pair(
        pair[0], pair[1], pair[2], torch.tensor([[t]]), torch.full((1, 3), 0.5), (288, 512), "published"
    )
    for i, name in enumerate(("rgb", "depth", "alpha")):
        _check_image(f"{key}_{name}", getattr(buffers, name), splats)
        _check_image(f"{key}_{name}", rendered[i][0, 0].numpy(), splats)
