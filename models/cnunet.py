"""CNUNet: a complex U-Net whose stages are U-Nets; noisy spectra in, enhanced spectra out.

Hwang, Park and Park, "Complex Nested U-Net for Speech Enhancement Using Augmented Two-Level Skip Connections", and
its release (seorim0/CNUNet). The network maps real and imaginary part of noisy speech to those of clean speech,
without a mask. A complex encoder halves the frequency axis six times; two real-valued decoders, one for each part,
double it again. Each stage is a small U-Net. A decoder stage gets the output of the encoder stage at its resolution
and the features within that stage, the second level of skip connections.

Feature maps are `[B, C, F, T]`, channels-last in memory. Complex maps have the real part in the first half of the
channels, the imaginary part in the second. Convolutions and attention see past frames only; the norms see the whole
map, so the network is not causal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import CnunetConfig
from models.blocks import at_least_float32, is_exporting
from models.stft import AnySpectra, ComplexSpectra

STAGE_DEPTHS = (6, 5, 4, 4, 4, 3)
"""Number of times each stage halves its frequency axis, from the highest resolution to the lowest."""

WIDTH = 64
"""Channels between the encoder's stages; each decoder has half of them."""
ENCODER_MIDDLE = 32
DECODER_MIDDLE = 16

REAL, IMAGINARY = 0, 1
RELEASED_SLIPS = {1: REAL, 2: IMAGINARY, 3: IMAGINARY}
"""In the release, the fourth features of encoder stage `key` (from 0) go to decoder `value` from the other part."""
SLIPPED_FEATURES = 4

DENSE_LAYERS = 7
ATTENTION_HIDDEN = 16
ATTENTION_FRAMES = 32
_NORM_EPS = 1e-8


