"""The depth network of the small presets as a stage."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ..training.conv_depth import ConvDepth


class ConvDepthStage(nn.Module):
    """rgb [1, 3, H, W] -> depth [1, 1, H, W]: relative inverse depth of the model's own network."""

    def __init__(self, network: ConvDepth, height: int, width: int) -> None:
        """A copy of `network` whose normalisations are folded into the convolutions before them."""
        super().__init__()
        self.model = copy.deepcopy(network).eval()
        self.input_size = (height, width)
        fold(self.model)
        # One number per pixel, in levels of which the Gaussians are ordered.
        self.full_precision = (self.model.head,)

    def forward(self, rgb: Tensor) -> Tensor:
        depth: Tensor = self.model(rgb)
        return depth.float()


def fold(module: nn.Module) -> None:
    """Fold every normalisation of `module` (in eval mode) that follows a convolution in a row into it."""
    for part in module.modules():
        if isinstance(part, nn.Sequential):
            for i in range(len(part) - 1):
                convolution, norm = part[i], part[i + 1]
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    part[i], part[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
