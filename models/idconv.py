"""IDConv, the inception depthwise convolution: local patterns by a square and two long, thin kernels.

IMSE paper, section on IDConv (after InceptionNeXt): it replaces MUSE's deformable embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SQUARE_KERNEL = 3
BAND_KERNEL = 11


class IDConv(nn.Module):
    """Mix the channels, then filter three eighths of them depthwise: `[B, C, T, F]` → the same shape.

    Of the mixed channels, C/8 meet a 3×3 kernel, C/8 a 1×11 kernel (along frequency), C/8 an 11×1 kernel (along
    time); the other 5C/8 pass unchanged, and stand first.

    Parameters
    ----------
    channels: width C, divisible by 8.
    band_kernel: length of the thin kernels, odd; 11 in the paper.
    """

    def __init__(self, channels: int, band_kernel: int = BAND_KERNEL) -> None:
        super().__init__()
        group = channels // 8
        self.split = [channels - 3 * group, group, group, group]
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.square: nn.Module = depthwise(group, (SQUARE_KERNEL, SQUARE_KERNEL))
        self.along_frequency: nn.Module = depthwise(group, (1, band_kernel))
        self.along_time: nn.Module = depthwise(group, (band_kernel, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Split, filter, and put together in the same order."""
        same, square, frequency, time = torch.split(self.mix(x), self.split, dim=1)
        filtered = [self.square(square), self.along_frequency(frequency), self.along_time(time)]
        return torch.cat([same, *filtered], dim=1)


def depthwise(channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    """Each channel by itself, with zeros around the map: `[B, C, T, F]` → the same shape."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)
