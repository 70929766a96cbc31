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

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import DccrnConfig
from models.blocks import at_least_float32
from models.cnunet import complex_concat, complex_conv
from models.recurrent import run_rnn
from models.stft import ComplexSpectra, Spectra

CHANNELS = {"complex": (32, 64, 128, 256, 256, 256), "real": (16, 32, 64, 128, 256, 256)}
"""Output channels of the encoder layers by `DccrnConfig.lstm`, real and imaginary parts together."""

COMPLEX_HIDDEN = 128
"""Width of each part of the complex LSTM."""
REAL_HIDDEN = 256
LSTM_LAYERS = 2

_INITIAL_STD = 0.05  # of the weights of the convolutions
_SILENT_POWER = 1e-8  # added to the power of the noisy spectrum by mask E


class State(NamedTuple):
    """State after a frame, for B signals.

    hidden, cell: states of the LSTM layers, `[4, B, H]` if they are complex, else `[1, B, H]`.
    encoder_past, decoder_past: last input frame of each layer, `[B, C, F, 1]`; layers that look ahead ignore theirs.
    """

    hidden: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]
    encoder_past: tuple[Tensor, ...]
    decoder_past: tuple[Tensor, ...]


class EncoderLayer(nn.Module):
    """Complex convolution over 5 bins and 2 frames, norm, PReLU: `[B, C, F, T]` → `[B, C', F / 2, T]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _initialized(nn.Conv2d(in_channels // 2, out_channels, (5, 2), (2, 1), (2, 0)))
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.PReLU()

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve each frame and the one before it; return the result and the past of the next frame."""
        y = complex_conv(self.conv, torch.cat([past, x], dim=3))
        return self.act(self.norm(y)), x[..., -1:]


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

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve; return the result and the past of the next frame.

        As in the authors' code, the statistics of the norm include the frame that is dropped.
        """
        y = complex_conv(self.conv, x if self.looks_ahead else torch.cat([past, x], dim=3))
        y = self.act(self.norm(y))
        return y[..., 1:] if self.looks_ahead else y, x[..., -1:]


def _initialized(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    nn.init.normal_(conv.weight, std=_INITIAL_STD)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class ComplexLSTM(nn.Module):
    """Two LSTMs L_r and L_i over time, combined as a complex product: `[2, B, T, C]` → `[2, B, T, C']`.

    The first axis is real and imaginary part: real = L_r(real) − L_i(imaginary), imaginary = L_r(imaginary) +
    L_i(real). Each of the four runs has its own state; they are in the order L_r(real), L_r(imaginary), L_i(real),
    L_i(imaginary).
    """

    runs = 4

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.real = nn.LSTM(inputs, hidden, batch_first=True)
        self.imaginary = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply both LSTMs to both parts in one batch; return the result and the next state, `[4, B, C']` each."""
        (rr, ri), *real_state = _run_parts(self.real, x, hidden[:2], cell[:2])
        (ir, ii), *imaginary_state = _run_parts(self.imaginary, x, hidden[2:], cell[2:])
        hidden, cell = (torch.cat(parts) for parts in zip(real_state, imaginary_state, strict=True))
        return torch.stack([rr - ii, ri + ir]), hidden, cell


class RealLSTM(nn.Module):
    """LSTM over time with the interface of `ComplexLSTM`, for one part: `[1, B, T, C]` → `[1, B, T, C']`."""

    runs = 1

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the LSTM; return the result and the next state, `[1, B, C']` each."""
        y, (hidden, cell) = run_rnn(self.lstm, x[0], (hidden, cell))
        return y[None], hidden, cell


def _run_parts(lstm: nn.LSTM, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Apply an LSTM to two parts, `[2, B, T, C]` → `[2, B, T, C']`; return the result and the states `[2, B, C']`."""
    y, state = run_rnn(lstm, x.flatten(0, 1), (hidden.flatten(0, 1)[None], cell.flatten(0, 1)[None]))
    hidden, cell = (each[0].unflatten(0, (2, -1)) for each in state)
    return y.unflatten(0, (2, -1)), hidden, cell


