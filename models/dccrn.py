"""DCCRN: a complex U-Net with an LSTM at its lowest resolution, which estimates a complex mask.

Hu et al. 2020, "DCCRN: Deep Complex Convolution Recurrent Network for Phase-Aware Speech Enhancement" (arXiv
2008.00264), with the layers and channels of the authors' code (huyanxin/DeepComplexCRN). The default is DCCRN-CL, whose
LSTM is complex. An encoder of complex convolutions halves the frequency axis six times, a decoder of complex transposed
convolutions with skip connections doubles it again.

Feature maps are `[B, C, F, T]`, with the real parts in the first half of the channels and the imaginary parts in the
second. The encoder and the LSTMs see the current and earlier frames. Each of the first `DccrnConfig.look_ahead` decoder
layers also sees the next frame; without look-ahead the network is causal and can stream.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import DccrnConfig
from models.blocks import at_least_float32
from models.cnunet import complex_concat, complex_conv
from models.recurrent import run_rnn
from models.stft import ComplexSpectra, Spectra
from models.streaming import Memory, State

CHANNELS = {"complex": (32, 64, 128, 256, 256, 256), "real": (16, 32, 64, 128, 256, 256)}
"""Output channels of the encoder layers by `DccrnConfig.lstm`, real and imaginary parts together."""

COMPLEX_HIDDEN = 128
"""Width of each part of the complex LSTM."""
REAL_HIDDEN = 256
LSTM_LAYERS = 2

_INITIAL_STD = 0.05  # of the weights of the convolutions
_SILENT_POWER = 1e-8  # added to the power of the noisy spectrum by mask E


class EncoderLayer(nn.Module):
    """Complex convolution over 5 bins and 2 frames, norm, PReLU: `[B, C, F, T]` → `[B, C', F / 2, T]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _initialized(nn.Conv2d(in_channels // 2, out_channels, (5, 2), (2, 1), (2, 0)))
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.PReLU()

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Convolve each frame and the one before it."""
        return self.act(self.norm(complex_conv(self.conv, _with_previous(x, memory))))


class DecoderLayer(nn.Module):
    """Complex transposed convolution over 5 bins and 2 frames, norm, PReLU: `[B, C, F, T]` → `[B, C', 2F, T]`.

    With V_0 and V_1 as the two frames of the kernel, frame t of the convolution's output is V_0 x[t + 1] + V_1 x[t] if
    the layer looks ahead, where the frame after the last is zero, and else V_0 x[t] + V_1 x[t - 1].
    """

    def __init__(self, in_channels: int, out_channels: int, looks_ahead: bool, last: bool) -> None:
        super().__init__()
        self.looks_ahead = looks_ahead
        # T frames give T + 1. Without look-ahead there is a past frame, and the frames at both ends are cut.
        padding = (2, 0 if looks_ahead else 1)
        self.conv = _initialized(
            nn.ConvTranspose2d(in_channels // 2, out_channels, (5, 2), (2, 1), padding, output_padding=(1, 0))
        )
        self.norm = nn.Identity() if last else nn.BatchNorm2d(out_channels)
        self.act = nn.Identity() if last else nn.PReLU()

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Convolve.

        As in the authors' code, the statistics of the norm include the frame that is dropped.
        """
        y = complex_conv(self.conv, x if self.looks_ahead else _with_previous(x, memory))
        y = self.act(self.norm(y))
        return y[..., 1:] if self.looks_ahead else y


def _with_previous(x: Tensor, memory: Memory) -> Tensor:
    """Put the last frame of the pass before in front of `[B, C, F, T]`."""
    past = memory.recall(torch.zeros_like(x[..., :1]))
    memory.keep(x[..., -1:])
    return torch.cat([past, x], dim=3)


def _initialized(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    nn.init.normal_(conv.weight, std=_INITIAL_STD)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class ComplexLSTM(nn.Module):
    """Two LSTMs L_r and L_i over time, combined as a complex product: `[B, 2, T, C]` → `[B, 2, T, C']`.

    The second axis is real and imaginary part: real = L_r(real) − L_i(imaginary), imaginary = L_r(imaginary) +
    L_i(real). Each of the four runs has its own state.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.real = nn.LSTM(inputs, hidden, batch_first=True)
        self.imaginary = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Apply both LSTMs to both parts."""
        rr, ri = run_rnn(self.real, x, memory).unbind(dim=1)
        ir, ii = run_rnn(self.imaginary, x, memory).unbind(dim=1)
        return torch.stack([rr - ii, ri + ir], dim=1)


class RealLSTM(nn.Module):
    """LSTM over time with the interface of `ComplexLSTM`, for one part: `[B, 1, T, C]` → `[B, 1, T, C']`."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Apply the LSTM."""
        return run_rnn(self.lstm, x, memory)


class Bottleneck(nn.Module):
    """Two LSTM layers over time and a dense layer: `[B, C, F, T]` → the same shape.

    The complex LSTM gets real and imaginary part as vectors of C / 2 · F values, and each part has its own, real dense
    layer after it. The real LSTM gets one vector of C · F values.
    """

    def __init__(self, channels: int, bins: int, is_complex: bool) -> None:
        super().__init__()
        self.parts = 2 if is_complex else 1
        layer, hidden = (ComplexLSTM, COMPLEX_HIDDEN) if is_complex else (RealLSTM, REAL_HIDDEN)
        size = channels // self.parts * bins
        self.lstms = nn.ModuleList(layer(hidden if index else size, hidden) for index in range(LSTM_LAYERS))
        self.dense = nn.ModuleList(nn.Linear(hidden, size) for _ in range(self.parts))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Apply the layers."""
        bins = x.shape[2]
        x = torch.stack([part.permute(0, 3, 1, 2).flatten(2) for part in x.chunk(self.parts, 1)], dim=1)
        for lstm in self.lstms:
            x = lstm(x, memory)  # [B, parts, T, N]
        parts = zip(self.dense, x.unbind(dim=1), strict=True)
        return torch.cat([layer(part).unflatten(2, (-1, bins)) for layer, part in parts], dim=2).permute(0, 2, 3, 1)


class DCCRN(nn.Module):
    """Noisy spectra → enhanced spectra, uncompressed, for any number of frames from 1 up.

    The authors' code computes the STFT by a convolution, which gives one more frame at each end, sees zeros beyond the
    edges instead of reflected samples, and counts phases from the first sample of the window instead of from 56 samples
    before it. Its inverse is the pseudo-inverse of the transform, and the waveform is limited to ±1.
    """

    def __init__(self, config: DccrnConfig, bins: int) -> None:
        super().__init__()
        self.config = config
        widths = 2, *CHANNELS[config.lstm]
        levels = range(len(widths) - 1)
        self.encoder = nn.ModuleList(EncoderLayer(widths[i], widths[i + 1]) for i in levels)
        self.bottleneck = Bottleneck(widths[-1], (bins - 1) >> len(levels), is_complex=config.lstm == "complex")
        self.decoder = nn.ModuleList(
            DecoderLayer(2 * widths[i + 1], widths[i], looks_ahead=len(levels) - i <= config.look_ahead, last=i == 0)
            for i in reversed(levels)
        )

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self._enhance(noisy, Memory())

    def _enhance(self, noisy: Spectra, memory: Memory) -> Spectra:
        """Enhance frames, spectra `[B, F, T]`.

        The bin at 0 Hz is ignored and 0 in the result. With masks E and C phases are not wrapped: they are in ±2π.
        """
        x = noisy.complex.permute(0, 3, 1, 2)[:, :, 1:]  # [B, 2, F - 1, T]
        skips: list[Tensor] = []
        for layer in self.encoder:
            x = layer(x, memory)
            skips.append(x)
        x = self.bottleneck(x, memory)
        for layer in self.decoder:
            x = layer(complex_concat([x, skips.pop()]), memory)
        real, imaginary = functional.pad(at_least_float32(x), (0, 0, 1, 0)).unbind(dim=1)
        return apply_mask(self.config.mask, noisy, real, imaginary)


class CausalDCCRN(DCCRN):
    """DCCRN without look-ahead, which can stream (`enhance.streaming.StreamingNetwork`)."""

    def stream(self, noisy: Spectra, state: State | None) -> tuple[Spectra, State]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; return them and the state after them."""
        memory = Memory(state)
        return self._enhance(noisy, memory), memory.end()


def apply_mask(kind: Literal["E", "C", "R"], noisy: Spectra, real: Tensor, imaginary: Tensor) -> Spectra:
    """Multiply spectra by a complex mask, `[B, F, T]` each, in one of the ways of `DccrnConfig.mask`."""
    if kind == "R":
        noisy_real, noisy_imaginary = noisy.complex.unbind(dim=-1)
        return ComplexSpectra(noisy_real * real, noisy_imaginary * imaginary).polar
    gain, rotation = ComplexSpectra(real, imaginary).polar
    if kind == "C":
        return Spectra(noisy.mag * gain, noisy.pha + rotation)
    return Spectra((noisy.mag.square() + _SILENT_POWER).sqrt() * torch.tanh(gain), noisy.pha + rotation)


def make_dccrn(config: DccrnConfig, bins: int) -> DCCRN:
    """Build the network; it can stream if `config.look_ahead` is 0."""
    return (DCCRN if config.look_ahead else CausalDCCRN)(config, bins)
