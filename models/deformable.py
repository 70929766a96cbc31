"""Deformable embedding: a depthwise 3×3 convolution that learns, at each position, where to read.

MUSE paper, section on the deformable embedding (after Dai et al. 2017, "Deformable convolutional networks").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNEL = 3
TAPS = KERNEL * KERNEL
LARGEST_OFFSET = 1.0


class DeformableConv(nn.Module):
    """Depthwise 3×3 convolution whose taps are read beside their places: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, KERNEL, KERNEL))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Read tap k of output position (t, f) at its place plus (offsets[2k], offsets[2k + 1]).

        `offsets` `[B, 18, T, F]` are in positions, along time and along frequency, taps row by row. Between
        positions the map is interpolated bilinearly; around it stand zeros.
        """
        frames, bins = x.shape[2:]
        along_time, along_frequency = offsets.unflatten(1, (TAPS, 2)).unbind(2)  # [B, 9, T, F]
        steps = torch.arange(KERNEL, device=x.device) - KERNEL // 2
        times = steps.repeat_interleave(KERNEL)[:, None, None] + torch.arange(frames, device=x.device)[:, None]
        frequencies = steps.repeat(KERNEL)[:, None, None] + torch.arange(bins, device=x.device)
        # grid_sample counts from −1 to 1 between the map's outer edges, and puts frequency first.
        grid = torch.stack(
            [
                (along_frequency + frequencies) * (2 / bins) + (1 / bins - 1),
                (along_time + times) * (2 / frames) + (1 / frames - 1),
            ],
            dim=-1,
        )
        taps = functional.grid_sample(x, grid.flatten(1, 2), align_corners=False)  # [B, C, 9·T, F]
        taps = taps.unflatten(2, (TAPS, frames))
        out = torch.einsum("bcktf,ck->bctf", taps, self.weight.flatten(1))
        return out.contiguous(memory_format=torch.channels_last)  # as all maps here, so that what follows is fast


class DeformableEmbedding(nn.Module):
    """Learned offsets of at most one position, a deformable convolution, and a mix of the channels.

    `[B, C, T, F]` → the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offsets = nn.Sequential(
            nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels, bias=False),
            nn.Conv2d(channels, 2 * TAPS, 1, bias=False),
        )
        self.deformable = DeformableConv(channels)
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        for conv in (*self.offsets, self.mix):
            assert isinstance(conv, nn.Conv2d)
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (math.prod(conv.kernel_size) * conv.out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Read where the features say, then Hardswish."""
        offsets = self.offsets(x).clamp(-LARGEST_OFFSET, LARGEST_OFFSET)
        return functional.hardswish(self.mix(self.deformable(x, offsets)))
