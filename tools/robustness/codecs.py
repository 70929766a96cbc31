"""Speech through a codec and back, in time with what went in: what a call or a compressed file leaves of it.

The codecs are those of libsndfile: G.711 (µ-law) and GSM 06.10 at 8 kHz, as on the telephone; MP3, Vorbis and Opus at
16 kHz, near the lowest rate that they take. It encodes in memory, so these are the only sounds that do not go through
`data.audio`.
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
"""Samples at 16 kHz: an encoder's and a decoder's delay together are below; an MP3 without its header has 1105."""


@dataclass(frozen=True)
class Codec:
    """A format of libsndfile: container, coding, `rate` in Hz; `compression` from 0 to 1, where it has a choice."""

    container: str
    coding: str
    rate: int = RATE
    compression: float | None = None
    constant: bool = False


CODECS = {
    "µ-law (G.711), 8 kHz, 64 kbit/s": Codec("WAV", "ULAW", NARROW_RATE),
    "GSM 06.10, 8 kHz, 13 kbit/s": Codec("WAV", "GSM610", NARROW_RATE),
    "MP3, 24 kbit/s": Codec("MP3", "MPEG_LAYER_III", RATE, 0.9, constant=True),
    "Vorbis, lowest quality": Codec("OGG", "VORBIS", RATE, 1.0),
    "Opus, 8 kbit/s": Codec("OGG", "OPUS", RATE, 1.0),
}
"""By what tables call them."""


def through_codec(signal: np.ndarray, codec: Codec) -> np.ndarray:
    """Encode and decode `[N]` at 16 kHz; the delay that is left is measured and taken out. Beyond ±1 it is clipped.

    Raises `UserError`.
    """
    sent = to_narrow(signal) if codec.rate == NARROW_RATE else signal
    received = code(np.clip(sent, -1, 1), codec)
    if codec.rate == NARROW_RATE:
        received = from_narrow(received, max(len(signal), 2 * len(received)))
    return shifted(received, delay_of(signal, received), len(signal))


def code(signal: np.ndarray, codec: Codec) -> np.ndarray:
    """Encode and decode samples at the codec's own rate: as many or a few more come back, float64 `[≥ N]`.

    Raises `UserError`.
    """
    stream = io.BytesIO()
    options: dict[str, Any] = {} if codec.compression is None else {"compression_level": codec.compression}
    if codec.constant:
        options["bitrate_mode"] = "CONSTANT"
    try:
        soundfile.write(stream, signal, codec.rate, codec.coding, format=codec.container, **options)
        stream.seek(0)
        return soundfile.read(stream)[0]
    except (soundfile.SoundFileError, ValueError, TypeError) as error:  # TypeError: soundfile before 0.13
        raise UserError(f"{codec.container} {codec.coding}: not in this libsndfile ({error})") from error


def delay_of(signal: np.ndarray, other: np.ndarray) -> int:
    """How many samples `other` is behind `signal` (negative: before it), up to `LONGEST_DELAY`.

    The peak of their cross-correlation.
    """
    size = 2 * max(len(signal), len(other))
    product = np.conj(np.fft.rfft(signal, size)) * np.fft.rfft(other, size)
    correlation = np.fft.irfft(product, size)
    lags = np.arange(-LONGEST_DELAY, LONGEST_DELAY + 1)
    return int(lags[np.argmax(correlation[lags % size])])


def shifted(signal: np.ndarray, delay: int, samples: int) -> np.ndarray:
    """`samples` of a signal that is `delay` behind, with the delay taken out; zeros where it has ended."""
    moved = signal[delay:] if delay >= 0 else np.concatenate([np.zeros(-delay), signal])
    return np.pad(moved[:samples], (0, max(samples - len(moved), 0)))


def available_codecs() -> tuple[dict[str, Codec], list[str]]:
    """The codecs of this libsndfile by name, and a line for each that it does not have."""
    there: dict[str, Codec] = {}
    missing: list[str] = []
    tone = 0.1 * np.sin(np.arange(RATE) / 5)
    for name, codec in CODECS.items():
        try:
            code(tone, codec)
            there[name] = codec
        except UserError as error:
            missing.append(f"{name}: left out: {error}")
    return there, missing
