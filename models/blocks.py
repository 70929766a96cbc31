"""Blocks of IMSE and MUSE: dense encoder, magnitude and phase decoder, and transformer block.

MP-SENet has the same encoder and decoders with `causal` dense blocks and `subpixel` upsampling.

Feature maps are `[B, C, T, F]`: time is the first spatial axis, frequency the second. They are channels-last in
memory, which suits 1×1 and depthwise convolutions on CPUs and GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.stft import angle

if TYPE_CHECKING:
    from models.mala import RotaryTables

DENSE_LAYERS = 4
EXPANSION = 2.66
_NORM_EPS = 1e-5

# New in PyTorch 2.7.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32 if the data type has fewer digits, such as the bfloat16 of autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class InstanceNorm(nn.Module):
    """Normalise each channel over T and F, then scale and shift: `[B, C, T, F]` → the same shape.

    `nn.InstanceNorm2d` leaves the channels-last layout. `nn.GroupNorm` keeps it, but computes the variance as
    E[x²] − E[x]², which costs two digits of the enhanced phase. A bias before this norm has no effect, so the
    convolutions before it have none.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in float32 at least: bfloat16 has too few digits for a mean over a whole map."""
        x = at_least_float32(x)
        centred = x - spatial_mean(x)
        variance = spatial_mean(centred.square())
        scale = torch.rsqrt(variance + _NORM_EPS) * self.weight[:, None, None]
        return torch.addcmul(self.bias[:, None, None], centred, scale)


class PastConv2d(nn.Conv2d):
    """Convolution that sees this and earlier frames only: `[B, C_in, T, F]` → `[B, C, T, F']`.

    Frames before the first are zero. `padding` has to be the number of earlier frames that the kernel covers.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, and drop the frames that the padding adds after the last one."""
        return super().forward(input)[:, :, : input.shape[2]]


class ConvNormAct(nn.Sequential):
    """Convolution without bias, InstanceNorm, PReLU with one slope a channel: `[B, C_in, T, F]` → `[B, C, T', F']`.

    With `causal` the convolution sees this and earlier frames only, else as many later ones.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        causal: bool = False,
    ) -> None:
        seen = kernel_size[0] - 1 if causal else kernel_size[0] // 2
        padding = (dilation[0] * seen, dilation[1] * (kernel_size[1] // 2))
        conv = PastConv2d if causal else nn.Conv2d
        super().__init__(
            conv(in_channels, channels, kernel_size, stride, padding, dilation, bias=False),
            InstanceNorm(channels),
            nn.PReLU(channels),
        )


class DenseBlock(nn.Module):
    """Four densely connected 3×3 layers, dilated 1, 2, 4, 8 along time: `[B, C, T, F]` → the same shape.

    With `causal` the layers are 2×3, over this frame and one earlier frame.
    """

    def __init__(self, channels: int, causal: bool = False) -> None:
        super().__init__()
        size = (2, 3) if causal else (3, 3)
        self.layers = nn.ModuleList(
            ConvNormAct(channels * (i + 1), channels, size, dilation=(2**i, 1), causal=causal)
            for i in range(DENSE_LAYERS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply each layer to all earlier outputs, newest first; return the last output."""
        outputs = [x]
        for layer in self.layers:
            outputs.insert(0, layer(torch.cat(outputs, dim=1)))
        return outputs[0]


class DenseEncoder(nn.Module):
    """Magnitude and phase `[B, 2, T, F]` → features `[B, C, T, F / 2]`.

    An odd F is halved to (F + 1) / 2.
    """

    def __init__(self, channels: int, causal: bool = False) -> None:
        super().__init__()
        self.widen = ConvNormAct(2, channels, (1, 1))
        self.dense_block = DenseBlock(channels, causal)
        self.halve = ConvNormAct(channels, channels, (1, 3), stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Halve the frequency axis after the dense block."""
        return self.halve(self.dense_block(self.widen(x)))


class FreqUpsample(nn.Module):
    """Double the frequency resolution: `[B, C, T, F]` → `[B, C, T, 2F]`.

    The release applies a 2×2 pixel shuffle to 4C channels and then a convolution of stride 2 along time, which reads
    every second row only. Here only the 2C channels of these rows are computed, ordered so that the shuffle is a view.

    With `subpixel` as in MP-SENet: the convolution before the shuffle is over three bins and has a bias; none follows.
    """

    def __init__(self, channels: int, subpixel: bool = False) -> None:
        super().__init__()
        if subpixel:
            self.spread = nn.Conv2d(channels, 2 * channels, (1, 3), padding=(0, 1))
            self.smooth = nn.Identity()
        else:
            self.spread = nn.Conv2d(channels, 2 * channels, 1, bias=False)
            self.smooth = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Spread two channel groups over neighbouring bins, then filter along frequency."""
        batch, channels, frames, bins = x.shape
        spread = self.spread(x).permute(0, 2, 3, 1).reshape(batch, frames, 2 * bins, channels)
        return self.smooth(spread.permute(0, 3, 1, 2))


class MagnitudeDecoder(nn.Module):
    """Features `[B, C, T, F / 2]` → mask of the compressed magnitude, `[B, F, T]` in 0..`beta`.

    With `subpixel`, F is odd, as in MP-SENet: the features have (F + 1) / 2 bins, and after the norm over all channels
    a convolution over two bins leaves F of the F + 1.
    """

    def __init__(self, channels: int, bins: int, beta: float, causal: bool = False, subpixel: bool = False) -> None:
        super().__init__()
        self.beta = beta
        self.dense_block = DenseBlock(channels, causal)
        self.double_bins = FreqUpsample(channels, subpixel)
        if subpixel:
            self.squeeze = nn.Sequential(InstanceNorm(channels), nn.PReLU(channels), nn.Conv2d(channels, 1, (1, 2)))
            self.rescale = nn.Identity()
        else:
            self.squeeze = ConvNormAct(channels, 1, (1, 1))
            self.rescale = nn.Conv2d(1, 1, 1)
        self.slope = nn.Parameter(torch.ones(bins, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply a sigmoid with one learned slope a frequency bin."""
        x = self.rescale(self.squeeze(self.double_bins(self.dense_block(x))))
        return self.beta * torch.sigmoid(self.slope * x.squeeze(1).transpose(1, 2))


class PhaseDecoder(nn.Module):
    """Features `[B, C, T, F / 2]` → phase in radians, `[B, F, T]`; with `subpixel` as in `MagnitudeDecoder`."""

    def __init__(self, channels: int, causal: bool = False, subpixel: bool = False) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels, causal)
        self.double_bins = FreqUpsample(channels, subpixel)
        self.norm = InstanceNorm(channels)
        self.act = nn.PReLU(channels)
        size = (1, 2) if subpixel else (1, 1)
        self.real = nn.Conv2d(channels, 1, size)
        self.imaginary = nn.Conv2d(channels, 1, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the angle of a learned real and imaginary part."""
        x = self.act(self.norm(self.double_bins(self.dense_block(x))))
        # In bfloat16, angles near ±π would be 1/64 rad apart.
        real, imaginary = at_least_float32(self.real(x)), at_least_float32(self.imaginary(x))
        return angle(real, imaginary).squeeze(1).transpose(1, 2)


class BiasFreeLayerNorm(nn.Module):
    """Bias-free layer norm of Restormer: x / sqrt(var(x) + 1e-5) · weight over the channels of `[B, C, T, F]`.

    Zamir et al. 2022, arXiv 2111.09881. The variance is around the mean, but the mean is not subtracted.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the channel axis."""
        # torch.var over a short axis is ten times slower.
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return x * torch.rsqrt(variance + _NORM_EPS) * self.weight


class GDFN(nn.Module):
    """Gated depthwise feed-forward network of Restormer, expansion 2.66: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(EXPANSION * channels)
        self.gate = pointwise_depthwise(channels, hidden)
        self.value = pointwise_depthwise(channels, hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute GELU(gate) · value and project it to C channels."""
        return self.project(functional.gelu(self.gate(x)) * self.value(x))


class TransformerBlock(nn.Module):
    """Transformer block of Restormer: attention and GDFN, each after a bias-free layer norm and with a skip connection.

    `[B, C, T, F]` → the same shape. `attention` is called with the map and the rotary tables, if there are any.
    """

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.attention_norm = BiasFreeLayerNorm(channels)
        self.attention = attention
        self.feed_forward_norm = BiasFreeLayerNorm(channels)
        self.feed_forward = GDFN(channels)

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """Attend to all positions, then transform each position."""
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.feed_forward(self.feed_forward_norm(x))


def pointwise_depthwise(channels: int, hidden: int) -> nn.Sequential:
    """Return a 1×1 and a depthwise 3×3 convolution, `[B, C, T, F]` → `[B, hidden, T, F]`."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
    )


def to_tokens(x: Tensor) -> Tensor:
    """Reshape a map `[B, C, T, F]` to tokens `[B, T·F, C]`; a view if the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def spatial_mean(x: Tensor) -> Tensor:
    """Average over T and F: `[B, C, T, F]` → `[B, C, 1, 1]`."""
    # One axis at a time: onnxruntime adds up a reduction term by term.
    return x.permute(0, 2, 3, 1).mean(dim=2).mean(dim=1)[:, :, None, None]


def token_mean(x: Tensor) -> Tensor:
    """Average over tokens: `[B, N, C]` → `[B, C]`."""
    if is_exporting():
        # onnxruntime adds up a reduction term by term, a matrix product in blocks, which is ten times as exact.
        return (x.transpose(1, 2) @ x.new_ones(x.shape[1], 2))[:, :, 0] / x.shape[1]
    return x.mean(dim=1)


def head_blocks(channels: int, head_width: int) -> Tensor:
    """Return a block-diagonal `[C, C]` matrix, 1 where two channels belong to the same head, else 0.

    Heads are groups of `head_width` neighbouring channels.
    """
    # On the CPU also while a network is built on the meta device, where it would import a second's worth of PyTorch.
    return torch.block_diag(*[torch.ones(head_width, head_width, device="cpu")] * (channels // head_width))
