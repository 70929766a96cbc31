"""Degradations of speech (level, clipping, band limits) and synthetic noise.

Functions take and return mono signals `[N]` in float64 at 16 kHz, 1.0 being full scale, and add no delay. Noise and
rooms are added by `data.mixing`; codecs are in `tools.robustness.codecs`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr
from scipy.signal import fftconvolve, firwin

from data.levels import SILENT_POWER, mean_power

RATE = 16_000
"""Sampling rate in Hz of all signals here."""

NARROW_RATE = 8_000
"""Sampling rate in Hz of telephony; nothing above 4 kHz remains."""

TELEPHONE_BAND = (300.0, 3400.0)
"""Analogue telephone band in Hz (ITU-T G.712), here the −6 dB points."""

_TAPS = 511  # transition bands of 100 Hz: −50 dB below 250 Hz and above 3450 Hz


def gain_to(signal: np.ndarray, level: float) -> float:
    """Return the factor that scales a signal to an RMS of `level` dBFS; 1 for silence.

    The RMS is over all samples, pauses included; 0 dBFS is an RMS of 1. The result may exceed full scale.
    """
    power = mean_power(signal)
    return float(10 ** (level / 20) / power**0.5) if power > SILENT_POWER else 1.0


def clip_share(signal: np.ndarray, share: float) -> np.ndarray:
    """Clip the loudest `share` (0 to 1) of the samples to a common limit, as an overloaded microphone does."""
    count = round(share * len(signal))
    if count == 0:
        return signal.copy()
    limit = np.sort(np.abs(signal))[-count]
    return np.clip(signal, -limit, limit)


def telephone(signal: np.ndarray) -> np.ndarray:
    """Band-pass to 300 to 3400 Hz with a linear-phase filter, its delay compensated."""
    taps = firwin(_TAPS, TELEPHONE_BAND, pass_zero=False, fs=RATE)
    return fftconvolve(signal, taps, mode="full")[_TAPS // 2 :][: len(signal)]


def narrowband(signal: np.ndarray) -> np.ndarray:
    """Low-pass to 4 kHz by resampling to 8 kHz and back."""
    return from_narrow(to_narrow(signal), len(signal))


def to_narrow(signal: np.ndarray) -> np.ndarray:
    """Resample from 16 to 8 kHz."""
    return soxr.resample(signal, RATE, NARROW_RATE, quality="VHQ")


def from_narrow(signal: np.ndarray, samples: int) -> np.ndarray:
    """Resample from 8 to 16 kHz; cut or zero-pad to `samples`."""
    wide = soxr.resample(signal, NARROW_RATE, RATE, quality="VHQ")[:samples]
    return np.pad(wide, (0, samples - len(wide)))


def white_noise(random: np.random.Generator, samples: int) -> np.ndarray:
    """Draw white Gaussian noise `[samples]` with unit variance."""
    return random.standard_normal(samples)


def pink_noise(random: np.random.Generator, samples: int) -> np.ndarray:
    """Draw Gaussian noise `[samples]` of about unit variance, falling by 3 dB an octave above 20 Hz."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    shape = 1 / np.sqrt(np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20))
    return np.fft.irfft(spectrum * shape / np.sqrt(np.mean(shape**2)), samples)


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """Sum voices `[N]`, each scaled to unit power unless it is silent."""
    return np.sum([voice * gain_to(voice, 0) for voice in voices], axis=0)
