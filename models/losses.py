"""Loss terms of the generator, named as in the configuration's section `loss`.

IMSE, IMSE live and MUSE train with a weighted sum of `magnitude`, `phase`, `complex` and `metric` (IMSE paper, section
on training, and its release); `metric` comes from the discriminator (`models.discriminator`). CNUNet trains with
`magnitude_l1` and `complex_l1`, Lite-RTSE and DPCRN with `compressed_magnitude`, `compressed_complex` and `si_sdr`,
DCCRN with `si_sdr` alone, MP-SENet with the terms of IMSE, but `phase_inner` instead of `phase`, and with `consistency`
and `time`, an error of the waveform. A network may compute a term of its own (`config.NetworkConfig.own_terms`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from config import LossConfig
from models.stft import AnySpectra, ComplexSpectra, Spectra, Spectrogram

_SI_SDR_EPS = 1e-8
_COMPRESSION = 0.3

# Added to powers to keep gradients bounded at silence.
_L1_POWER = 1e-7
_COMPRESSED_POWER = 1e-12


class Speech(NamedTuple):
    """A batch of speech at the network's level: waveforms `[B, N]` and spectra `[B, F, T]`."""

    wav: Tensor
    spectra: AnySpectra


def anti_wrapping(difference: Tensor) -> Tensor:
    """Return the absolute difference of phases in radians, modulo 2π: 0..π."""
    return (difference - 2 * math.pi * torch.round(difference / (2 * math.pi))).abs()


def instantaneous_phase(clean_pha: Tensor, pha: Tensor) -> Tensor:
    """Compute the instantaneous phase loss (IP) in radians of phases `[B, F, T]`."""
    return anti_wrapping(clean_pha - pha).mean()


def group_delay(clean_pha: Tensor, pha: Tensor, inner: bool = False) -> Tensor:
    """Compute the group delay loss (GD): differences along frequency, starting from 0 or, with `inner`, bin 0."""
    difference = clean_pha - pha
    before = None if inner else torch.zeros_like(difference[:, :1])
    return anti_wrapping(torch.diff(difference, dim=1, prepend=before)).mean()


def angular_frequency(clean_pha: Tensor, pha: Tensor, inner: bool = False) -> Tensor:
    """Compute the instantaneous angular frequency loss (IAF), along time; see `group_delay`."""
    difference = clean_pha - pha
    before = None if inner else torch.zeros_like(difference[..., :1])
    return anti_wrapping(torch.diff(difference, dim=2, prepend=before)).mean()


