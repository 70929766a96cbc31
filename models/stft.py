"""STFT with power-law compression, and its inverse, used by every network in training and inference.

IMSE paper, section 3.1: magnitude ** 0.3 and the phase of the uncompressed STFT. `enhance.streaming` computes the
same frame by frame.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import StftConfig

PHASE_FLOOR = 1e-6
"""Real and imaginary parts below this fraction of the frame's largest magnitude count as 0 for the phase."""

# Added to power, real and imaginary part with `StftConfig.floors`.
_POWER_FLOOR, _REAL_FLOOR, _IMAGINARY_FLOOR = 1e-9, 1e-5, 1e-10

# Below a magnitude of 1e-15 the gradient of mag ** 0.3 overflows float32: treat it as silence.
_SILENT_POWER = 1e-30


class Spectra(NamedTuple):
    """Compressed magnitude and phase in radians of a batch of signals, each `[B, F, T]`."""

    mag: Tensor
    pha: Tensor

    @classmethod
    def from_stft(cls, spectrum: Tensor, compress_factor: float, floors: bool = False) -> Spectra:
        """Convert a complex STFT `[B, F, T]`, with one defined phase for bins that are only rounding errors.

        A frame that is reflected at an edge of the signal is symmetric: its imaginary parts are rounding errors around
        0. Their signs, which decide between +π and −π, differ between FFT libraries. Real and imaginary parts below
        `PHASE_FLOOR` times the largest magnitude of the frame therefore count as 0 for the phase. The zeros of the
        imaginary part are +0, +0, −0, −0, … along frequency, so that both signs of π occur equally often, as they do
        in the rounding errors with which the published networks were trained; only at 0 Hz and at the Nyquist
        frequency, which are real in every frame, they are +0, as an FFT returns them. The magnitude is not affected.

        With `floors` the constants of the released MP-SENet are added: 1e-9 to the power, and for the phase 1e-5 to the
        real part and, where it is not a rounding error, 1e-10 to the imaginary part.
        """
        mag = _compressed_mag(spectrum.real, spectrum.imag, compress_factor, _POWER_FLOOR if floors else 0.0)
        floor = PHASE_FLOOR * spectrum.detach().abs().amax(dim=1, keepdim=True)
        zero = _signed_zeros(spectrum.shape[1], spectrum.real.dtype, spectrum.device)
        real = spectrum.real.masked_fill(spectrum.real.abs() < floor, 0.0)
        imaginary = spectrum.imag
        if floors:
            real, imaginary = real + _REAL_FLOOR, imaginary + _IMAGINARY_FLOOR
        return cls(mag, angle(real, torch.where(spectrum.imag.abs() < floor, zero, imaginary)))

    @property
    def complex(self) -> Tensor:
        """Real and imaginary part of the compressed spectra, `[B, F, T, 2]`."""
        return torch.stack([self.mag * torch.cos(self.pha), self.mag * torch.sin(self.pha)], dim=-1)


class ComplexSpectra(NamedTuple):
    """Real and imaginary part of the uncompressed spectra of a batch of signals, each `[B, F, T]`.

    For networks that compute with these, without a detour through the phase.
    """

    real: Tensor
    imaginary: Tensor

    @property
    def mag(self) -> Tensor:
        """Magnitude."""
        return _compressed_mag(self.real, self.imaginary, 1.0)

    @property
    def pha(self) -> Tensor:
        """Phase in radians."""
        return angle(self.real, self.imaginary)

    @property
    def polar(self) -> Spectra:
        """Magnitude, uncompressed, and phase."""
        return Spectra(self.mag, self.pha)

    @property
    def complex(self) -> Tensor:
        """Real and imaginary part, `[B, F, T, 2]`."""
        return torch.stack(self, dim=-1)


AnySpectra = Spectra | ComplexSpectra
"""Input and output of a network: `ComplexSpectra` if `config.NetworkConfig.complex_spectra` is set."""


def spectra_class(complex_spectra: bool) -> type[Spectra] | type[ComplexSpectra]:
    """Return the class of a network's input and output."""
    return ComplexSpectra if complex_spectra else Spectra


