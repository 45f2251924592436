"""LPIPS: the distance of two images in the feature space of a pretrained network, as loss and as metric.

    x' = (2 x - 1 - shift) / scale                          RGB in [0, 1]
    f_l = features of layer l, each pixel divided by (its norm over the channels + 1e-10)
    LPIPS(a, b) = sum over l of mean over pixels of sum over channels of w_l (f_l(a) - f_l(b))^2

R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, version
0.1: five layers of AlexNet or VGG16, with the learned weights w_l >= 0. Weights are read from a file of the
user's; none are shipped or fetched.

The published StreamSplat metric feeds images that are in [-1, 1] already through the step 2 x - 1 once more,
so that its network sees [-3, 1]. Here the range is right: values are not comparable with the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime.errors import InputError

Net = Literal["alex", "vgg"]

# Per convolution: output channels, kernel, stride, padding. All are followed by ReLU.
_ALEX = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
_VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_CONVOLUTIONS = {"alex": _ALEX, "vgg": tuple((width, 3, 1, 1) for width in _VGG_WIDTHS)}
# Convolutions whose ReLU output is compared, those that pool their input first, and the window of the pool.
_COMPARED = {"alex": (0, 1, 2, 3, 4), "vgg": (1, 3, 6, 9, 12)}
_POOLED = {"alex": (1, 2), "vgg": (2, 4, 7, 10)}
_POOL = {"alex": 3, "vgg": 2}
# The smallest side that leaves a pixel in the last layer.
SMALLEST = {"alex": 31, "vgg": 16}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_HINT = "docs/evaluation.md says which tensors the file must hold, and how to make one."


class LPIPS(nn.Module):
    """LPIPS with random weights until they are loaded (`load_lpips`); frozen, but gradients reach the images.

    The state has the names of the weight file: `Conv_<i>.weight` [out, in, k, k] and `Conv_<i>.bias` [out] of
    the convolutions in order (5 of AlexNet, 13 of VGG16), `lin0` to `lin4` [channels].

    Args:
        net: "alex" (the usual metric) or "vgg" (the usual loss).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        self.net = net
        width = 3
        for i, (out, kernel, stride, padding) in enumerate(_CONVOLUTIONS[net]):
            self.add_module(f"Conv_{i}", nn.Conv2d(width, out, kernel, stride, padding))
            width = out
        for i, layer in enumerate(_COMPARED[net]):
            channels = _CONVOLUTIONS[net][layer][0]
            self.register_parameter(f"lin{i}", nn.Parameter(torch.full((channels,), 1 / channels)))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of images.

        Args:
            a, b: float RGB [B, 3, H, W] in [0, 1], H and W at least 31 (alex) or 16 (vgg).

        Returns:
            [B], 0 for equal images.

        Raises:
            InputError: another shape, or images too small for the network.
        """
        if a.shape != b.shape:
            raise InputError(f"LPIPS compares {list(a.shape)} with {list(b.shape)}.")
        return self.distance(self.features(a), self.features(b))

    def features(self, images: Tensor) -> list[Tensor]:
        """What `distance` compares: five normalised maps [B, C, h, w] of images as of `forward`."""
        least = SMALLEST[self.net]
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < least:
            raise InputError(
                f"LPIPS ({self.net}) cannot take images of the shape {list(images.shape)}.",
                f"Give [B, 3, H, W] with sides of at least {least} pixels.",
            )
        x = (2 * images - 1 - self.shift) / self.scale
        maps = []
        for i in range(len(_CONVOLUTIONS[self.net])):
            if i in _POOLED[self.net]:
                x = F.max_pool2d(x, _POOL[self.net], 2)
            x = F.relu(self.get_submodule(f"Conv_{i}")(x))
            if i in _COMPARED[self.net]:
                # The gradient of vector_norm at 0 is 0; that of sqrt(sum of squares) would be NaN.
                maps.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPSILON))
        return maps

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """[B] of two results of `features`; a batch of one counts against every image of the other."""
        total = a[0].new_zeros(())
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            weight = self.get_parameter(f"lin{i}").view(1, -1, 1, 1)
            total = total + ((x - y).square() * weight).sum(1).mean((1, 2))
        return total


def load_lpips(path: Path | str) -> LPIPS:
    """LPIPS with the weights of a safetensors file, whose names tell the network.

    Raises:
        InputError: the file cannot be read, or its tensors are not exactly those of one of the networks.
    """
    try:
        state = load_file(str(path))
    except (OSError, SafetensorError) as error:
        reason = "there is no such file" if not Path(path).exists() else str(error)
        raise InputError(f"{path}: LPIPS weights cannot be read ({reason}).", _HINT) from None
    model = LPIPS("vgg" if f"Conv_{len(_ALEX)}.weight" in state else "alex")
    _check_state(path, state, model)
    model.load_state_dict(state)
    return model


def _check_state(path: Path | str, state: Mapping[str, Tensor], model: LPIPS) -> None:
    wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
    found = {name: list(value.shape) for name, value in state.items()}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    problems += [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    problems += [
        f"{name} holds values that are not finite"
        for name, value in state.items()
        if not torch.isfinite(value.float()).all()
    ]
    if problems:
        raise InputError(
            f"{path}: not the weights of LPIPS with {model.net}: {'; '.join(problems[:20])}.", _HINT
        )