def magnitude(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Mean squared error of the compressed magnitudes."""
    return functional.mse_loss(enhanced.spectra.mag, clean.spectra.mag)


def phase(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """IP + GD + IAF in radians (Ai and Ling 2023, arXiv 2211.15974)."""
    clean_pha, pha = clean.spectra.pha, enhanced.spectra.pha
    return instantaneous_phase(clean_pha, pha) + group_delay(clean_pha, pha) + angular_frequency(clean_pha, pha)


def phase_inner(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """IP + GD + IAF in radians, without the first bin in GD and the first frame in IAF (release of MP-SENet)."""
    clean_pha, pha = clean.spectra.pha, enhanced.spectra.pha
    differences = group_delay(clean_pha, pha, inner=True) + angular_frequency(clean_pha, pha, inner=True)
    return instantaneous_phase(clean_pha, pha) + differences


def complex_spectrum(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Twice the mean squared error of real and imaginary part of the compressed spectra, as released."""
    return 2 * functional.mse_loss(enhanced.spectra.complex, clean.spectra.complex)


def consistency(_: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Twice the mean squared difference between the enhanced spectra and those of the enhanced waveform (MP-SENet)."""
    return 2 * functional.mse_loss(spectrogram(enhanced.wav).complex, enhanced.spectra.complex)


def time(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Mean absolute error of the waveforms."""
    return functional.l1_loss(enhanced.wav, clean.wav)


def si_sdr(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Negative mean scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019).

    1e-8 is added to each energy to keep it finite at silence.
    """
    target_wav = clean.wav - clean.wav.mean(dim=-1, keepdim=True)
    wav = enhanced.wav - enhanced.wav.mean(dim=-1, keepdim=True)
    energy = target_wav.square().sum(dim=-1, keepdim=True) + _SI_SDR_EPS
    target = (wav * target_wav).sum(dim=-1, keepdim=True) / energy * target_wav
    ratio = (target.square().sum(dim=-1) + _SI_SDR_EPS) / ((wav - target).square().sum(dim=-1) + _SI_SDR_EPS)
    return -10 * torch.log10(ratio).mean()


def magnitude_l1(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Mean absolute error of the uncompressed magnitudes of the enhanced waveform (CNUNet)."""
    clean_mag = _linear_mag(clean.spectra, spectrogram)
    mag = _linear_mag(spectrogram(enhanced.wav), spectrogram)
    return functional.l1_loss((mag.square() + _L1_POWER).sqrt(), (clean_mag.square() + _L1_POWER).sqrt())


def complex_l1(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Mean absolute error of the uncompressed real and imaginary parts of the enhanced waveform (CNUNet)."""
    parts = _linear_parts(spectrogram(enhanced.wav), spectrogram)
    return functional.l1_loss(parts, _linear_parts(clean.spectra, spectrogram))


def compressed_magnitude(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Mean squared error of the magnitudes to the power of 0.3, independent of the network's compression (GTCRN)."""
    clean_mag = _compressed_mag(_linear_mag(clean.spectra, spectrogram))
    mag = _compressed_mag(_linear_mag(enhanced.spectra, spectrogram))
    return functional.mse_loss(mag, clean_mag)


def compressed_complex(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Sum of the mean squared errors of real and imaginary part with magnitudes to the power of 0.3 (GTCRN)."""

    def compressed(spectra: AnySpectra) -> Tensor:
        mag = _compressed_mag(_linear_mag(spectra, spectrogram))
        return _linear_parts(spectra, spectrogram) / mag[..., None] ** (1 / _COMPRESSION - 1)

    return 2 * functional.mse_loss(compressed(enhanced.spectra), compressed(clean.spectra))


def _linear_mag(spectra: AnySpectra, spectrogram: Spectrogram) -> Tensor:
    return spectra.mag ** (1 / spectrogram.config.compress_factor)


def _linear_parts(spectra: AnySpectra, spectrogram: Spectrogram) -> Tensor:
    """Return real and imaginary part of the uncompressed spectra, `[B, F, T, 2]`."""
    if isinstance(spectra, ComplexSpectra):
        return spectra.complex
    return Spectra(_linear_mag(spectra, spectrogram), spectra.pha).complex


def _compressed_mag(mag: Tensor) -> Tensor:
    return (mag.square() + _COMPRESSED_POWER) ** (_COMPRESSION / 2)


TERMS: Mapping[str, Callable[[Speech, Speech, Spectrogram], Tensor]] = {
    "magnitude": magnitude,
    "phase": phase,
    "phase_inner": phase_inner,
    "complex": complex_spectrum,
    "consistency": consistency,
    "time": time,
    "si_sdr": si_sdr,
    "magnitude_l1": magnitude_l1,
    "complex_l1": complex_l1,
    "compressed_magnitude": compressed_magnitude,
    "compressed_complex": compressed_complex,
}
"""Terms computed from clean and enhanced speech, by the name of their weight in `config.LossConfig`."""


def loss_terms(weights: LossConfig, clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> dict[str, Tensor]:
    """Compute the `TERMS` with a weight above 0, as unweighted scalars."""
    names = [name for name, weight in asdict(weights).items() if weight > 0 and name in TERMS]
    return {name: TERMS[name](clean, enhanced, spectrogram) for name in names}


def weighted_sum(weights: LossConfig, terms: Mapping[str, Tensor]) -> Tensor:
    """Return the total loss of the generator: the sum of the terms times their weights."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