class Bottleneck(nn.Module):
    """Two LSTM layers over time and a dense layer: `[B, C, F, T]` → the same shape.

    The complex LSTM gets real and imaginary part as vectors of C / 2 · F values, and each part has its own, real dense
    layer after it. The real LSTM gets one vector of C · F values.
    """

    def __init__(self, channels: int, bins: int, is_complex: bool) -> None:
        super().__init__()
        self.parts = 2 if is_complex else 1
        layer, hidden = (ComplexLSTM, COMPLEX_HIDDEN) if is_complex else (RealLSTM, REAL_HIDDEN)
        self.hidden_shape = layer.runs, hidden
        size = channels // self.parts * bins
        self.lstms = nn.ModuleList(layer(hidden if index else size, hidden) for index in range(LSTM_LAYERS))
        self.dense = nn.ModuleList(nn.Linear(hidden, size) for _ in range(self.parts))

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, ...], cell: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Apply the layers; return the result and the next state of each LSTM layer."""
        bins = x.shape[2]
        x = torch.stack([part.permute(0, 3, 1, 2).flatten(2) for part in x.chunk(self.parts, 1)])  # [parts, B, T, N]
        next_hidden: list[Tensor] = []
        next_cell: list[Tensor] = []
        for lstm, before, cell_before in zip(self.lstms, hidden, cell, strict=True):
            x, after, cell_after = lstm(x, before, cell_before)
            next_hidden.append(after)
            next_cell.append(cell_after)
        dense = [layer(part).unflatten(2, (-1, bins)) for layer, part in zip(self.dense, x, strict=True)]
        return torch.cat(dense, dim=2).permute(0, 2, 3, 1), tuple(next_hidden), tuple(next_cell)


class DCCRN(nn.Module):
    """Noisy spectra → enhanced spectra, uncompressed, for any number of frames from 1 up.

    The authors' code computes the STFT by a convolution, which gives one more frame at each end, sees zeros beyond the
    edges instead of reflected samples, and counts phases from the first sample of the window instead of from 56 samples
    before it. Its inverse is the pseudo-inverse of the transform, and the waveform is limited to ±1.
    """

    def __init__(self, config: DccrnConfig, bins: int) -> None:
        super().__init__()
        self.config = config
        self.bins = bins - 1  # without 0 Hz
        self.widths = widths = 2, *CHANNELS[config.lstm]
        levels = range(len(widths) - 1)
        self.encoder = nn.ModuleList(EncoderLayer(widths[i], widths[i + 1]) for i in levels)
        self.bottleneck = Bottleneck(widths[-1], self.bins >> len(levels), is_complex=config.lstm == "complex")
        self.decoder = nn.ModuleList(
            DecoderLayer(2 * widths[i + 1], widths[i], looks_ahead=len(levels) - i <= config.look_ahead, last=i == 0)
            for i in reversed(levels)
        )

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self._enhance(noisy, self._zero_state(noisy.mag.shape[0]))[0]

    def _zero_state(self, batch: int) -> State:
        """Return the state before the first frame of `batch` signals, on the network's device."""
        weight = next(self.parameters())
        runs, width = self.bottleneck.hidden_shape
        hidden = (weight.new_zeros(runs, batch, width),) * LSTM_LAYERS
        levels = range(len(self.widths) - 1)
        encoder_past = (weight.new_zeros(batch, self.widths[i], self.bins >> i, 1) for i in levels)
        decoder_past = (
            weight.new_zeros(batch, 2 * self.widths[i + 1], self.bins >> i + 1, 1) for i in reversed(levels)
        )
        return State(hidden, hidden, tuple(encoder_past), tuple(decoder_past))

    def _enhance(self, noisy: Spectra, state: State) -> tuple[Spectra, State]:
        """Enhance frames, spectra `[B, F, T]`, and return them and the state after them.

        The bin at 0 Hz is ignored and 0 in the result. With masks E and C phases are not wrapped: they are in ±2π.
        """
        x = noisy.complex.permute(0, 3, 1, 2)[:, :, 1:]  # [B, 2, F - 1, T]
        skips: list[Tensor] = []
        encoder_past: list[Tensor] = []
        for layer, past in zip(self.encoder, state.encoder_past, strict=True):
            x, kept = layer(x, past)
            skips.append(x)
            encoder_past.append(kept)

        x, hidden, cell = self.bottleneck(x, state.hidden, state.cell)

        decoder_past: list[Tensor] = []
        for layer, skip, past in zip(self.decoder, reversed(skips), state.decoder_past, strict=True):
            x, kept = layer(complex_concat([x, skip]), past)
            decoder_past.append(kept)

        real, imaginary = functional.pad(at_least_float32(x), (0, 0, 1, 0)).unbind(dim=1)
        enhanced = apply_mask(self.config.mask, noisy, real, imaginary)
        return enhanced, State(hidden, cell, tuple(encoder_past), tuple(decoder_past))


class CausalDCCRN(DCCRN):
    """DCCRN without look-ahead, which can stream (`enhance.streaming.StreamingNetwork`)."""

    def initial_state(self, batch: int) -> State:
        """Return the state before the first frame of `batch` signals, on the network's device."""
        return self._zero_state(batch)

    def stream(self, noisy: Spectra, state: State) -> tuple[Spectra, State]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; return them and the state after them."""
        return self._enhance(noisy, state)


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
