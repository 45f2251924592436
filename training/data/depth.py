"""Depth of a whole cache ahead of training, by Depth Anything V2.

    python -m streamsplat_edge.training.data.depth CACHE --weights PATH

Every frame as it is in the cache goes through the network (the published script gives it the frames in their
full size: for that, bring precomputed maps, `cache --depth`). Inverse depth is scaled per frame by its own
minimum and maximum, as published. Clips that have depth already, from files or from the same weights, are
left as they are, so that a call that was stopped goes on at the clip it had reached.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from streamsplat_edge.runtime.errors import EngineError, InputError, StreamSplatError
from streamsplat_edge.runtime.video.output import write_bytes

from ..depth import DepthAnything, Size, load_depth_anything
from .arrays import Growing
from .labels import scale_inverse_depth
from .reader import Cache, Clip, read_index


def weights_fingerprint(path: Path) -> str:
    """The first 16 digits of the SHA-256 of a weight file, or of the one in a hub folder."""
    file = path / "model.safetensors" if path.is_dir() else path
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def add_depth(
    cache_dir: str | Path,
    network: DepthAnything,
    origin: str,
    *,
    batch: int = 4,
    device: str = "cpu",
    progress: bool = True,
) -> Cache:
    """Compute the inverse depth of all clips that have none and enter it in the index.

    Args:
        cache_dir: the cache.
        network: takes RGB in [0, 1] [B, 3, H, W] to inverse depth [B, 1, H, W].
        origin: what the depth comes from; depth of the same origin is not computed again.
        batch: frames at a time.
        device: of torch.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no cache, or the network gives values that are not finite.
        OutputError: the cache cannot be written; clips finished before are kept for the next call.
    """
    root = Path(cache_dir)
    cache, (index, _) = Cache(root), read_index(root)
    entries = {entry["name"]: entry for entry in index["clips"]}
    todo = [clip for clip in cache.clips if not _done(root, entries[clip.name], origin)]
    network = network.to(device)
    with tqdm(total=sum(map(len, todo)), disable=not progress, desc="depth", unit="frame") as bar:
        for clip in todo:
            bar.set_postfix_str(clip.name, refresh=False)
            depth = _compute(root, clip, network, batch, device, bar)
            # Noted beside the clip at once; the index, which all clips share, is written when all are done.
            record = root / f"{clip.name}.json"
            entry = entries[clip.name]
            entry["depth"] = {**depth, "origin": origin}
            write_bytes(record, json.dumps(entry).encode())
    write_bytes(root / "index.json", json.dumps(index).encode())
    return Cache(root)


def _done(root: Path, entry: dict[str, Any], origin: str) -> bool:
    """Whether a clip has depth from files or of this origin; what only its own record says is entered."""
    if "depth" not in entry:
        try:
            record = json.loads((root / f"{entry['name']}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        same = all(record.get(key) == entry[key] for key in ("size", "numbers"))
        if not same or "depth" not in record:
            return False
        entry["depth"] = record["depth"]
    kept = entry["depth"]["origin"] in (origin, "files")
    return kept and (root / entry["depth"]["file"]).exists()


def _compute(
    root: Path, clip: Clip, network: DepthAnything, batch: int, device: str, bar: Any
) -> dict[str, Any]:
    target = root / f"{clip.name}.depth.npy"
    height, width = clip.frames.shape[1:3]
    with Growing(root / f"{clip.name}.rawdepth.tmp", (height, width), np.float16) as rows, torch.no_grad():
        for start in range(0, len(clip), batch):
            images = np.ascontiguousarray(np.moveaxis(clip.frames[start : start + batch], -1, 1))
            depths = network(torch.from_numpy(images).to(device).float() / 255)[:, 0].float().cpu().numpy()
            if not np.isfinite(depths).all():
                raise InputError(
                    f"The depth of {clip.name} near row {start} is not finite.", "Are the weights intact?"
                )
            for depth in depths:
                rows.append(scale_inverse_depth(depth))
            bar.update(len(depths))
        rows.save_as(target)
    return {"file": target.name, "unknown": []}


def main(argv: list[str] | None = None) -> int:
    """Command line: compute the depth of a cache and say how much there is."""
    parser = argparse.ArgumentParser(description="compute the depth of a cache with Depth Anything V2")
    parser.add_argument("cache", type=Path, help="made by python -m streamsplat_edge.training.data.cache")
    parser.add_argument("--weights", type=Path, required=True, help="original .pth file or local hub folder")
    parser.add_argument(
        "--size", choices=get_args(Size), default="auto", help="refuse weights of another size"
    )
    parser.add_argument("--batch", type=int, default=4, help="frames at a time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args(argv)
    try:
        if arguments.batch < 1:
            raise InputError(f"--batch is {arguments.batch}.", "Give 1 or more.")
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise EngineError("There is no CUDA device that PyTorch can use.", "Leave out --device.")
        Cache(arguments.cache)
        network = load_depth_anything(arguments.weights, arguments.size)
        origin = f"{arguments.weights.name} {weights_fingerprint(arguments.weights)}"
        cache = add_depth(arguments.cache, network, origin, batch=arguments.batch, device=arguments.device)
    except StreamSplatError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the clips that are left.", file=sys.stderr)
        return 130
    known = sum(clip.depth_path is not None for clip in cache.clips)
    print(f"{known} of {len(cache.clips)} clips have depth.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
