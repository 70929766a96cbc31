"""The convolutional ends of the U-Net: dense encoder, magnitude decoder and phase decoder.

Feature maps are `[B, C, T, F]`: time is the first spatial axis, frequency the second. The layout in memory is
channels-last throughout, which suits 1×1 and depthwise convolutions on CPUs and GPUs alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.stft import angle

# New in PyTorch 2.7.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

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
        centred = x - spatial_mean(x)
        variance = spatial_mean(centred.square())
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


class FreqUpsample(nn.Module):
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
        self.double_bins = FreqUpsample(channels)
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
        self.double_bins = FreqUpsample(channels)
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


EXPANSION = 2.66
_NORM_EPS = 1e-5


class BiasFreeLayerNorm(nn.Module):
    """Divide each position by the deviation of its channels: `[B, C, T, F]` → the same shape.

    The deviation is around the mean, but the mean itself stays in: x / sqrt(var(x) + 1e-5) · weight.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the channel axis."""
        # Written out, since torch.var over a short axis is an order of magnitude slower.
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return x * torch.rsqrt(variance + _NORM_EPS) * self.weight


class GDFN(nn.Module):
    """Two branches of 1×1 and depthwise 3×3 convolutions, one gating the other: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(EXPANSION * channels)
        self.gate = pointwise_depthwise(channels, hidden)
        self.value = pointwise_depthwise(channels, hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """GELU(gate) · value, back to C channels."""
        return self.project(functional.gelu(self.gate(x)) * self.value(x))


def pointwise_depthwise(channels: int, hidden: int) -> nn.Sequential:
    """A 1×1 convolution, then a depthwise 3×3 one: `[B, C, T, F]` → `[B, hidden, T, F]`."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
    )


class TransformerBlock(nn.Module):
    """Attention and the feed-forward network, each behind a norm and beside a skip connection.

    `[B, C, T, F]` → the same shape; `attention` maps `[B, C, T, F]`, and the positions where it needs them, likewise.
    """

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.attention_norm = BiasFreeLayerNorm(channels)
        self.attention = attention
        self.feed_forward_norm = BiasFreeLayerNorm(channels)
        self.feed_forward = GDFN(channels)

    def forward(self, x: Tensor, *positions: object) -> Tensor:
        """Global context first, then each position by itself and its neighbours."""
        x = x + self.attention(self.attention_norm(x), *positions)
        return x + self.feed_forward(self.feed_forward_norm(x))


def to_tokens(x: Tensor) -> Tensor:
    """A map `[B, C, T, F]` as its N = T·F positions `[B, N, C]`; in channels-last memory this copies nothing."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def token_mean(x: Tensor, bins: int) -> Tensor:
    """The mean over the positions `[B, N, C]` of a map with F = `bins`, first in each frame, then over them: `[B, C]`.

    onnxruntime adds up a dimension one by one: of all positions at once, that would cost two digits.
    """
    return x.unflatten(1, (-1, bins)).mean(dim=2).mean(dim=1)


def spatial_mean(x: Tensor) -> Tensor:
    """The mean of each channel of a map, likewise: `[B, C, T, F]` → `[B, C, 1, 1]`."""
    return token_mean(to_tokens(x), x.shape[3])[:, :, None, None]


def head_blocks(channels: int, head_width: int) -> Tensor:
    """`[C, C]`, 1 where two channels belong to one head, which is `head_width` neighbouring channels, else 0.

    Multiplied by it, one C×C matrix has the products of all heads as blocks on its diagonal.
    """
    return torch.block_diag(*[torch.ones(head_width, head_width)] * (channels // head_width))
