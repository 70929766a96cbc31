"""Degradations of speech (level, clipping, band limits, lossy codecs) and synthetic noise.

Functions take and return mono signals `[N]` in float64 at 16 kHz, 1.0 being full scale, and add no delay. Noise and
rooms are added by `data.mixing`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy.signal import fftconvolve, firwin

from cli import UserError
from data.levels import mean_power, unit_power_gain

RATE = 16_000
"""Sampling rate in Hz of all signals here."""

NARROW_RATE = 8_000
"""Sampling rate in Hz of telephony; nothing above 4 kHz remains."""

LONGEST_DELAY = 4000
"""Search range in samples at 16 kHz for the delay of encoder and decoder; an MP3 without its header has 1105."""


@dataclass(frozen=True)
class Codec:
    """A libsndfile format: container, coding, sampling rate in Hz, `compression` level (0 to 1) if it has one.

    `narrow`: nothing above 4 kHz remains.
    """

    container: str
    coding: str
    rate: int = RATE
    compression: float | None = None
    constant_bitrate: bool = False
    narrow: bool = False


CODECS = {
    "µ-law (G.711), 8 kHz, 64 kbit/s": Codec("WAV", "ULAW", NARROW_RATE, narrow=True),
    "GSM 06.10, 8 kHz, 13 kbit/s": Codec("WAV", "GSM610", NARROW_RATE, narrow=True),
    "MP3, 24 kbit/s": Codec("MP3", "MPEG_LAYER_III", RATE, 0.9, constant_bitrate=True),
    "Vorbis, lowest quality": Codec("OGG", "VORBIS", RATE, 1.0),
    "Opus, 8 kbit/s": Codec("OGG", "OPUS", RATE, 1.0, narrow=True),
}
"""Codecs by their label in tables: those of telephony at 8 kHz, others at 16 kHz near their lowest rates."""


def gain_to(signal: np.ndarray, level: float) -> float:
    """Return the factor that scales a signal to an RMS of `level` dBFS, over all samples, pauses included.

    0 dBFS is an RMS of 1; the result may exceed full scale. Silence counts as an RMS of 1.
    """
    return 10 ** (level / 20) * unit_power_gain(mean_power(signal))


def clip_share(signal: np.ndarray, share: float) -> np.ndarray:
    """Clip the loudest `share` (0 to 1) of the samples to a common limit, as an overloaded microphone does."""
    count = round(share * len(signal))
    if count == 0:
        return signal.copy()
    limit = np.sort(np.abs(signal))[-count]
    return np.clip(signal, -limit, limit)


def telephone(signal: np.ndarray) -> np.ndarray:
    """Band-pass to 300 to 3400 Hz (ITU-T G.712), here the −6 dB points, with a linear-phase filter."""
    count = 511  # transition bands of 100 Hz: −50 dB below 250 Hz and above 3450 Hz
    taps = firwin(count, (300.0, 3400.0), pass_zero=False, fs=RATE)
    return fftconvolve(signal, taps, mode="full")[count // 2 :][: len(signal)]


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


def pink_noise(random: np.random.Generator, samples: int) -> np.ndarray:
    """Draw Gaussian noise `[samples]` of about unit variance, falling by 3 dB an octave above 20 Hz."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    shape = 1 / np.sqrt(np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20))
    return np.fft.irfft(spectrum * shape / np.sqrt(np.mean(shape**2)), samples)


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """Sum voices `[N]`, each scaled to unit power unless it is silent."""
    return np.sum([voice * gain_to(voice, 0) for voice in voices], axis=0)


def through_codec(signal: np.ndarray, codec: Codec) -> np.ndarray:
    """Encode and decode `[N]` at 16 kHz, clipped to ±1, with the delay measured and compensated; raise `UserError`."""
    if codec.rate == NARROW_RATE:
        decoded = encode_decode(np.clip(to_narrow(signal), -1, 1), codec)
        decoded = from_narrow(decoded, max(len(signal), 2 * len(decoded)))
    else:
        decoded = encode_decode(np.clip(signal, -1, 1), codec)
    return shift(decoded, find_delay(signal, decoded), len(signal))


def encode_decode(signal: np.ndarray, codec: Codec) -> np.ndarray:
    """Encode and decode `[N]` at the codec's rate; return float64 of N or a few more samples.

    Raises `UserError` if this libsndfile lacks the codec.
    """
    stream = io.BytesIO()
    options: dict[str, Any] = {} if codec.compression is None else {"compression_level": codec.compression}
    if codec.constant_bitrate:
        options["bitrate_mode"] = "CONSTANT"
    try:
        soundfile.write(stream, signal, codec.rate, codec.coding, format=codec.container, **options)
        stream.seek(0)
        return soundfile.read(stream)[0]
    except (soundfile.SoundFileError, ValueError, TypeError) as error:  # TypeError: soundfile before 0.13
        raise UserError(f"{codec.container} {codec.coding}: not in this libsndfile ({error})") from error


def find_delay(signal: np.ndarray, other: np.ndarray) -> int:
    """Return the delay of `other` against `signal` in samples, within ±`LONGEST_DELAY`.

    It is the lag of the largest cross-correlation.
    """
    size = 2 * max(len(signal), len(other))
    product = np.conj(np.fft.rfft(signal, size)) * np.fft.rfft(other, size)
    correlation = np.fft.irfft(product, size)
    lags = np.arange(-LONGEST_DELAY, LONGEST_DELAY + 1)
    return int(lags[np.argmax(correlation[lags % size])])


def shift(signal: np.ndarray, delay: int, samples: int) -> np.ndarray:
    """Advance a signal by `delay` samples and cut or zero-pad it to `samples`."""
    moved = signal[delay:] if delay >= 0 else np.concatenate([np.zeros(-delay), signal])
    return np.pad(moved[:samples], (0, max(samples - len(moved), 0)))
