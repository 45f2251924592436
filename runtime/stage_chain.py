"""The stages of a bundle as one chain: from the prepared inputs of a scene to a key frame and its pair.

`depth`, `condition` and `encode` run once per key frame, `deform` once per pair. All of them read and write
arrays of the scene, so that what is computed for a key frame serves both of its pairs without being copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import engines as backends
from .array import Array, Shape
from .bundle import StageVariant
from .engines import Engine
from .key_frame_ring import LifecycleStats
from .scene import KeyFrameArrays, PairArrays, Scene
from .timing import Laps
from .turns import Turns

if TYPE_CHECKING:
    from .cuda.device import Device

Lap = Callable[[str], None]
"""Called with the name of a stage when it was run (on a GPU: started)."""


def no_lap(_: str) -> None:
    """Nothing is timed, and nothing waited for."""


class StageChain:
    """The engines of a bundle, which the streams of a family share (`Stream.fork`).

    Args:
        engines: by stage name, `encode` and `deform` at least.

    Attributes:
        turns: of the family; everything but `close` is called within one.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)
        self.turns = Turns()
        self._users = 0

    @classmethod
    def load(
        cls,
        variants: Mapping[str, StageVariant],
        engine: str,
        *,
        device: str,
        threads: int,
        precision: str | None,
        memory: Device | None,
    ) -> StageChain:
        """Load the file of every stage; all of them, or none.

        Args:
            variants: by stage name. The others as of `engines.create`.

        Raises:
            EngineError, BundleError: as `engines.create`.
        """
        chain = cls({})
        try:
            for stage, variant in variants.items():
                chain.engines[stage] = backends.create(
                    engine, variant, device=device, threads=threads, precision=precision, memory=memory
                )
        except BaseException:
            chain.close()
            raise
        return chain

    @property
    def shapes(self) -> tuple[dict[str, Shape], Shape | None]:
        """What a scene must know of these stages, see `shapes` below."""
        return shapes(self.engines)

    @property
    def graph_refusal(self) -> str | None:
        """Which stage a CUDA graph cannot hold, and why; None where one can hold them all."""
        for stage, engine in self.engines.items():
            if engine.graph_refusal is not None:
                return f"`{stage}`: {engine.graph_refusal}"
        return None

    def make(
        self, scene: Scene, earlier: KeyFrameArrays | None, time: float, laps: Laps, *, cut: bool
    ) -> LifecycleStats:
        """Make the newest key frame of the scene's loaded image stage by stage, each timed and waited for.

        Args:
            scene, earlier: as of `run`. time, laps, cut: as of `Scene.push`.

        Raises:
            EngineError: a stage failed. The interval is as it was before the call.
        """
        laps.end("preprocess")
        self.run(scene, earlier, scene.life.spare, laps.end)
        stats = scene.spawn(time, cut=cut)
        laps.end("lifecycle")
        return stats

    def run(self, scene: Scene, earlier: KeyFrameArrays | None, later: KeyFrameArrays, lap: Lap) -> None:
        """Compute a key frame from the scene's loaded image, and the pair that it ends.

        Args:
            scene: of the shapes of these stages. earlier: the key frame before it in the same scene of the
                video; None: there is no pair. later: where the key frame is written to. The pair goes to the
                scene's spare pair.

        Raises:
            EngineError: a stage failed.
        """
        self._encode(scene, later, lap)
        if earlier is not None:
            self._deform(earlier, later, scene.life.spare_pair)
            lap("deform")

    def _encode(self, scene: Scene, slot: KeyFrameArrays, lap: Lap) -> None:
        """Everything that is computed once per key frame."""
        if "depth" in self.engines:
            self.engines["depth"].run({"rgb": scene.stage_rgb["depth"]}, {"depth": scene.depth})
            scene.normalise_depth()
            lap("depth")
        if slot.condition is not None:
            self.engines["condition"].run(
                {"rgb": scene.stage_rgb["condition"]}, {"condition": slot.condition}
            )
            lap("condition")
        self.engines["encode"].run(
            {"rgbd": scene.rgbd},
            {"tokens": slot.tokens, "features": slot.features, "gaussians": slot.gaussians},
        )
        lap("encode")

    def _deform(self, earlier: KeyFrameArrays, later: KeyFrameArrays, pair: PairArrays) -> None:
        inputs: dict[str, Array] = {}
        for i, slot in enumerate((earlier, later)):
            inputs[f"tokens_{i}"] = slot.tokens
            inputs[f"features_{i}"] = slot.features
            if slot.condition is not None:
                inputs[f"condition_{i}"] = slot.condition
        self.engines["deform"].run(inputs, {"motion": pair.motion, "fade": pair.fade})

    def reserve(self) -> None:
        """Make room for one more user, who has arrays of its own; see `Engine.reserve`."""
        for engine in self.engines.values():
            engine.reserve(self._users + 1)

    def acquire(self) -> StageChain:
        """Count one more user, who calls `release` in the end."""
        self._users += 1
        return self

    def release(self) -> None:
        """Count one user less; the last one closes the engines."""
        self._users -= 1
        if not self._users:
            self.close()

    def close(self) -> None:
        """Close the engines, whoever uses them. Calling twice is harmless."""
        for engine in self.engines.values():
            engine.close()


def shapes(engines: Mapping[str, Engine]) -> tuple[dict[str, Shape], Shape | None]:
    """What a scene must know of the stages: shapes of the inputs of `depth` and `condition`, as far as there
    are such stages, and of the output of `condition`."""
    inputs = {stage: engines[stage].inputs[0].shape for stage in ("depth", "condition") if stage in engines}
    return inputs, engines["condition"].outputs[0].shape if "condition" in engines else None
