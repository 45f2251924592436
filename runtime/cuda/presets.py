"""The presets as far as their memory goes, for advice where a bundle does not fit a GPU.

The presets themselves are those of training (`training/config.py`), which the runtime does not import; a test
compares.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle_schema import ModelConfig


@dataclass(frozen=True)
class Preset:
    """A model and what a stream of it holds.

    Attributes:
        model: sizes. inputs: shapes of the inputs of `depth` and `condition`. condition: shape of the output
            of `condition`. parameters: of all stages together; those of `base` with DINOv2 and the smallest
            Depth Anything V2.
    """

    model: ModelConfig
    inputs: dict[str, tuple[int, ...]]
    condition: tuple[int, ...]
    parameters: int


PRESETS = {
    "tiny": Preset(
        ModelConfig("tiny", 144, 256, 8, (144, 256), 128, 16, depth_input="stage", key_frame_gap=4),
        {"depth": (1, 3, 144, 256), "condition": (1, 3, 144, 256)},
        (1, 2304, 32),
        1_827_991,
    ),
    "small": Preset(
        ModelConfig("small", 288, 512, 8, (288, 512), 128, 16, depth_input="stage", key_frame_gap=4),
        {"depth": (1, 3, 288, 512), "condition": (1, 3, 288, 512)},
        (1, 9216, 32),
        2_025_367,
    ),
    "base": Preset(
        ModelConfig("base", 288, 512, 8, (144, 256), 768, 192, depth_input="stage", key_frame_gap=3),
        {"depth": (1, 3, 518, 924), "condition": (1, 3, 288, 512)},
        (1, 576, 768),
        293_058_639,
    ),
}
