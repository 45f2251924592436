"""Model presets. `base` is the published model; the others are smaller instances of the same code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from .fields import check_names, check_types

# A configuration comes with a checkpoint. A damaged one is refused here, before the machine runs out of
# memory or makes layers for ever. The published model has 0.3 billion weights.
_SIDE_MAX = 16384
_BLOCKS_MAX = 1024
_WEIGHTS_MAX = 10_000_000_000
_GAUSSIANS_MAX = 2**26


@dataclass(frozen=True)
class ModelConfig:
    """Size and switches of one StreamSplat model; ValueError where they do not fit together.

    Attributes:
        name: the preset's.
        height, width: model resolution in pixels; multiples of `patch`.
        patch: side of a patch in pixels; one token per patch.
        dim: token width D.
        head_dim: width of one attention head (published: 64).
        encoder_depth, decoder_depth: transformer blocks of the static encoder and of the dynamic decoder.
        upsample_windows: attention window in tokens of each x2 upsampling stage. The Gaussian grid is
            (height, width) / patch * 2**len(upsample_windows): two stages at patch 8 give one Gaussian per
            2x2 pixels (published), three give one per pixel.
        upsample_blocks: transformer blocks of each upsampling stage (published: 2, 2); odd ones roll their
            windows by half.
        condition: "dino" (published: DINOv2 ViT-B/14 tokens of the other frame), "tokens" (the published
            switch `use_dino = False`: the other frame's encoder tokens) or "conv" (a small convolutional
            network trained with the decoder, `matching.ConvCondition`).
        condition_dim, condition_len: width and number of condition tokens (for "tokens": 0, or dim and N;
            for "conv" the number follows from the size: 0).
        decoder: "attention" (published) or "matching" (motion from correlation, see `matching.py`).
        colour: "absolute" (published: a head says the colour) or "residual" (a learned 7x7 filter of the
            frame about the Gaussian's cell, and a head says the difference).
        depth_levels: 0 (published: a head says the inverse depth of every Gaussian), or the number of levels
            to which that of the input's depth channel is rounded.
        depth_span: how much of inverse depth y in [0, 1] these levels take, about its middle; at most 0.8.
            The depths of two frames never agree everywhere; the smaller the span is against motion along y,
            the less often they decide which frame's Gaussians are in front.
        dynamic_scalar: largest motion over a pair along (x, y, z) in canonical units.
        depth_mapping: "published" (1 / (0.2 + 9.8 y)) or "paper" (2 / (1 + y)).
        depth_input: what fills the depth channel: "zeros" (nothing; the head makes depth from colours),
            "stage" (published: Depth Anything V2) or "conv" (a small network of the model's own,
            `conv_depth.ConvDepth`).
        key_frame_gap: source frames from one key frame to the next the model was trained for.
    """

    name: str
    height: int
    width: int
    patch: int
    dim: int
    head_dim: int
    encoder_depth: int
    decoder_depth: int
    upsample_windows: tuple[int, ...]
    upsample_blocks: tuple[int, ...] = (2, 2)
    condition: Literal["dino", "tokens", "conv"] = "tokens"
    condition_dim: int = 0
    condition_len: int = 0
    decoder: Literal["attention", "matching"] = "attention"
    colour: Literal["absolute", "residual"] = "absolute"
    depth_levels: int = 0
    depth_span: float = 0.8
    dynamic_scalar: tuple[float, float, float] = (0.5, 0.1, 0.5)
    depth_mapping: Literal["published", "paper"] = "published"
    depth_input: Literal["zeros", "stage", "conv"] = "zeros"
    key_frame_gap: int = 4

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("height", "width", "patch", "dim", "head_dim", "key_frame_gap"):
            if getattr(self, name) < 1:
                raise ValueError(f"field {name!r} must be 1 or more, not {getattr(self, name)}")
        for name in ("encoder_depth", "decoder_depth", "condition_dim", "condition_len", "depth_levels"):
            if getattr(self, name) < 0:
                raise ValueError(f"field {name!r} must be 0 or more, not {getattr(self, name)}")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"{self.height}x{self.width} is not a multiple of the patch size {self.patch}")
        self._check_extent()
        self._check_widths()
        self._check_windows()
        self._check_condition()
        self._check_depth()

    def _check_extent(self) -> None:
        blocks = self.encoder_depth + self.decoder_depth + sum(self.upsample_blocks)
        # A lower bound: of a block of width D, attention has at least 4 D^2.
        weights = 4 * (self.encoder_depth + self.decoder_depth) * self.dim**2 + self.dim * self.condition_dim
        for name, value, limit in (
            ("pixels along a side", max(self.height, self.width), _SIDE_MAX),
            ("transformer blocks", max(blocks, len(self.upsample_windows)), _BLOCKS_MAX),
            ("weights", weights + self.dim**2, _WEIGHTS_MAX),
            ("Gaussians per key frame", self.gaussians, _GAUSSIANS_MAX),
            ("condition tokens", self.condition_len, _GAUSSIANS_MAX),
        ):
            if value > limit:
                raise ValueError(f"a model of {value:.3g} {name} is too large, the limit is {limit:.3g}")

    def _check_widths(self) -> None:
        stages = len(self.upsample_windows)
        unit = 2 ** (stages + 1)
        if self.dim % unit:
            raise ValueError(f"field 'dim' is {self.dim}; {stages} upsamplings need a multiple of {unit}")
        if self.dim % self.head_dim:
            raise ValueError(f"width {self.dim} does not split into heads of {self.head_dim}")
        for stage in range(1, stages + 1):
            width = self.dim // 2**stage
            if width % min(self.head_dim, width):
                raise ValueError(f"width {width} does not split into heads of {self.head_dim}")

    def _check_windows(self) -> None:
        if len(self.upsample_blocks) != len(self.upsample_windows):
            raise ValueError("upsample_blocks and upsample_windows need one entry per upsampling stage")
        if any(blocks < 0 for blocks in self.upsample_blocks):
            raise ValueError(f"field 'upsample_blocks' holds a negative number: {self.upsample_blocks}")
        tokens = self.tokens
        for window in self.upsample_windows:
            tokens *= 4
            if window < 2 or tokens % window or window % 2:
                raise ValueError(
                    f"{tokens} upsampled tokens do not split into windows of {window} (even) tokens"
                )

    def _check_condition(self) -> None:
        size, own = (self.condition_dim, self.condition_len), (self.dim, self.tokens)
        if self.condition == "dino" and 0 in size:
            raise ValueError("condition 'dino' needs condition_dim and condition_len")
        if self.condition == "tokens" and size not in ((0, 0), own):
            raise ValueError(f"condition_dim, condition_len of 'tokens' are 0, 0 or {own}, not {size}")
        if (self.condition == "conv") != (self.decoder == "matching"):
            raise ValueError("condition 'conv' and decoder 'matching' need each other")
        if self.condition == "conv":
            self._check_matching()

    def _check_depth(self) -> None:
        if self.depth_levels and self.depth_input == "zeros":
            raise ValueError("depth_levels needs a depth_input other than 'zeros'")
        if not 0 < self.depth_span <= 0.8:
            raise ValueError(f"field 'depth_span' must be above 0 and at most 0.8, not {self.depth_span}")
        if self.depth_input == "conv" and (self.height % 16 or self.width % 16):
            raise ValueError(
                f"depth_input 'conv' needs sides that are multiples of 16, not {self.height}x{self.width}"
            )

    def _check_matching(self) -> None:
        if self.condition_dim < 2 or self.condition_dim % 2 or self.condition_len:
            raise ValueError("condition 'conv' needs an even condition_dim, and condition_len 0")
        if self.height % 16 or self.width % 16:
            raise ValueError(
                f"decoder 'matching' needs sides that are multiples of 16, not {self.height}x{self.width}"
            )
        if self.patch != 8:
            raise ValueError(f"decoder 'matching' needs patch 8, not {self.patch}")
        factors = {(4 * rows // self.height, 4 * cols // self.width) for rows, cols in [self.grid]}
        if factors not in ({(1, 1)}, {(2, 2)}, {(4, 4)}):
            raise ValueError("decoder 'matching' needs one Gaussian per 4x4, 2x2 or 1x1 pixels")

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch, self.width // self.patch

    @property
    def tokens(self) -> int:
        rows, cols = self.token_grid
        return rows * cols

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the Gaussian grid of one key frame."""
        rows, cols = self.token_grid
        factor = 2 ** len(self.upsample_windows)
        return rows * factor, cols * factor

    @property
    def gaussians(self) -> int:
        """Gaussians per key frame, G."""
        return self.grid[0] * self.grid[1]

    @property
    def feature_dim(self) -> int:
        """Width F of the upsampled features."""
        return int(self.dim // 2 ** len(self.upsample_windows))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        """Build from a dict, with lists where the fields are tuples.

        Raises:
            ValueError: an unknown field (the closest valid one is named), or one that cannot be used.
            TypeError: a field is missing.
        """
        check_names(values, [f.name for f in fields(ModelConfig)], "model field")
        as_tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return ModelConfig(**as_tuples)


PRESETS: dict[str, ModelConfig] = {
    "base": ModelConfig(
        name="base",
        height=288,
        width=512,
        patch=8,
        dim=768,
        head_dim=64,
        encoder_depth=10,
        decoder_depth=10,
        upsample_windows=(2304, 2304),
        condition="dino",
        condition_dim=768,
        condition_len=576,
        depth_input="stage",
        key_frame_gap=3,
    ),
    "tiny": ModelConfig(
        name="tiny",
        height=144,
        width=256,
        patch=8,
        dim=128,
        head_dim=64,
        encoder_depth=3,
        decoder_depth=3,
        upsample_windows=(128, 64, 64),
        upsample_blocks=(2, 1, 0),
        condition="conv",
        condition_dim=32,
        decoder="matching",
        colour="residual",
        depth_levels=32,
        depth_span=0.4,
        depth_input="conv",
    ),
}
PRESETS["small"] = replace(
    PRESETS["tiny"],
    name="small",
    height=288,
    width=512,
    encoder_depth=4,
    decoder_depth=4,
)


def preset(name: str, /, **overrides: Any) -> ModelConfig:
    """The preset called `name`, with fields replaced.

    Raises:
        ValueError: no such preset or field, or a value that cannot be used.
    """
    check_names([name], PRESETS, "preset")
    return ModelConfig.from_dict({**PRESETS[name].to_dict(), **overrides})
