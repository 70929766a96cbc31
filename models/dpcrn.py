"""DPCRN: causal convolutions, dual-path RNNs and a complex mask; optionally with adaptive kernels and a comb filter.

The sizes light, middle and large follow the PyTorch port of DPCRN (Le et al. 2021, arXiv 2107.05429) in the repository
Xiaobin-Rong/TRT-SE: five convolutions, two DPRNN blocks with LSTMs, five transposed convolutions. The size sub_band, of
this project, has three convolutions, GRUs, and 129 bands instead of 257 bins. Its layers are the base of two networks:

- DPCRN-CF16: `comb` adds an estimate of the fundamental frequency (F0) and a comb filter. This is a reading, at 16 kHz,
  of DPCRN-CF (Le et al. 2023, arXiv 2306.00812), of which neither code nor weights are public. Public are the idea (a
  sub-band model, a discrete F0, and a learnable comb filter that restores harmonics), and the comb filter and F0
  classes of a co-author (repository Taltt/PL-PE-HC-TFGrid4SE: 48 kHz, 16 to 48 ms of look-ahead). Bands, layers, mask,
  strength of the comb filter, F0 labels, losses and recipe are choices of this project, and the filter sees past
  samples only. Scores of this network do not stand for the published one.
- DPCRN-AC16: `adaptive_kernels` replaces each kernel by a mixture of eight that changes from frame to frame (AdaptCRN,
  Wang et al. 2025, arXiv 2502.14224).

Every layer sees the current and earlier frames, and keeps what it needs of the latter in a `Memory`: a signal can be
processed in pieces of any number of frames, or as a whole. Feature maps are `[B, C, T, F]`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import DpcrnConfig
from models.blocks import at_least_float32
from models.f0 import CLASSES, FRAME, HOP, LONGEST_PERIOD, SHORTEST_PERIOD, UNVOICED, f0_classes, f0_loss
from models.recurrent import run_rnn
from models.stft import AnySpectra, ComplexSpectra
from models.streaming import Memory, State, with_past

KERNELS = 8
"""Kernels of an adaptive convolution."""
ATTENTION_HIDDEN = 32

BLOCKS = 2
"""Number of DPRNN blocks."""

BINS, LOW_BINS, BANDS = 257, 65, 129
BIN_WIDTH = 31.25
"""In Hz."""

F0_CHANNELS, F0_FEATURES, F0_HIDDEN = 32, 136, 128

COMB_TAPS = (0.40, 0.3414, 0.20, 0.0586)
"""Initial taps of the comb filter, at 0, 1, 2 and 3 periods: the past half of the published seven."""
COMB_HISTORY = 768
"""Samples before a frame that the comb filter sees: three of the longest periods."""

NEARBY = 2
"""Distance in classes up to which the posterior counts for the strength of the comb filter."""

_NORM_EPS = 1e-8
_POWER_FLOOR = 1e-12


class Size(NamedTuple):
    """Layers of a network.

    channels, strides: of the encoder's convolutions, along frequency. The first kernel is 2×5 (frames × bins), the
    others are 2×3.
    decoder_frames: frames that the decoder's kernels see, 1 or 2.
    rnn: class of the recurrent layers.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    decoder_frames: int
    rnn: type[nn.LSTM] | type[nn.GRU]


SIZES = {
    "light": Size((8, 8, 8, 16, 32), (2, 2, 2, 1, 1), 2, nn.LSTM),
    "middle": Size((16, 16, 16, 32, 64), (2, 2, 2, 1, 1), 2, nn.LSTM),
    "large": Size((32, 32, 32, 64, 128), (2, 2, 2, 1, 1), 2, nn.LSTM),
    "sub_band": Size((16, 32, 64), (2, 2, 1), 1, nn.GRU),
}


class SubBands(nn.Module):
    """Merge the 192 bins above 2 kHz into 64 bands, and split them again; the lower 65 bins stay (GTCRN's bands).

    The centres are equally spaced on the ERB scale, 21.4 · log10(1 + 0.00437 f), and rounded to bins. Between two
    centres the weight of a bin moves linearly from one band to the other.
    """

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        low, high = (21.4 * math.log10(1 + 0.00437 * hertz) for hertz in (LOW_BINS * BIN_WIDTH, 8000))
        bands = BANDS - LOW_BINS
        erb = [low + (high - low) * band / (bands - 1) for band in range(bands)]
        centres = [round((10 ** (each / 21.4) - 1) / 0.00437 / BIN_WIDTH) for each in erb]  # bins 65 … 256
        weights = torch.zeros(BINS, bands)
        for band, (start, end) in enumerate(pairwise(centres)):
            for position in range(start, end + 1):
                weights[position, band + 1] = (position - start) / (end - start)
                weights[position, band] = 1 - weights[position, band + 1]
        self.register_buffer("weights", weights[LOW_BINS:], persistent=False)  # [192, 64]

    def merge(self, x: Tensor) -> Tensor:
        """Sum bins into bands: `[…, 257]` → `[…, 129]`."""
        return torch.cat([x[..., :LOW_BINS], x[..., LOW_BINS:] @ self.weights], dim=-1)

    def split(self, x: Tensor) -> Tensor:
        """Interpolate bands to bins: `[…, 129]` → `[…, 257]`."""
        return torch.cat([x[..., :LOW_BINS], x[..., LOW_BINS:] @ self.weights.T], dim=-1)


