"""From waveform to compressed spectra and back: the one STFT pair, used by every network, in training and inference.

Section 3.1 of the IMSE paper and its release: magnitude ** 0.3, phase of the uncompressed STFT. `enhance.streaming`
computes the same hop by hop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import StftConfig

# Powers below this count as silence: 1e-15 in magnitude, under which the gradient of mag ** 0.3 overflows float32.
_SILENT_POWER = 1e-30

PHASE_FLOOR = 1e-6
"""Parts of a spectrum this small, relative to the frame's largest magnitude, have no phase: float32 rounding errors."""


class Spectra(NamedTuple):
    """A batch of spectra: compressed magnitude and phase in radians, each `[B, F, T]`."""

    mag: Tensor
    pha: Tensor

    @classmethod
    def from_parts(cls, real: Tensor, imaginary: Tensor, compress_factor: float = 1.0) -> Spectra:
        """From real and imaginary parts, whose magnitudes are raised to `compress_factor`."""
        power = real.square() + imaginary.square()
        silent = power < _SILENT_POWER
        # Where silent, both branches of `where` must have a finite gradient, not only the chosen one.
        mag = torch.where(silent, 0.0, power.masked_fill(silent, 1.0) ** (compress_factor / 2))
        return cls(mag, angle(real, imaginary))

    @classmethod
    def from_stft(cls, spectrum: Tensor, compress_factor: float) -> Spectra:
        """Convert a complex STFT `[B, F, T]` to compressed magnitude and phase.

        Real and imaginary parts below `PHASE_FLOOR` times the frame's largest magnitude count as +0 for the phase. A
        frame reflected at an edge of the signal is symmetric: its imaginary parts are rounding errors around 0, and
        their sign, which decides between +π and −π, differs between FFT libraries.
        """
        floor = PHASE_FLOOR * spectrum.detach().abs().amax(dim=1, keepdim=True)
        real, imaginary = (part.masked_fill(part.abs() < floor, 0.0) for part in (spectrum.real, spectrum.imag))
        mag = cls.from_parts(spectrum.real, spectrum.imag, compress_factor).mag
        return cls(mag, angle(real, imaginary))

    @property
    def complex(self) -> Tensor:
        """Real and imaginary part of the compressed spectra, `[B, F, T, 2]`."""
        return torch.stack([self.mag * torch.cos(self.pha), self.mag * torch.sin(self.pha)], dim=-1)


def angle(real: Tensor, imaginary: Tensor) -> Tensor:
    """The angle of complex numbers in radians; 0, with gradient 0, where they are too small to have one."""
    silent = real.square() + imaginary.square() < _SILENT_POWER
    return torch.where(silent, 0.0, torch.atan2(imaginary, real.masked_fill(silent, 1.0)))


class Spectrogram(nn.Module):
    """STFT with power-law compression, and its inverse.

    Centred frames with reflected edges and a periodic window: N samples, after `StftConfig.padding`, give
    N // hop_size + 1 frames of n_fft / 2 + 1 bins. Gradients are finite everywhere, also at zero magnitude.
    """

    window: Tensor

    def __init__(self, config: StftConfig) -> None:
        super().__init__()
        self.config = config
        window = torch.hamming_window if config.window == "hamming" else torch.hann_window
        samples = window(config.win_size)
        self.register_buffer("window", samples.sqrt() if config.window == "sqrt_hann" else samples, persistent=False)

    def forward(self, wav: Tensor) -> Spectra:
        """Waveforms `[B, N]`, N ≥ 1, to their compressed spectra `[B, F, T]`."""
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
        return Spectra.from_stft(spectrum, self.config.compress_factor)

    def inverse(self, spectra: Spectra, samples: int) -> Tensor:
        """Compressed spectra `[B, F, T]` back to waveforms `[B, samples]`."""
        # A power with exponent > 1 has a finite gradient at zero.
        mag = spectra.mag ** (1 / self.config.compress_factor)
        return torch.istft(
            torch.polar(mag, spectra.pha),
            self.config.n_fft,
            self.config.hop_size,
            self.config.win_size,
            self.window,
            center=True,
            length=samples,
        )
