"""The architecture of REFERENCE.md section 1 in plain NumPy float64, written independently of `training/`.

One frame or pair at a time, loops instead of batched reshapes, weights by their published names. `Altered`
switches on the mistakes of REFERENCE.md section 10, so that tests can show that they would be noticed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Altered:
    """Deliberate mistakes; the defaults are the published model."""

    roll: Literal["odd", "even", "none"] = "odd"
    square_windows: bool = False
    encoder_position: Literal["interleaved", "halves", "none"] = "interleaved"
    first_norm: bool = True
    swap_condition: bool = True
    condition_position: bool = True
    cls_exchanged: bool = False
    normalise_keys: bool = False
    position_embedding: bool = True
    motion_factor: float = 0.999

    def changes(self) -> list[str]:
        """What differs from the published model."""
        return [f"{k}={v}" for k, v in asdict(self).items() if v != getattr(Altered, k)]


PUBLISHED = Altered()


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


class NumpyModel:
    """Forward pass with the sizes of `config` and the weights `weights` (parameters only)."""

    def __init__(self, config: Any, weights: Weights, altered: Altered = PUBLISHED) -> None:
        self.c = config
        self.w = {k: np.asarray(v, np.float64) for k, v in weights.items()}
        self.altered = altered

    # -- pieces

    def linear(self, name: str, x: Array) -> Array:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, name: str, x: Array) -> Array:
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * self.w[f"{name}.weight"]

    def mlp(self, name: str, x: Array) -> Array:
        return self.linear(f"{name}.c_proj", silu(self.linear(f"{name}.c_fc", x)))

    def attention(self, name: str, x: Array, source: Array) -> Array:
        weight, bias = self.w[f"{name}.packed_proj.weight"], self.w[f"{name}.packed_proj.bias"]
        d = x.shape[1]
        q = x @ weight[:d].T + bias[:d]
        k = source @ weight[d : 2 * d].T + bias[d : 2 * d]
        v = source @ weight[2 * d :].T + bias[2 * d :]
        out = np.empty_like(q)
        width = min(self.c.head_dim, d)
        for start in range(0, d, width):
            head = slice(start, start + width)
            scores = q[:, head] @ k[:, head].T / math.sqrt(width)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = scores / scores.sum(axis=1, keepdims=True) @ v[:, head]
        return self.linear(f"{name}.out_proj", out)

    def positions(self, count: int, kind: str = "interleaved") -> Array:
        table = np.zeros((count, self.c.dim))
        half = self.c.dim // 2
        for i in range(half):
            angle = np.arange(count) * math.exp(2 * i * (-math.log(10000.0) / self.c.dim))
            at = (2 * i, 2 * i + 1) if kind == "interleaved" else (i, half + i)
            table[:, at[0]], table[:, at[1]] = np.sin(angle), np.cos(angle)
        return table if kind != "none" else 0.0 * table

    # -- one frame

    def encoder(self, rgbd: Array) -> Array:
        """[4, H, W] -> [N, D]."""
        base = "gs_predictor.encoder.transformer_encoder"
        kernel, p = self.w[f"{base}.conv.weight"].reshape(self.c.dim, -1), self.c.patch
        x = np.array(
            [
                kernel @ rgbd[:, row : row + p, col : col + p].reshape(-1)
                for row in range(0, self.c.height, p)
                for col in range(0, self.c.width, p)
            ]
        )
        x = x + self.positions(len(x), self.altered.encoder_position)
        if self.altered.first_norm:
            x = self.norm(f"{base}.layernorm1", x)
        else:
            x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5)
        for i in range(self.c.encoder_depth):
            block = f"{base}.transformer.resblocks.{i}"
            y = self.norm(f"{block}.layernorm1", x)
            x = x + self.attention(f"{block}.attn", y, y)
            x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.layernorm2", x))
        return self.norm(f"{base}.layernorm2", x)

    def _windows(self, grid: tuple[int, int], window: int) -> list[NDArray[np.intp]]:
        """Token indices of every attention window."""
        index = np.arange(grid[0] * grid[1])
        if not self.altered.square_windows:
            return list(index.reshape(-1, window))
        side = math.isqrt(window)
        square = index.reshape(grid)
        return [
            square[r : r + side, c : c + side].reshape(-1)
            for r in range(0, grid[0], side)
            for c in range(0, grid[1], side)
        ]

    def upsampler(self, base: str, x: Array) -> Array:
        """[N, D] -> [G, F]."""
        rows, cols = self.c.height // self.c.patch, self.c.width // self.c.patch
        for stage, (window, depth) in enumerate(
            zip(self.c.upsample_windows, self.c.upsample_blocks, strict=True)
        ):
            wide = self.linear(f"{base}.upsampler_{stage}.residual_fc", x).reshape(rows, cols, -1)
            fine = np.empty((2 * rows, 2 * cols, wide.shape[2] // 4))
            for i in range(2):
                for j in range(2):
                    fine[i::2, j::2] = wide[:, :, 2 * i + j :: 4]
            rows, cols = 2 * rows, 2 * cols
            x = fine.reshape(rows * cols, -1)
            for number in range(depth):
                block = f"{base}.attention_{stage}.resblocks.{number}"
                rolled = {"odd": number % 2 == 1, "even": number % 2 == 0, "none": False}[self.altered.roll]
                shift = window // 2 if rolled else 0
                y = np.roll(self.norm(f"{block}.layernorm1", x), shift, axis=0)
                attended = np.empty_like(y)
                for tokens in self._windows((rows, cols), window):
                    attended[tokens] = self.attention(f"{block}.attn", y[tokens], y[tokens])
                x = x + np.roll(attended, -shift, axis=0)
                x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.layernorm2", x))
        return self.norm(f"{base}.layernorm2", x)

    def static_heads(self, features: Array) -> Array:
        """[G, F] -> [G, 9]."""
        head = "gs_predictor.predictor.gs_layer"
        factor = 2 ** len(self.c.upsample_windows)
        rows, cols = factor * self.c.height // self.c.patch, factor * self.c.width // self.c.patch
        offset = np.tanh(self.linear(f"{head}.xyz_static", features))
        out = np.empty((rows * cols, 9))
        for g in range(rows * cols):
            row, col = divmod(g, cols)
            out[g, 0] = -1 + (2 * col + 1) / cols + offset[g, 0] / cols
            out[g, 1] = 0.5 + 0.5 * offset[g, 1]
            out[g, 2] = 1 - (2 * row + 1) / rows + offset[g, 2] / rows
        out[:, 3:6] = sigmoid(self.linear(f"{head}.rgb", features))
        out[:, 6:8] = 0.1 * np.log1p(np.exp(self.linear(f"{head}.scale", features)))
        out[:, 8:9] = 0.05 + 0.95 * sigmoid(self.linear(f"{head}.opacity", features))
        return out

    def encode(self, rgbd: Array) -> tuple[Array, Array, Array]:
        tokens = self.encoder(rgbd)
        features = self.upsampler("gs_predictor.gaussian_upsampler", tokens)
        return tokens, features, self.static_heads(features)

    # -- a pair

    def decoder(self, tokens: Sequence[Array], condition: Sequence[Array]) -> tuple[Array, Array]:
        base = "decoder.transformer_decoder"
        n = len(tokens[0])
        other = (1, 0) if self.altered.swap_condition else (0, 1)
        source = []
        for frame in other:
            y = self.linear(f"{base}.condition_proj", condition[frame])
            y = y + self.positions(len(y)) if self.altered.condition_position else y
            source.append(self.norm(f"{base}.condition_ln", y))
        x = np.concatenate(tokens)
        if self.altered.position_embedding:
            x = x + self.w[f"{base}.positional_embedding"][0]
        cls = self.w[f"{base}.cls_embedding"][0]
        cls = cls[::-1] if self.altered.cls_exchanged else cls
        x = x + np.concatenate([np.tile(cls[0], (n, 1)), np.tile(cls[1], (n, 1))])
        x = self.norm(f"{base}.layernorm1", x)
        for i in range(self.c.decoder_depth):
            block = f"{base}.transformer.resblocks.{i}"
            y = self.norm(f"{block}.self_attn_ln", x)
            x = x + self.attention(f"{block}.self_attn", y, y)
            y = self.norm(f"{block}.cross_attn_ln", x)
            keys = source
            if self.altered.normalise_keys:
                keys = [self.norm(f"{block}.cross_attn_ln", s) for s in source]
            cross = f"{block}.cross_attn"
            x = x + np.concatenate(
                [self.attention(cross, y[:n], keys[0]), self.attention(cross, y[n:], keys[1])]
            )
            x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.mlp_ln", x))
        x = self.norm(f"{base}.layernorm2", x)
        return x[:n], x[n:]

    def _head(self, name: str, x: Array) -> Array:
        base = f"gs_dynamic_predictor.gs_layer.{name}.layers"
        x = silu(self.linear(f"{base}.1", x))
        return self.linear(f"{base}.7", silu(self.linear(f"{base}.4", x)))

    def deform(
        self, tokens: Sequence[Array], features: Sequence[Array], condition: Sequence[Array]
    ) -> tuple[Array, Array]:
        """Motion [2, G, 3] and fade [2, G, 2]."""
        motion, fade = [], []
        for decoded, static in zip(self.decoder(tokens, condition), features, strict=True):
            dynamic = self.upsampler("gaussian_upsampler", decoded)
            joined = np.concatenate([self.linear("encoder_proj", static), dynamic], axis=1)
            direction = np.tanh(self._head("xyz_dynamic", joined))
            motion.append(self.altered.motion_factor * direction * np.array([0.5, 0.1, 0.5]))
            raw = self._head("opacity_dynamic", joined)
            fade.append(np.stack([np.maximum(raw[:, 0], 0.0), sigmoid(raw[:, 1])], axis=1))
        return np.stack(motion), np.stack(fade)
