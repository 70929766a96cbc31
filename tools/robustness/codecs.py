"""Lossy codecs of libsndfile, applied in memory: encode, decode and compensate the delay.

G.711 (µ-law) and GSM 06.10 at 8 kHz, as in telephony; MP3, Vorbis and Opus at 16 kHz near their lowest rates.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from cli import UserError
from tools.robustness.degradations import NARROW_RATE, RATE, from_narrow, to_narrow

LONGEST_DELAY = 4000
"""Search range in samples at 16 kHz for the delay of encoder and decoder; an MP3 without its header has 1105."""


@dataclass(frozen=True)
class Codec:
    """A libsndfile format: container, coding, sampling rate in Hz, `compression` level (0 to 1) if it has one."""

    container: str
    coding: str
    rate: int = RATE
    compression: float | None = None
    constant_bitrate: bool = False


CODECS = {
    "µ-law (G.711), 8 kHz, 64 kbit/s": Codec("WAV", "ULAW", NARROW_RATE),
    "GSM 06.10, 8 kHz, 13 kbit/s": Codec("WAV", "GSM610", NARROW_RATE),
    "MP3, 24 kbit/s": Codec("MP3", "MPEG_LAYER_III", RATE, 0.9, constant_bitrate=True),
    "Vorbis, lowest quality": Codec("OGG", "VORBIS", RATE, 1.0),
    "Opus, 8 kbit/s": Codec("OGG", "OPUS", RATE, 1.0),
}
"""Codecs by their label in tables."""


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


def available_codecs() -> tuple[dict[str, Codec], list[str]]:
    """Return the codecs that this libsndfile has, and a message for each that it lacks."""
    available: dict[str, Codec] = {}
    missing: list[str] = []
    tone = 0.1 * np.sin(np.arange(RATE) / 5)
    for name, codec in CODECS.items():
        try:
            encode_decode(tone, codec)
            available[name] = codec
        except UserError as error:
            missing.append(f"{name}: left out: {error}")
    return available, missing
