"""IDConv, the inception depthwise convolution of IMSE: a square and two band kernels on parts of the channels.

IMSE paper, section on IDConv, after InceptionNeXt (Yu et al. 2024, arXiv 2303.16900). It replaces MUSE's deformable
embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SQUARE_KERNEL = 3
BAND_KERNEL = 11


class IDConv(nn.Module):
    """1×1 convolution, then depthwise filters on three eighths of the channels: `[B, C, T, F]` → the same shape.

    After the 1×1 convolution, C/8 channels get a 3×3 kernel, C/8 a 1×11 kernel along frequency, and C/8 an 11×1
    kernel along time; the first 5C/8 pass unchanged.

    `channels`: width C, divisible by 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        group = channels // 8
        self.split = [channels - 3 * group, group, group, group]
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.square = depthwise(group, (SQUARE_KERNEL, SQUARE_KERNEL))
        self.along_frequency = depthwise(group, (1, BAND_KERNEL))
        self.along_time = depthwise(group, (BAND_KERNEL, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels, split, filter and concatenate in the same order."""
        same, square, frequency, time = torch.split(self.mix(x), self.split, dim=1)
        return torch.cat([same, self.square(square), self.along_frequency(frequency), self.along_time(time)], dim=1)


def depthwise(channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    """Return a depthwise convolution that keeps the shape `[B, C, T, F]`; `kernel` sizes are odd."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)
