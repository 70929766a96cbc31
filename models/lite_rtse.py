"""Lite-RTSE: a causal network of 1.56 M weights for real-time enhancement (IEEE document 10308952).

Two LSTMs, and a branch of convolutions with products instead of activations. After the unofficial implementation
github.com/Xiaobin-Rong/lite-rtse; `LiteRtseConfig.multi_order` selects between its last version and the paper's figure.

Every layer sees the current and earlier frames, and keeps what it needs of the latter in a `Memory`: a signal can be
processed in pieces of any number of frames, or as a whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from config import LiteRtseConfig
from models.blocks import at_least_float32
from models.recurrent import run_rnn
from models.stft import Spectra, angle
from models.streaming import Memory, State, with_past

SCALE_CHANNELS = 32
"""Channels of the multi-scale convolutions."""

GATES = (4, 8, 16, 32, 64)
"""Channels of the gate at each order of the recursive gated convolution."""

SCALE_SIZE, ORDER_SIZE = 3, 7
"""Kernel sizes of the depthwise convolutions, in frames and in bins."""


class CausalDepthwise(nn.Module):
    """Depthwise `size`×`size` convolution over the current and earlier frames: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, size, padding=(0, size // 2), groups=channels)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Convolve, channels-last, which is twice as fast on CPUs; the following layers keep it."""
        return self.conv(with_past(x, self.conv.kernel_size[0] - 1, memory))


class MultiScaleConv(nn.Module):
    """Product of two linear branches: `[B, C_in, T, F]` → `[B, C, T, F]`.

    The paper's figure has a standard convolution in place of the depthwise one. The unofficial implementation replaced
    it because training diverged.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(in_channels, channels, 1)
        self.depthwise = CausalDepthwise(channels, SCALE_SIZE)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Multiply the branches."""
        return self.mix(self.depthwise(self.widen(x), memory)) * self.shortcut(x)


class GnConv(nn.Module):
    """Recursive gated convolution: `[B, C, T, F]` → `[B, 1, T, F]`.

    gnConv of HorNet (Rao et al. 2022, arXiv 2207.14284). At each order the features are multiplied by a gate; at all
    but the last, a 1×1 convolution then doubles their channels. The gates come from 7×7 depthwise convolutions: with
    `repeated`, one before each of these orders over all remaining gates, as in the unofficial implementation; else one
    before the first order, as in HorNet.
    """

    def __init__(self, channels: int, repeated: bool) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, sum(GATES) + GATES[0], 1)
        widths = [sum(GATES[order:]) for order in range(len(GATES) - 1 if repeated else 1)]
        self.depthwise = nn.ModuleList(CausalDepthwise(width, ORDER_SIZE) for width in widths)
        self.doubling = nn.ModuleList(nn.Conv2d(gate, 2 * gate, 1) for gate in GATES[:-1])
        self.squeeze = nn.Conv2d(GATES[-1], 1, 1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Apply all orders."""
        gates, features = self.widen(x).split([sum(GATES), GATES[0]], dim=1)
        for order, double in enumerate(self.doubling):
            if order < len(self.depthwise):
                gates = self.depthwise[order](gates, memory)
            gates, gate = gates.split([gates.shape[1] - GATES[order], GATES[order]], dim=1)
            features = double(features * gate)
        return self.squeeze(features * gates)


class LiteRTSE(nn.Module):
    """Noisy spectra → enhanced spectra, uncompressed and causal."""

    def __init__(self, config: LiteRtseConfig, bins: int) -> None:
        super().__init__()
        self.mask_lstm = nn.LSTM(bins, bins, batch_first=True)
        self.mask = nn.Linear(bins, bins)
        self.scale_1 = MultiScaleConv(1, SCALE_CHANNELS)
        self.scale_2 = MultiScaleConv(SCALE_CHANNELS, SCALE_CHANNELS)
        self.orders = GnConv(SCALE_CHANNELS, repeated=config.multi_order == "repeated")
        self.fuse = nn.Linear(3 * bins, bins)
        self.fused_lstm = nn.LSTM(bins, bins, batch_first=True)
        self.magnitude = nn.Linear(bins, bins)
        self.real = nn.Linear(bins, bins)
        self.imaginary = nn.Linear(bins, bins)

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self.stream(noisy, None)[0]

    def stream(self, noisy: Spectra, state: State | None) -> tuple[Spectra, State]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; return them and the state after them.

        Phases are not wrapped: they are in ±3π.
        """
        memory = Memory(state)
        mag = noisy.mag.transpose(1, 2)  # [B, T, F]
        masked = mag * torch.sigmoid(self.mask(run_rnn(self.mask_lstm, mag, memory)))
        mapped = self.orders(self.scale_2(self.scale_1(mag[:, None], memory), memory), memory)
        fused = self.fuse(torch.cat([mag, masked, mapped[:, 0]], dim=-1))
        hidden = run_rnn(self.fused_lstm, fused, memory)
        scale, real, imaginary = (
            at_least_float32(head(hidden)).transpose(1, 2) for head in (self.magnitude, self.real, self.imaginary)
        )
        masked = masked.transpose(1, 2)
        signed = masked + scale * (noisy.mag - masked)
        half_turn = math.pi * (signed < 0).to(signed)  # a negative magnitude is a phase shift of π
        pha = noisy.pha + angle(real, imaginary) + half_turn
        return Spectra(signed.abs(), pha), memory.end()
