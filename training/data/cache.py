"""Media cache: clips, photographs and sprites decoded once into arrays the samplers can memory-map.

Layout of a cache directory (`prepare` writes it, `Cache` reads it):

    index.json                  what is there, with split, shots, real times; and what could not be read
    <clip>.npy                  uint8 [F, H, W, 3] RGB: the usable frames of a clip, shot after shot
    <clip>.depth.npy            float16 [F, H, W] in [0, 1], larger = nearer; where there are depth maps
    <clip>.mask.npy             bool [F, H, W]: what moves by itself; where it is annotated
    <clip>.json                 its entry of the index, so that another call need not decode it again
    photos/<name>.npy           uint8 [h, w, 3] RGB, shorter side about 2 H
    sprites/<name>.npy          uint8 [h, w, 4] RGBA, straight alpha, longer side at most 160

Repeated frames (telecine, frame-rate conversion) are dropped, so a step of one row may be more than one
source frame: `times` holds the real time of every row and is what motion has to be measured against.

    python -m streamsplat_edge.training.data.cache FOLDER CACHE
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import av

from streamsplat_edge.runtime.errors import InputError, StreamSplatError
from streamsplat_edge.runtime.video.output import output_error, write_bytes

from .clips import write_clip
from .layouts import LAYOUTS, read_folder
from .reader import FORMAT, VERSION, Cache, Clip, Shot
from .sources import Source, with_depths
from .stills import write_photos, write_sprites

__all__ = ["Cache", "Clip", "Shot", "main", "prepare"]

MAX_TEXTURES = 100  # clips that lend a frame as texture where the folder has no photographs


def prepare(
    folder: str | Path,
    out_dir: str | Path,
    height: int = 144,
    width: int = 256,
    *,
    layout: str = "auto",
    depth_dir: str | Path | None = None,
    rate: float = 24.0,
    progress: bool = True,
) -> Cache:
    """Decode a folder of training media (see `layouts`) into a cache directory.

    Frames are resized directly (aspect ignored, as the model does), by area averaging to shrink. What cannot
    be read is left out and listed in `Cache.skipped`; of a damaged clip the frames before the damage are
    kept, and its `info["broken"]` says so. Clips already in `out_dir` in this size are kept. Where there are
    no photographs but in the layout "media", first frames of clips are taken as such.

    Args:
        folder: what to decode.
        out_dir: cache directory, created when missing.
        height, width: frame size in the cache, pixels.
        layout: one of `layouts.LAYOUTS`; "auto" detects it.
        depth_dir: folder of precomputed inverse depth, see `sources.with_depths` and
            `labels.read_inverse_depth`.
        rate: frames per second of image sequences in the layout "plain".
        progress: print a line per clip to stderr.

    Raises:
        InputError: the folder matches no layout, its lists do not say what they must, or depth maps do not
            fit the clips.
        OutputError: the cache cannot be written; clips finished before are kept for the next call.
    """
    folder, out = Path(folder), Path(out_dir)
    content = read_folder(folder, layout, rate)
    clips = content.clips if depth_dir is None else with_depths(content.clips, Path(depth_dir))
    try:
        for path in (out, out / "photos", out / "sprites"):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
    index: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "height": height, "width": width,
        "clips": [], "photos": [], "sprites": [], "skipped": [*content.skipped],
    }  # fmt: skip
    textures = _textures(clips, out) if content.layout != "media" and not content.photos else {}
    for source in clips:
        try:
            clip = write_clip(source, out, height, width, textures.get(source.name))
        except (OSError, ValueError, av.error.FFmpegError) as error:
            index["skipped"].append({"name": source.name, "reason": str(error)})
            _say(progress, f"{source.name}: skipped, {error}")
            continue
        index["clips"].append(clip)
        index["skipped"] += clip.get("problems", [])
        if source.name in textures:
            photo = {"name": source.name, "file": f"photos/{source.name}.npy", "split": source.split}
            index["photos"].append(photo)
        _say(progress, _in_words(clip))
    write_photos(content.photos, folder, out, index, short_side=2 * height)
    write_sprites(content.sprites, out, index)
    if not index["clips"] and not index["photos"]:
        reasons = "; ".join(f"{s['name']}: {s['reason']}" for s in index["skipped"][:3])
        raise InputError(f"Nothing in {folder} could be read. {reasons}", "Look at these files.")
    write_bytes(out / "index.json", json.dumps(index).encode())
    return Cache(out)


def _textures(clips: list[Source], out: Path) -> dict[str, Path]:
    """Clips that lend a frame as photograph, spread evenly -> where it is kept."""
    chosen = clips[:: max(1, -(-len(clips) // MAX_TEXTURES))]
    return {source.name: out / "photos" / f"{source.name}.npy" for source in chosen}


def _in_words(clip: dict[str, Any]) -> str:
    info, labels = clip["info"], [label for label in ("depth", "mask") if label in clip]
    damage = f"; damaged ({info['broken']})" if info["broken"] else ""
    carried = f", with {' and '.join(labels)}" if labels else ""
    return f"{clip['name']}: {len(clip['numbers'])} frames kept, {info['repeated']} repeated{carried}{damage}"


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Command line: prepare a cache and say what is in it."""
    parser = argparse.ArgumentParser(description="decode a folder of training media into a cache")
    parser.add_argument(
        "folder", type=Path, help="videos, folders of frames, or a data set; see docs/data.md"
    )
    parser.add_argument("out_dir", type=Path, help="the cache, made or added to")
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layout", choices=("auto", *LAYOUTS), default="auto")
    parser.add_argument("--depth", type=Path, metavar="DIR", help="inverse depth, a folder per clip")
    parser.add_argument("--rate", type=float, default=24.0, help="frames per second of folders of frames")
    arguments = parser.parse_args(argv)
    try:
        cache = prepare(
            arguments.folder,
            arguments.out_dir,
            arguments.height,
            arguments.width,
            layout=arguments.layout,
            depth_dir=arguments.depth,
            rate=arguments.rate,
        )
    except StreamSplatError as error:
        parser.error(str(error))
    for split in ("train", "eval"):
        clips = cache.split(split)
        photos = len(cache.photos(split))
        print(f"{split}: {len(clips)} clips, {sum(map(len, clips))} frames, {photos} photographs")
    print(f"{len(cache.sprites())} sprites, {len(cache.skipped)} skipped")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