@cache
def _signed_zeros(bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the zeros of imaginary parts in `Spectra.from_stft`, `[bins, 1]`."""
    with torch.inference_mode(False):  # a tensor that training can use too
        index = torch.arange(bins, device=device)[:, None]
        return torch.where((index % 4 < 2) | (index == bins - 1), 0.0, -0.0).to(dtype)


def angle(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return the phase of complex numbers in radians; 0, with gradient 0, below a magnitude of 1e-15."""
    silent = real.square() + imaginary.square() < _SILENT_POWER
    # Both branches of `where` need a finite gradient, not only the selected one.
    return torch.where(silent, 0.0, torch.atan2(imaginary, real.masked_fill(silent, 1.0)))


def _compressed_mag(real: Tensor, imaginary: Tensor, compress_factor: float, floor: float = 0.0) -> Tensor:
    power = real.square() + imaginary.square() + floor
    silent = power < _SILENT_POWER
    return torch.where(silent, 0.0, power.masked_fill(silent, 1.0) ** (compress_factor / 2))


class Spectrogram(nn.Module):
    """STFT with power-law compression, and its inverse; gradients are finite everywhere, also at zero magnitude.

    Centred frames, reflected edges, periodic window. N samples, padded by `StftConfig.padding`, give N // hop_size + 1
    frames of n_fft / 2 + 1 bins. With `complex_spectra` the spectra are `ComplexSpectra`, uncompressed.
    """

    window: Tensor

    def __init__(self, config: StftConfig, complex_spectra: bool = False) -> None:
        super().__init__()
        self.config = config
        self.spectra_class = spectra_class(complex_spectra)
        window = torch.hamming_window if config.window == "hamming" else torch.hann_window
        samples = window(config.win_size)
        self.register_buffer("window", samples.sqrt() if config.window == "sqrt_hann" else samples, persistent=False)

    def forward(self, wav: Tensor) -> AnySpectra:
        """Transform waveforms `[B, N]`, N ≥ 1, to spectra `[B, F, T]`."""
        wav = functional.pad(wav, (0, self.config.padding(wav.shape[-1])))
        spectrum = torch.stft(
            wav,
            self.config.n_fft,
            self.config.hop_size,
            self.config.win_size,
            self.window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        return self.from_stft(spectrum)

    def from_stft(self, spectrum: Tensor) -> AnySpectra:
        """Convert a complex STFT `[B, F, T]`."""
        if self.spectra_class is ComplexSpectra:
            return ComplexSpectra(spectrum.real, spectrum.imag)
        return Spectra.from_stft(spectrum, self.config.compress_factor, self.config.floors)

    def to_stft(self, spectra: AnySpectra) -> Tensor:
        """Return the complex STFT `[B, F, T]`."""
        if isinstance(spectra, ComplexSpectra):
            return torch.complex(spectra.real, spectra.imaginary)
        return torch.polar(spectra.mag ** (1 / self.config.compress_factor), spectra.pha)

    def inverse(self, spectra: AnySpectra, samples: int) -> Tensor:
        """Transform spectra `[B, F, T]` back to waveforms `[B, samples]`, as `torch.istft` does.

        `torch.istft` would wait for a GPU, to check the window.
        """
        n_fft, hop = self.config.n_fft, self.config.hop_size
        spectrum = self.to_stft(spectra)
        left = (n_fft - len(self.window)) // 2
        window = functional.pad(self.window, (left, n_fft - len(self.window) - left))[:, None]
        frames = torch.fft.irfft(spectrum, n_fft, dim=1) * window
        weights = window.square().expand(n_fft, frames.shape[2])
        length = n_fft + hop * (frames.shape[2] - 1)
        sums, weight_sums = (
            functional.fold(each, (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0] for each in (frames, weights[None])
        )
        span = slice(n_fft // 2, n_fft // 2 + samples)
        wav = sums[:, span] / weight_sums[:, span]
        return functional.pad(wav, (0, samples - wav.shape[1]))
