"""What happens to speech on its way into a recording, one thing at a time: level, clipping, bands; and made-up noise.

Each function takes mono samples `[N]` in float64 at 16 kHz, 1.0 being full scale, and gives new ones without delay.
Adding noise, and rooms, are in `data.mixing`, codecs in `tools.robustness.codecs`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr
from scipy.signal import fftconvolve, firwin

from data.levels import SILENT_POWER, mean_power

RATE = 16_000
"""Hz, of all signals here."""

NARROW_RATE = 8_000
"""Hz: what telephones and old recordings sample at; nothing above 4 kHz is left."""

TELEPHONE_BAND = (300.0, 3400.0)
"""Hz: the band of an analogue telephone line (ITU-T G.712), here at −6 dB."""

_TAPS = 511  # edges 100 Hz wide: 50 dB down from 250 Hz below and 3450 Hz above


def gain_to(signal: np.ndarray, level: float) -> float:
    """The factor that brings a signal to a level in dBFS; 1 for silence. Nothing is clipped.

    The level is the RMS over all samples, pauses included; 0 dBFS is an RMS of 1.0.
    """
    power = mean_power(signal)
    return float(10 ** (level / 20) / power**0.5) if power > SILENT_POWER else 1.0


def clip_share(signal: np.ndarray, share: float) -> np.ndarray:
    """Cut off at ± the magnitude that `share` (0 to 1) of the samples reach or exceed: an overloaded microphone."""
    count = round(share * len(signal))
    if count == 0:
        return signal.copy()
    limit = np.sort(np.abs(signal))[-count]
    return np.clip(signal, -limit, limit)


def telephone(signal: np.ndarray) -> np.ndarray:
    """Only 300 to 3400 Hz, by a linear-phase filter whose delay is taken out."""
    taps = firwin(_TAPS, TELEPHONE_BAND, pass_zero=False, fs=RATE)
    return fftconvolve(signal, taps, mode="full")[_TAPS // 2 :][: len(signal)]


def narrowband(signal: np.ndarray) -> np.ndarray:
    """Nothing above 4 kHz: sampled at 8 kHz and back at 16 kHz."""
    return from_narrow(to_narrow(signal), len(signal))


def to_narrow(signal: np.ndarray) -> np.ndarray:
    """The signal at 8 kHz."""
    return soxr.resample(signal, RATE, NARROW_RATE, quality="VHQ")


def from_narrow(signal: np.ndarray, samples: int) -> np.ndarray:
    """A signal at 8 kHz at 16 kHz again, `samples` long."""
    wide = soxr.resample(signal, NARROW_RATE, RATE, quality="VHQ")[:samples]
    return np.pad(wide, (0, samples - len(wide)))


def white_noise(random: np.random.Generator, samples: int) -> np.ndarray:
    """Gaussian noise `[samples]` with a mean power near 1, alike at all frequencies."""
    return random.standard_normal(samples)


def pink_noise(random: np.random.Generator, samples: int) -> np.ndarray:
    """Gaussian noise `[samples]` with a mean power near 1, falling by 3 dB an octave above 20 Hz."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    shape = 1 / np.sqrt(np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20))
    return np.fft.irfft(spectrum * shape / np.sqrt(np.mean(shape**2)), samples)


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """Voices `[N]` of equal mean power, together; silent ones stay silent."""
    return np.sum([voice * gain_to(voice, 0) for voice in voices], axis=0)
