"""The generator's loss terms, each by its name in the configuration's section `loss`.

The recipe of IMSE and MUSE (IMSE, section on training, and its release) is a weighted sum of `magnitude`, `phase`,
`complex` and `metric`; the last comes from the discriminator (`models.discriminator`). CNUNet trains with
`magnitude_l1` and `complex_l1`, Lite-RTSE with `compressed_magnitude`, `compressed_complex` and `si_sdr`. The others:
a consistency loss as in MP-SENet, and an error of the waveform.
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
from models.stft import Spectra, Spectrogram

_SI_SDR_EPS = 1e-8
_COMPRESSION = 0.3

# Added to powers, so that gradients stay bounded where there is silence.
_L1_POWER = 1e-7
_COMPRESSED_POWER = 1e-12


class Speech(NamedTuple):
    """A batch of speech at the network's level: its waveforms `[B, N]` and its compressed spectra `[B, F, T]`."""

    wav: Tensor
    spectra: Spectra


def anti_wrapping(difference: Tensor) -> Tensor:
    """The size of a difference of phases in radians, to the nearest whole turn: 0..π."""
    return (difference - 2 * math.pi * torch.round(difference / (2 * math.pi))).abs()


def instantaneous_phase(clean_pha: Tensor, pha: Tensor) -> Tensor:
    """Mean phase difference (IP) in radians, phases `[B, F, T]`."""
    return anti_wrapping(clean_pha - pha).mean()


def group_delay(clean_pha: Tensor, pha: Tensor) -> Tensor:
    """Mean difference of the group delays (GD), the phases' first differences along frequency, from 0 on."""
    return anti_wrapping(_first_difference(clean_pha - pha, dim=1)).mean()


def angular_frequency(clean_pha: Tensor, pha: Tensor) -> Tensor:
    """Mean difference of the instantaneous angular frequencies (IAF), the first differences along time, from 0 on."""
    return anti_wrapping(_first_difference(clean_pha - pha, dim=2)).mean()


def _first_difference(x: Tensor, dim: int) -> Tensor:
    return torch.diff(x, dim=dim, prepend=torch.zeros_like(x.narrow(dim, 0, 1)))


def magnitude(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Mean squared error of the compressed magnitudes."""
    return functional.mse_loss(enhanced.spectra.mag, clean.spectra.mag)


def phase(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """IP + GD + IAF in radians (Ai and Ling 2023, "Neural speech phase prediction ...")."""
    phases = clean.spectra.pha, enhanced.spectra.pha
    return instantaneous_phase(*phases) + group_delay(*phases) + angular_frequency(*phases)


def complex_spectrum(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Twice the mean squared error of the compressed spectra's real and imaginary parts, as released."""
    return 2 * functional.mse_loss(enhanced.spectra.complex, clean.spectra.complex)


def consistency(_: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Twice the mean squared change of the compressed spectra on their way to a waveform and back (MP-SENet)."""
    return 2 * functional.mse_loss(spectrogram(enhanced.wav).complex, enhanced.spectra.complex)


def time(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Mean absolute error of the waveforms, at the network's level."""
    return functional.l1_loss(enhanced.wav, clean.wav)


def si_sdr(clean: Speech, enhanced: Speech, _: Spectrogram) -> Tensor:
    """Minus the mean scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019).

    An energy of 1e-8 is added to each, which keeps silence finite.
    """
    target_wav = clean.wav - clean.wav.mean(dim=-1, keepdim=True)
    wav = enhanced.wav - enhanced.wav.mean(dim=-1, keepdim=True)
    energy = target_wav.square().sum(dim=-1, keepdim=True) + _SI_SDR_EPS
    target = (wav * target_wav).sum(dim=-1, keepdim=True) / energy * target_wav
    ratio = (target.square().sum(dim=-1) + _SI_SDR_EPS) / ((wav - target).square().sum(dim=-1) + _SI_SDR_EPS)
    return -10 * torch.log10(ratio).mean()


def magnitude_l1(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Mean absolute error of the uncompressed magnitudes, of the enhanced waveform's own spectra (CNUNet)."""
    clean_mag, mag = (
        (_linear_mag(spectra, spectrogram).square() + _L1_POWER).sqrt()
        for spectra in (clean.spectra, spectrogram(enhanced.wav))
    )
    return functional.l1_loss(mag, clean_mag)


def complex_l1(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Mean absolute error of the uncompressed real and imaginary parts, of the waveform's own spectra (CNUNet)."""
    clean_parts, parts = (
        Spectra(_linear_mag(spectra, spectrogram), spectra.pha).complex
        for spectra in (clean.spectra, spectrogram(enhanced.wav))
    )
    return functional.l1_loss(parts, clean_parts)


def compressed_magnitude(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Mean squared error of the magnitudes to the power of 0.3, whatever the network's own compression (GTCRN)."""
    clean_mag, mag = (_compressed_mag(speech.spectra, spectrogram) for speech in (clean, enhanced))
    return functional.mse_loss(mag, clean_mag)


def compressed_complex(clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> Tensor:
    """Sum of the mean squared errors of real and imaginary part, the magnitude to the power of 0.3 (GTCRN)."""
    clean_parts, parts = (
        Spectra(_linear_mag(spectra, spectrogram) / mag ** (1 / _COMPRESSION - 1), spectra.pha).complex
        for spectra in (clean.spectra, enhanced.spectra)
        for mag in [_compressed_mag(spectra, spectrogram)]
    )
    return 2 * functional.mse_loss(parts, clean_parts)


def _linear_mag(spectra: Spectra, spectrogram: Spectrogram) -> Tensor:
    return spectra.mag ** (1 / spectrogram.config.compress_factor)


def _compressed_mag(spectra: Spectra, spectrogram: Spectrogram) -> Tensor:
    return (_linear_mag(spectra, spectrogram).square() + _COMPRESSED_POWER) ** (_COMPRESSION / 2)


TERMS: Mapping[str, Callable[[Speech, Speech, Spectrogram], Tensor]] = {
    "magnitude": magnitude,
    "phase": phase,
    "complex": complex_spectrum,
    "consistency": consistency,
    "time": time,
    "si_sdr": si_sdr,
    "magnitude_l1": magnitude_l1,
    "complex_l1": complex_l1,
    "compressed_magnitude": compressed_magnitude,
    "compressed_complex": compressed_complex,
}
"""The terms that need clean and enhanced speech only, by the name of their weight in `config.LossConfig`."""


def loss_terms(weights: LossConfig, clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> dict[str, Tensor]:
    """The terms with a weight above 0, each a scalar, unweighted; without `metric`."""
    wanted = [name for name, weight in asdict(weights).items() if weight > 0 and name != "metric"]
    return {name: TERMS[name](clean, enhanced, spectrogram) for name in wanted}


def weighted_sum(weights: LossConfig, terms: Mapping[str, Tensor]) -> Tensor:
    """What the generator minimises."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