class AdaptiveConv(nn.Module):
    """Convolution whose kernel changes from frame to frame: a mixture of eight kernels (AdaptCRN).

    A GRU over the power of each input channel gives the shares of the kernels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        transposed: bool,
    ) -> None:
        super().__init__()
        self.size, self.stride, self.padding, self.transposed = size, stride, padding, transposed
        channels = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(KERNELS, *channels, *size))
        for kernel in self.weight:
            nn.init.kaiming_uniform_(kernel, math.sqrt(5))  # as PyTorch's convolutions
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.rnn = nn.GRU(in_channels, ATTENTION_HIDDEN, batch_first=True)
        self.shares = nn.Linear(ATTENTION_HIDDEN, KERNELS)

    def forward(self, seen: Tensor, memory: Memory) -> Tensor:
        """Convolve frames `[B, C, T, F]`, which come after the earlier frames that the first kernel sees."""
        power = at_least_float32(seen[:, :, self.size[0] - 1 :]).square().mean(dim=3).transpose(1, 2)  # [B, T, C]
        shares = torch.softmax(self.shares(run_rnn(self.rnn, power, memory)), dim=-1)  # [B, T, 8]

        # Convolve each frame by a matrix product with its own kernel: a third of the time of eight convolutions.
        batch, frames, _ = shares.shape
        windows = seen.unfold(2, self.size[0], 1).permute(0, 2, 1, 4, 3).flatten(0, 1)  # [B·T, C, kernel frames, F]
        kernels = (shares.flatten(0, 1) @ self.weight.flatten(1)).unflatten(1, (self.weight.shape[1], -1))
        if self.transposed:
            bins = (windows.shape[3] - 1) * self.stride[1] - 2 * self.padding[1] + self.size[1]
            y = kernels.transpose(1, 2) @ windows.flatten(2)
            y = functional.fold(y, (1, bins), self.size, 1, self.padding, self.stride)[:, :, 0]
        else:
            y = kernels @ functional.unfold(windows, self.size, 1, self.padding, self.stride)
        return (y + self.bias[:, None]).unflatten(0, (batch, frames)).transpose(1, 2)


class ConvLayer(nn.Module):
    """Causal convolution, batch norm and PReLU with one slope: `[B, C, T, F]` → `[B, C', T, F']`.

    size: kernel size in frames and bins.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        stride: int,
        adaptive: bool,
        transposed: bool = False,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.past_frames = size[0] - 1
        # The input has the earlier frames in front. A transposed convolution also returns incomplete frames at both
        # ends, which its padding removes.
        padding = (self.past_frames if transposed else 0, size[1] // 2)
        arguments = in_channels, out_channels, size, (1, stride), padding
        if adaptive:
            self.conv = AdaptiveConv(*arguments, transposed)
        else:
            self.conv = nn.ConvTranspose2d(*arguments) if transposed else nn.Conv2d(*arguments)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.PReLU() if act else nn.Identity()

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Convolve the next frames."""
        seen = with_past(x, self.past_frames, memory) if self.past_frames else x
        y = self.conv(seen, memory) if isinstance(self.conv, AdaptiveConv) else self.conv(seen)
        return self.act(self.norm(y))


class DprnnBlock(nn.Module):
    """Dual-path RNN: over the bins of each frame, then over the frames of each bin; `[B, T, F, C]` → the same shape."""

    def __init__(self, rnn: type[nn.LSTM] | type[nn.GRU], channels: int, bins: int) -> None:
        super().__init__()
        self.bin_rnn = rnn(channels, channels // 2, batch_first=True, bidirectional=True)
        self.bin_dense = nn.Linear(channels, channels)
        self.bin_norm = nn.LayerNorm([bins, channels], _NORM_EPS)
        self.time_rnn = rnn(channels, channels, batch_first=True)
        self.time_dense = nn.Linear(channels, channels)
        self.time_norm = nn.LayerNorm([bins, channels], _NORM_EPS)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Add the normalised output of each RNN to its input."""
        x = x + self.bin_norm(self.bin_dense(run_rnn(self.bin_rnn, x)))
        y = self.time_dense(run_rnn(self.time_rnn, x.transpose(1, 2), memory))
        return x + self.time_norm(y.transpose(1, 2))


class F0Head(nn.Module):
    """Estimate the F0 class of each frame: `[B, C, T, F]` → logits `[B, T, 226]`."""

    def __init__(self, channels: int, bins: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, F0_CHANNELS, 1), nn.PReLU())
        self.dense = nn.Sequential(nn.Linear(F0_CHANNELS * bins, F0_FEATURES), nn.PReLU())
        self.rnn = nn.GRU(F0_FEATURES, F0_HIDDEN, batch_first=True)
        self.logits = nn.Linear(F0_HIDDEN, CLASSES)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Apply a GRU to all channels and bins of a frame."""
        x = self.dense(self.conv(x).transpose(1, 2).flatten(2))
        return at_least_float32(self.logits(run_rnn(self.rnn, x, memory)))


class CombFilter(nn.Module):
    """Comb filter with learned taps for each period, applied to the frames of an STFT.

    x_c[n] = Σ_k a_k x[n − k · period] for k = 0 … 3 and the 512 samples of a frame, which is then windowed and
    transformed as in the STFT. The taps of a period are the softmax of four weights. The samples x follow from the
    spectra by overlap-add; those in the second half of the newest frame are divided by the window instead.
    """

    window: Tensor
    fade: Tensor
    """Largest share of the filtered spectrum in the result, by bin: 1 up to 2.5 kHz, 0 from 7.5 kHz on, `[257]`."""

    def __init__(self) -> None:
        super().__init__()
        self.tap_logits = nn.Parameter(torch.tensor(COMB_TAPS).log().repeat(UNVOICED, 1))
        self.register_buffer("window", torch.hann_window(FRAME).sqrt(), persistent=False)
        fade = torch.hann_window(320, periodic=False)[160:]
        self.register_buffer("fade", torch.cat([torch.ones(80), fade, torch.zeros(17)]), persistent=False)

    def forward(self, spectrum: Tensor, classes: Tensor, memory: Memory) -> Tensor:
        """Filter spectra, real and imaginary part `[B, 2, T, F]`, with the periods of F0 classes `[B, T]`.

        Unvoiced frames do not change.
        """
        frames = torch.fft.irfft(torch.complex(*spectrum.unbind(dim=1)), FRAME)
        first, second = frames.split(HOP, dim=2)  # [B, T, 256] each
        rise, fall = self.window.split(HOP)
        kept = memory.recall(self.tap_logits.new_zeros(frames.shape[0], COMB_HISTORY + HOP))
        history, previous = kept.split([COMB_HISTORY, HOP], dim=1)
        before = torch.cat([previous[:, None], second], dim=1)  # the second halves of the frames before
        complete = torch.cat([history, (first * rise + before[:, :-1] * fall).flatten(1)], dim=1)
        memory.keep(torch.cat([complete[:, -COMB_HISTORY:], before[:, -1]], dim=1))
        # No delay is shorter than 32 samples: the last 32, where the window is almost 0, are not needed.
        newest = functional.pad((second / fall)[..., :-SHORTEST_PERIOD], (0, SHORTEST_PERIOD))
        samples = torch.cat([complete.unfold(1, COMB_HISTORY + HOP, HOP), newest], dim=2)  # [B, T, 1280]

        taps = torch.softmax(self.tap_logits, dim=1)
        taps = torch.cat([taps, functional.pad(taps.new_ones(1, 1), (0, len(COMB_TAPS) - 1))])[classes]  # [B, T, 4]
        period = (LONGEST_PERIOD - classes)[..., None, None]
        delays = period * torch.arange(1, len(COMB_TAPS), device=classes.device)[:, None]  # [B, T, 3, 1]
        positions = torch.arange(COMB_HISTORY, COMB_HISTORY + FRAME, device=classes.device)
        delayed = samples.gather(2, (positions - delays).flatten(2)).unflatten(2, (-1, FRAME))  # [B, T, 3, 512]
        echoes = torch.fft.rfft((taps[..., 1:, None] * delayed).sum(dim=2) * self.window)
        return taps[:, None, :, :1] * spectrum + torch.stack([echoes.real, echoes.imag], dim=1)


class DPCRN(nn.Module):
    """Noisy spectra → enhanced spectra, uncompressed and causal."""

    def __init__(self, config: DpcrnConfig, bins: int) -> None:
        super().__init__()
        self.label_epochs, self.mask_gain = config.label_epochs, config.mask_gain
        size, adaptive = SIZES[config.size], config.adaptive_kernels
        self.bands = SubBands() if config.size == "sub_band" else None
        bins, channels = (BANDS, 3) if self.bands else (bins, 2)
        outputs = 3 if config.comb else 2

        encoder: list[ConvLayer] = []
        decoder: list[ConvLayer] = []
        for index, (width, stride) in enumerate(zip(size.channels, size.strides, strict=True)):
            kernel = 3 if index else 5
            encoder.append(ConvLayer(channels, width, (2, kernel), stride, adaptive))
            bins = (bins - 1) // stride + 1
            mirrored = (size.decoder_frames, kernel), stride, adaptive
            decoder.append(
                ConvLayer(2 * width, channels if index else outputs, *mirrored, transposed=True, act=index > 0)
            )
            channels = width
        self.encoder = nn.ModuleList(encoder)
        self.blocks = nn.ModuleList(DprnnBlock(size.rnn, channels, bins) for _ in range(BLOCKS))
        self.decoder = nn.ModuleList(reversed(decoder))
        self.f0_head = F0Head(channels, bins) if config.comb else None
        self.comb = CombFilter() if config.comb else None

        # Begin near the identity: mask near 1 (with bands tanh 1), comb filter at an eighth of its strength.
        norm = decoder[0].norm
        with torch.no_grad():
            norm.weight.fill_(0.1)
            norm.bias.copy_(torch.tensor([1.0, 0.0, -2.0])[:outputs])

    def forward(
        self, noisy: AnySpectra, clean_wav: Tensor | None = None, epoch: int = 0
    ) -> ComplexSpectra | tuple[ComplexSpectra, dict[str, Tensor]]:
        """Enhance whole signals, spectra `[B, F, T]`.

        With the clean waveforms `[B, N]`, for training, also return the loss term `f0` of the network with the comb
        filter; in the first epochs, `DpcrnConfig.label_epochs`, the comb filter then uses the F0 of the clean speech.
        """
        memory = Memory()
        if clean_wav is None:
            return self._enhance(noisy, memory)[0]
        labels = f0_classes(clean_wav)
        enhanced, logits = self._enhance(noisy, memory, labels if epoch < self.label_epochs else None)
        assert logits is not None, "only the network with the comb filter has a loss term of its own"
        return enhanced, {"f0": f0_loss(logits, labels)}

    def stream(self, noisy: AnySpectra, state: State | None) -> tuple[ComplexSpectra, State]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; return them and the state after them."""
        memory = Memory(state)
        enhanced, _ = self._enhance(noisy, memory)
        return enhanced, memory.end()

    def _enhance(
        self, noisy: AnySpectra, memory: Memory, classes: Tensor | None = None
    ) -> tuple[ComplexSpectra, Tensor | None]:
        """Return the enhanced spectra and the F0 logits; `classes` are used instead of the estimated ones."""
        spectrum = noisy.complex.permute(0, 3, 2, 1)  # [B, 2, T, F]
        x = spectrum
        if self.bands:
            mag = (spectrum.square().sum(dim=1, keepdim=True) + _POWER_FLOOR).sqrt()
            x = self.bands.merge(torch.cat([mag**0.3, spectrum * mag**-0.7], dim=1))

        skips: list[Tensor] = []
        for layer in self.encoder:
            x = layer(x, memory)
            skips.append(x)
        x = x.permute(0, 2, 3, 1)  # [B, T, F, C]
        for block in self.blocks:
            x = block(x, memory)
        x = bottleneck = x.permute(0, 3, 1, 2)
        for layer in self.decoder:
            x = layer(torch.cat([x, skips.pop()], dim=1), memory)
        x = at_least_float32(x)
        if self.bands:
            x = self.bands.split(x)
        mask = self.mask_gain * (x[:, :2].tanh() if self.bands else x[:, :2])

        logits = None
        if self.f0_head and self.comb:
            logits = self.f0_head(bottleneck, memory)
            chosen = logits.argmax(dim=-1) if classes is None else classes
            filtered = self.comb(spectrum, chosen, memory)
            strength = self.comb.fade * x[:, 2].sigmoid() * confidence(logits.detach(), chosen)[..., None]
            spectrum = spectrum + strength[:, None] * (filtered - spectrum)

        (mask_real, mask_imaginary), (real, imaginary) = mask.unbind(dim=1), spectrum.unbind(dim=1)
        return ComplexSpectra(
            (mask_real * real - mask_imaginary * imaginary).transpose(1, 2),
            (mask_real * imaginary + mask_imaginary * real).transpose(1, 2),
        ), logits


def confidence(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the probability of periods near F0 classes `[B, T]` by logits `[B, T, 226]`: `[B, T]`.

    That is the sum over the voiced classes at most `NEARBY` from the given one, and 0 for unvoiced frames.
    """
    voiced = torch.softmax(logits, dim=-1)[..., :UNVOICED]
    padded = functional.pad(voiced, (NEARBY, NEARBY + 1))
    nearby = classes[..., None] + torch.arange(2 * NEARBY + 1, device=classes.device)
    return padded.gather(2, nearby).sum(dim=-1).masked_fill(classes == UNVOICED, 0)
