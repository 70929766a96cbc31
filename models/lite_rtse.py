"""Lite-RTSE: a causal network of 1.56 M weights for real-time enhancement (IEEE document 10308952).

Two LSTMs, and a branch of convolutions with products instead of activations. After the unofficial implementation
github.com/Xiaobin-Rong/lite-rtse; `LiteRtseConfig.multi_order` selects between its last version and the paper's figure.

Every layer sees the current and earlier frames, and a `State` carries what it needs of the latter: a signal can be
processed in pieces of any number of frames, or as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config import LiteRtseConfig
from models.blocks import at_least_float32
from models.recurrent import run_rnn
from models.stft import Spectra, angle

SCALE_CHANNELS = 32
"""Channels of the multi-scale convolutions."""

GATES = (4, 8, 16, 32, 64)
"""Channels of the gate at each order of the recursive gated convolution."""

SCALE_SIZE, ORDER_SIZE = 3, 7
"""Kernel sizes of the depthwise convolutions, in frames and in bins."""


class State(NamedTuple):
    """State after a frame, for B signals.

    mask_hidden, mask_cell, fused_hidden, fused_cell: states of the two LSTMs, `[1, B, F]`.
    past: last inputs of each causal convolution, in order, `[B, kernel size - 1, F, C]`.
    """

    mask_hidden: Tensor
    mask_cell: Tensor
    fused_hidden: Tensor
    fused_cell: Tensor
    past: tuple[Tensor, ...]


class CausalDepthwise(nn.Module):
    """Depthwise `size`×`size` convolution over the current and earlier frames: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, size, padding=(0, size // 2), groups=channels)

    def initial_past(self, batch: int, bins: int) -> Tensor:
        """Return zeros in place of the inputs before the first frame, `[B, size - 1, F, C]`."""
        return self.conv.weight.new_zeros(batch, self.conv.kernel_size[0] - 1, bins, self.conv.in_channels)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve; return the result and the past of the next frame."""
        # Channels-last is twice as fast on CPUs, and the following layers keep it. With the channels as last axis of
        # the state, OpenVINO need not transpose it, which takes as long as the rest of the network.
        x = x.contiguous(memory_format=torch.channels_last)
        seen = torch.cat([past.permute(0, 3, 1, 2), x], dim=2)
        return self.conv(seen), seen[:, :, x.shape[2] :].permute(0, 2, 3, 1)


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

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply the branches; return the result and the past of the next frame."""
        filtered, past = self.depthwise(self.widen(x), past)
        return self.mix(filtered) * self.shortcut(x), past


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

    def forward(self, x: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Apply all orders; return the result and the past of the next frame."""
        gates, features = self.widen(x).split([sum(GATES), GATES[0]], dim=1)
        next_past: list[Tensor] = []
        for order, double in enumerate(self.doubling):
            if order < len(self.depthwise):
                gates, kept = self.depthwise[order](gates, past[order])
                next_past.append(kept)
            gates, gate = gates.split([gates.shape[1] - GATES[order], GATES[order]], dim=1)
            features = double(features * gate)
        return self.squeeze(features * gates), next_past


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

    def initial_state(self, batch: int) -> State:
        """Return the state before the first frame of `batch` signals, on the network's device."""
        bins = self.mask.out_features
        zeros = self.mask.weight.new_zeros(1, batch, bins)
        causal = [module for module in self.modules() if isinstance(module, CausalDepthwise)]
        return State(zeros, zeros, zeros, zeros, tuple(module.initial_past(batch, bins) for module in causal))

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self.stream(noisy, self.initial_state(noisy.mag.shape[0]))[0]

    def stream(self, noisy: Spectra, state: State) -> tuple[Spectra, State]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; return them and the state after them.

        Phases are not wrapped: they are in ±3π.
        """
        mag = noisy.mag.transpose(1, 2)  # [B, T, F]
        hidden, (mask_hidden, mask_cell) = run_rnn(self.mask_lstm, mag, (state.mask_hidden, state.mask_cell))
        masked = mag * torch.sigmoid(self.mask(hidden))

        past_1, past_2, *past_orders = state.past
        x, past_1 = self.scale_1(mag[:, None], past_1)
        x, past_2 = self.scale_2(x, past_2)
        mapped, past_orders = self.orders(x, past_orders)

        fused = self.fuse(torch.cat([mag, masked, mapped[:, 0]], dim=-1))
        hidden, (fused_hidden, fused_cell) = run_rnn(self.fused_lstm, fused, (state.fused_hidden, state.fused_cell))
        scale, real, imaginary = (
            at_least_float32(head(hidden)).transpose(1, 2) for head in (self.magnitude, self.real, self.imaginary)
        )
        masked = masked.transpose(1, 2)
        signed = masked + scale * (noisy.mag - masked)
        half_turn = math.pi * (signed < 0).to(signed)  # a negative magnitude is a phase shift of π
        pha = noisy.pha + angle(real, imaginary) + half_turn
        past = past_1, past_2, *past_orders
        return Spectra(signed.abs(), pha), State(mask_hidden, mask_cell, fused_hidden, fused_cell, past)
