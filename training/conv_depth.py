"""A small network for inverse depth: the `depth` stage of the small presets.

The published pipeline takes the depth channel from Depth Anything V2, which costs more than all the rest of a
small model together. This one sees figure and ground where they were seen in training, and otherwise falls
back on the height in the image; a bundle can be exported with Depth Anything in its place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Relative depth below this spread (of a range of 1) is a flat picture, not detail to be stretched.
_FLAT = 1e-6


def _conv(inputs: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """3x3 convolution, normalised over the batch (which engines fold into the convolution), SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(width),
        nn.SiLU(),
    )


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = _conv(width, width, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class _Down(nn.Sequential):
    """Halve the resolution, then refine."""

    def __init__(self, inputs: int, width: int, dilations: tuple[int, ...] = (1,)) -> None:
        super().__init__(
            _conv(inputs, width, stride=2),
            *(_Residual(width, dilation) for dilation in dilations),
        )


class _Up(nn.Module):
    """Double the resolution of `x` and merge it with `skip`, which has it already."""

    def __init__(self, inputs: int, skip: int) -> None:
        super().__init__()
        self.merge = _conv(inputs + skip, skip)
        self.refine = _Residual(skip)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.refine(self.merge(torch.cat([x, skip], 1)))


class ConvDepth(nn.Module):
    """RGB [B, 3, H, W] in [0, 1] -> inverse depth [B, 1, H, W] in (0, 1), larger is nearer.

    A U-Net down to 1/16 of the resolution, whose coarsest level knows where in the image it is and what the
    whole image looks like; the result has 1/4 of the resolution and is enlarged smoothly, since every step in
    depth changes the order in which Gaussians are drawn. H and W are multiples of 16.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 24, 48, 96)) -> None:
        super().__init__()
        w_2, w_4, w_8, w_16 = widths
        self.down_2 = _conv(3, w_2, stride=2)
        self.down_4 = _Down(w_2, w_4)
        self.down_8 = _Down(w_4, w_8)
        self.down_16 = _Down(w_8, w_16, (1, 2, 4))
        self.place = nn.Conv2d(2, w_16, 1)
        self.scene = nn.Linear(w_16, w_16)
        self.widest = _Residual(w_16)
        self.up_8 = _Up(w_16, w_8)
        self.up_4 = _Up(w_8, w_4)
        self.head = nn.Conv2d(w_4, 1, 3, padding=1)

    def forward(self, rgb: Tensor) -> Tensor:
        x_4 = self.down_4(self.down_2(2 * rgb - 1))
        x_8 = self.down_8(x_4)
        x = self.down_16(x_8)
        scene = self.scene(x.mean((2, 3)))[:, :, None, None]
        x = self.widest(x + F.silu(self.place(_places(x)) + scene))
        x = self.head(self.up_4(self.up_8(x, x_8), x_4))
        return torch.sigmoid(F.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False))


def _places(x: Tensor) -> Tensor:
    """Column and row of each place of [B, C, h, w] from -1 to 1, [1, 2, h, w]."""
    rows = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype, device=x.device)[:, None]
    cols = torch.linspace(-1, 1, x.shape[3], dtype=x.dtype, device=x.device)[None, :]
    return torch.stack([cols.expand(x.shape[2], -1), rows.expand(-1, x.shape[3])])[None]


def normalised(inv_depth: Tensor, frames: int = 1) -> Tensor:
    """[B, 1, H, W] scaled to [0, 1], as the runtime does; what is flat becomes zero.

    Args:
        frames: consecutive ones that share a range. In a stream the range runs along, so that those of a pair
            have nearly the same; with a range for each, depth would differ between them where nothing moves.
    """
    groups = inv_depth.unflatten(0, (-1, frames))
    low, high = groups.amin((1, 3, 4), keepdim=True), groups.amax((1, 3, 4), keepdim=True)
    spread = high - low
    scaled = torch.where(spread > _FLAT, (groups - low) / spread.clamp(min=_FLAT), 0.0)
    return scaled.flatten(0, 1)


def slopes_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean |grad(prediction - target)| of [B, 1, h, w] over x and y and four scales (steps of 1, 2, 4, 8 px).

    Edges of depth are few pixels, which a mean of differences alone would blur.
    """
    error = prediction - target
    total = error.new_zeros(())
    for step in (1, 2, 4, 8):
        total = total + (error[:, :, step:] - error[:, :, :-step]).abs().mean()
        total = total + (error[..., step:] - error[..., :-step]).abs().mean()
    return total / 4
