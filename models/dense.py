"""The convolutional ends of the U-Net: dense encoder, magnitude decoder and phase decoder.

Feature maps are `[B, C, T, F]`: time is the first spatial axis, frequency the second. The layout in memory is
channels-last throughout, which suits 1×1 and depthwise convolutions on CPUs and GPUs alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.spectrogram import angle
from models.transformer import mean_of_map

DENSE_LAYERS = 4
_NORM_EPS = 1e-5


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers with more digits, where autocast has made them bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class InstanceNorm(nn.Module):
    """Zero mean and unit deviation over T and F of each channel, then a learned scale and shift.

    Written out: torch's InstanceNorm leaves the channels-last layout, and its group norm, which keeps it, computes
    the variance as E[x²] − E[x]², which costs two digits of the enhanced phase. A bias in a convolution before
    this has no effect, so those convolutions have none.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, T, F]` → the same shape."""
        x = at_least_float32(x)  # bfloat16 has too few digits for a mean over a whole map
        centred = x - mean_of_map(x)
        variance = mean_of_map(centred.square())
        scale = torch.rsqrt(variance + _NORM_EPS) * self.weight[:, None, None]
        return torch.addcmul(self.bias[:, None, None], centred, scale)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, InstanceNorm, PReLU with one slope a channel: `[B, C_in, T, F]` → `[B, C, T', F']`."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        padding = (dilation[0] * (kernel_size[0] // 2), dilation[1] * (kernel_size[1] // 2))
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size, stride, padding, dilation, bias=False),
            InstanceNorm(channels),
            nn.PReLU(channels),
        )


class DenseBlock(nn.Module):
    """Four 3×3 layers, dilated 1, 2, 4, 8 along time; each sees all that came before it: `[B, C, T, F]` → same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConvNormAct(channels * (i + 1), channels, (3, 3), dilation=(2**i, 1)) for i in range(DENSE_LAYERS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer's output."""
        seen = [x]  # newest first
        for layer in self.layers:
            seen.insert(0, layer(torch.cat(seen, dim=1)))
        return seen[0]


class DenseEncoder(nn.Module):
    """Magnitude and phase `[B, 2, T, F]` → features `[B, C, T, F / 2]`; `maps` for another number than 2."""

    def __init__(self, channels: int, maps: int = 2) -> None:
        super().__init__()
        self.widen = ConvNormAct(maps, channels, (1, 1))
        self.dense_block = DenseBlock(channels)
        self.halve = ConvNormAct(channels, channels, (1, 3), stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Halve the frequency axis after the dense block."""
        return self.halve(self.dense_block(self.widen(x)))


class DoubleBins(nn.Module):
    """Twice the frequency resolution: `[B, C, T, F]` → `[B, C, T, 2F]`.

    The release spreads a 1×1 convolution's 4C outputs over 2×2 positions and then reads every second row only;
    the 2C outputs that are read are what is computed here, ordered so that spreading them is a change of view.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.smooth = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Spread each position's two channel groups over two neighbouring bins, then filter along frequency."""
        batch, channels, frames, bins = x.shape
        spread = self.spread(x).permute(0, 2, 3, 1).reshape(batch, frames, 2 * bins, channels)
        return self.smooth(spread.permute(0, 3, 1, 2))


class MagnitudeDecoder(nn.Module):
    """Features `[B, C, T, F / 2]` → a mask in 0..beta on the compressed noisy magnitude, `[B, F, T]`."""

    def __init__(self, channels: int, bins: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.dense_block = DenseBlock(channels)
        self.double_bins = DoubleBins(channels)
        self.squeeze = ConvNormAct(channels, 1, (1, 1))
        self.rescale = nn.Conv2d(1, 1, 1)
        self.slope = nn.Parameter(torch.ones(bins, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Sigmoid with one learned slope a frequency bin."""
        x = self.rescale(self.squeeze(self.double_bins(self.dense_block(x))))
        return self.beta * torch.sigmoid(self.slope * x.squeeze(1).transpose(1, 2))


class PhaseDecoder(nn.Module):
    """Features `[B, C, T, F / 2]` → phase in radians, `[B, F, T]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels)
        self.double_bins = DoubleBins(channels)
        self.norm = InstanceNorm(channels)
        self.act = nn.PReLU(channels)
        self.real = nn.Conv2d(channels, 1, 1)
        self.imaginary = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Angle of a learned real and imaginary part."""
        x = self.act(self.norm(self.double_bins(self.dense_block(x))))
        # In bfloat16 angles near ±π would be 1/64 rad apart.
        real, imaginary = at_least_float32(self.real(x)), at_least_float32(self.imaginary(x))
        return angle(real, imaginary).squeeze(1).transpose(1, 2)