class CausalConv2d(nn.Conv2d):
    """3×2 convolution over neighbouring bins of this and an earlier frame: `[B, C, F, T]` → `[B, C', F / stride, T]`.

    Bins are padded with zeros on both sides, frames before the first. `dilation` applies to bins and frames.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, (3, 2), (stride, 1), (dilation, 0), dilation, groups)

    def forward(self, input: Tensor) -> Tensor:
        """Pad the past and convolve."""
        return super().forward(functional.pad(input, (self.dilation[1], 0)))


class MapNorm(nn.GroupNorm):
    """`nn.GroupNorm`, exported with sums over one axis at a time: `[B, C, F, T]` → the same shape.

    onnxruntime adds up a whole map term by term, which costs two digits.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each group over its channels, bins and frames."""
        if not is_exporting():
            return super().forward(input)
        x = input.unflatten(1, (self.num_groups, -1))
        centred = x - x.mean(4, keepdim=True).mean(3, keepdim=True).mean(2, keepdim=True)
        variance = centred.square().mean(4, keepdim=True).mean(3, keepdim=True).mean(2, keepdim=True)
        x = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def _norm_act(channels: int) -> tuple[MapNorm, nn.PReLU]:
    """Return a norm over channels, bins and frames, and a PReLU with one slope."""
    return MapNorm(1, channels, _NORM_EPS), nn.PReLU()


class InConv(nn.Sequential):
    """INCONV, 1×1 convolution, norm and PReLU: `[B, C, F, T]` → `[B, C', F, T]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1), *_norm_act(out_channels))


class DownConv(nn.Sequential):
    """CONV, halve the bins: `[B, C, F, T]` → `[B, C', F / 2, T]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(CausalConv2d(in_channels, out_channels, stride=2), *_norm_act(out_channels))


class SubPixelConv(nn.Sequential):
    """SPCONV, double the bins: `[B, C, F, T]` → `[B, C', 2F, T]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(CausalConv2d(in_channels, 2 * out_channels), SpreadBins(), *_norm_act(out_channels))


class SpreadBins(nn.Module):
    """Pixel shuffle along frequency: `[B, 2C, F, T]` → `[B, C, 2F, T]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Move channel 2c + s at bin f to channel c at bin 2f + s."""
        x = x.permute(0, 2, 3, 1).unflatten(3, (-1, 2))  # [B, F, T, C, 2]
        return x.permute(0, 1, 4, 2, 3).flatten(1, 2).permute(0, 3, 1, 2)


class ComplexSubPixelConv(nn.Module):
    """CSPCONV, complex convolution that doubles the bins: complex `[B, 2C, F, T]` → `[B, 2C', 2F, T]`.

    Each part has its own norm and slope.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(in_channels, 4 * out_channels)
        self.spread = SpreadBins()
        self.norm = MapNorm(2, 2 * out_channels, _NORM_EPS)
        self.slopes = nn.Parameter(torch.full((2,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, spread, normalise."""
        x = self.norm(self.spread(complex_conv(self.conv, x)))
        return functional.prelu(x, self.slopes.repeat_interleave(x.shape[1] // 2))


def complex_conv(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a complex convolution to complex `[B, 2C, F, T]`.

    `conv` maps C channels to the outputs of W_r and those of W_i, one after the other. real = W_r(real) −
    W_i(imaginary), imaginary = W_i(real) + W_r(imaginary), where each W adds its bias every time.
    """
    of_real, of_imaginary = conv(torch.cat(x.chunk(2, dim=1))).chunk(2)  # both parts in one batch
    rr, ri = of_real.chunk(2, dim=1)
    ir, ii = of_imaginary.chunk(2, dim=1)
    return torch.cat([rr - ii, ri + ir], dim=1)


def complex_concat(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate complex `[B, 2C_i, F, T]`, all real parts before all imaginary parts: `[B, 2 · ΣC_i, F, T]`."""
    real, imaginary = zip(*(x.chunk(2, dim=1) for x in maps), strict=True)
    return torch.cat([*real, *imaginary], dim=1)


class DenseLayer(nn.Sequential):
    """Layer of the dilated dense block, for `inputs` maps of C channels: `[B, inputs · C, F, T]` → `[B, C, F, T]`.

    Each channel of the first convolution sees `inputs` channels only; the 1×1 convolution mixes them.
    """

    def __init__(self, inputs: int, channels: int, dilation: int) -> None:
        super().__init__(
            CausalConv2d(inputs * channels, channels, dilation=dilation, groups=channels),
            nn.Conv2d(channels, channels, 1),
            *_norm_act(channels),
        )


class DilatedDenseBlock(nn.Module):
    """DDB, seven densely connected layers dilated 1, 2, 4 … 64: `[B, C, F, T]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.narrow = nn.Sequential(CausalConv2d(channels, half), nn.PReLU())
        self.layers = nn.ModuleList(DenseLayer(i + 1, half, 2**i) for i in range(DENSE_LAYERS))
        self.widen = nn.Sequential(CausalConv2d(half, channels), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Apply each layer to all earlier outputs, newest first; widen the last output."""
        outputs = [self.narrow(x)]
        for layer in self.layers:
            outputs.insert(0, layer(complex_concat(outputs)))
        return self.widen(outputs[0])


class TimeFrequencyAttention(nn.Module):
    """CTFA, causal gates for each frame and each bin: `[B, C, F, T]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.time_gate = _gate(channels)
        self.frequency_gate = _gate(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Gate by the mean over the bins and by each bin's mean over the last 32 frames, zero-padded."""
        time_gate = self.time_gate(x.mean(dim=2, keepdim=True))  # [B, C, 1, T]
        recent = functional.avg_pool2d(functional.pad(x, (ATTENTION_FRAMES - 1, 0)), (1, ATTENTION_FRAMES), stride=1)
        return x * time_gate * self.frequency_gate(recent)


def _gate(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, ATTENTION_HIDDEN, 1), nn.ReLU(), nn.Conv2d(ATTENTION_HIDDEN, channels, 1), nn.Sigmoid()
    )


class ComplexAttention(nn.Module):
    """CTFA of real and imaginary part, each with its own weights: complex `[B, 2C, F, T]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.real = TimeFrequencyAttention(channels)
        self.imaginary = TimeFrequencyAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Gate each half of the channels."""
        real, imaginary = x.chunk(2, dim=1)
        return torch.cat([self.real(real), self.imaginary(imaginary)], dim=1)


class EncoderStage(nn.Module):
    """CMSFE-eN, a complex U-Net of N levels: complex `[B, 64, F, T]` → the same shape, and features for skips.

    F must be divisible by 2^N. The features for the skip connections are complex `[B, 64, F, T]`,
    `[B, 32, F / 2, T]` … `[B, 32, F / 2^N, T]`.
    """

    def __init__(self, depth: int, attention: bool) -> None:
        super().__init__()
        middle = ENCODER_MIDDLE
        self.in_conv = InConv(WIDTH, WIDTH)
        self.down = nn.ModuleList(DownConv(middle if level else WIDTH, middle) for level in range(depth))
        self.bottleneck = DilatedDenseBlock(middle)
        # Inputs of each part: half of the channels from below and half of the skip connection.
        self.up = nn.ModuleList(
            ComplexSubPixelConv(middle, middle // 2 if level else WIDTH // 2) for level in reversed(range(depth))
        )
        self.attention = ComplexAttention(WIDTH // 2) if attention else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode and decode with skip connections, and add the stage's input."""
        x = self.in_conv(x)
        y, encoded = x, []
        for conv in self.down:
            y = conv(y)
            encoded.append(y)
        features = [self.bottleneck(y)]  # highest resolution first
        for conv, skip in zip(self.up, reversed(encoded), strict=True):
            features.insert(0, conv(complex_concat([features[0], skip])))
        return self.attention(features[0]) + x, features


class DecoderStage(nn.Module):
    """MSFE-dN, a U-Net of N levels for one part: `[B, 64, F, T]` → `[B, 32, F, T]`.

    Its skips are that part of the encoder's features: `[B, 32, F, T]`, `[B, 16, F / 2, T]` … `[B, 16, F / 2^N, T]`.
    """

    def __init__(self, depth: int, attention: bool) -> None:
        super().__init__()
        middle, half = DECODER_MIDDLE, WIDTH // 2
        self.in_conv = InConv(WIDTH, half)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, width, 1), DownConv(width, middle))
            for width in (half, *[middle] * (depth - 1))
        )
        self.bottleneck = DilatedDenseBlock(middle)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3 * middle, 2 * middle, 1), SubPixelConv(2 * middle, width))
            for width in (*[middle] * (depth - 1), half)
        )
        self.attention = TimeFrequencyAttention(half) if attention else nn.Identity()

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Encode and decode, each level with its skip, and add the stage's input."""
        x = self.in_conv(x)
        y, encoded = x, []
        for conv, skip in zip(self.down, skips[:-1], strict=True):
            y = conv(torch.cat([y, skip], dim=1))
            encoded.append(y)
        y = self.bottleneck(y)
        for conv, own, skip in zip(self.up, reversed(encoded), reversed(skips[1:]), strict=True):
            y = conv(torch.cat([y, own, skip], dim=1))
        return self.attention(y) + x


class Decoder(nn.Module):
    """Stages de1 … de6 of one part, lowest resolution first: `[B, 32, F, T]` → `[B, 32, 64F, T]`."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        # Two groups: each half of the channels has its own convolution.
        self.up_samplers = nn.ModuleList(
            nn.ConvTranspose2d(half, half, (3, 1), (2, 1), (1, 0), (1, 0), groups=2) for _ in STAGE_DEPTHS
        )
        self.stages = nn.ModuleList(
            DecoderStage(depth, attention=level == 0) for level, depth in reversed([*enumerate(STAGE_DEPTHS)])
        )

    def forward(self, x: Tensor, skips: Sequence[Sequence[Tensor]]) -> Tensor:
        """Decode; `skips` holds this part of the outputs and features of en1 … en6."""
        for up_sample, stage, (output, *features) in zip(self.up_samplers, self.stages, reversed(skips), strict=True):
            x = stage(torch.cat([up_sample(x), output], dim=1), features)
        return x


class CNUNet(nn.Module):
    """Noisy spectra → enhanced spectra, uncompressed, for any number of frames from 1 up.

    The release computes its STFT by a convolution, which gives one more frame at each end, sees zeros beyond the
    edges instead of reflected samples, and counts phases from the first sample of the window instead of from 56
    samples before it.
    """

    def __init__(self, config: CnunetConfig, bins: int) -> None:
        super().__init__()
        del bins  # any number that the settings allow
        self.released_skips = config.released_skips
        self.in_conv = InConv(2, WIDTH)
        self.stages = nn.ModuleList(
            EncoderStage(depth, attention=level == 0) for level, depth in enumerate(STAGE_DEPTHS)
        )
        # Two groups: real and imaginary part have their own convolutions.
        self.down_samplers = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, (3, 1), (2, 1), (1, 0), groups=2) for _ in STAGE_DEPTHS
        )
        self.bottleneck = DilatedDenseBlock(WIDTH)
        self.real_decoder = Decoder()
        self.imaginary_decoder = Decoder()
        self.out_conv = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, noisy: AnySpectra) -> ComplexSpectra:
        """Enhance uncompressed spectra `[B, F, T]`; the bin at 0 Hz is ignored and 0 in the result."""
        x = noisy.complex.permute(0, 3, 1, 2)[:, :, 1:]  # [B, 2, F - 1, T]
        x = self.in_conv(x.contiguous(memory_format=torch.channels_last))
        encoded: list[list[Tensor]] = []
        for stage, down_sample in zip(self.stages, self.down_samplers, strict=True):
            output, features = stage(x)
            encoded.append([output, *features])
            x = down_sample(output)

        # Each decoder gets its half of every complex map, by stage.
        skips = [[[x.chunk(2, dim=1)[part] for x in maps] for maps in encoded] for part in (REAL, IMAGINARY)]
        if self.released_skips:
            for stage, part in RELEASED_SLIPS.items():
                skips[part][stage][SLIPPED_FEATURES] = skips[1 - part][stage][SLIPPED_FEATURES]
        real, imaginary = self.bottleneck(x).chunk(2, dim=1)
        decoded = [self.real_decoder(real, skips[REAL]), self.imaginary_decoder(imaginary, skips[IMAGINARY])]
        x = at_least_float32(self.out_conv(torch.cat(decoded, dim=1)))
        real, imaginary = functional.pad(x, (0, 0, 1, 0)).unbind(dim=1)
        return ComplexSpectra(real, imaginary)
