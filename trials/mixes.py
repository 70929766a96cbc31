"""A trial: one utterance under one condition, and what an enhancer should make of it.

The order is that of a recording: room, band, noise, level, overload, codec. The reference is the speech with its first
50 ms of reflections, as in training, in the same band and at the same level, but without noise, clipping and coding.
The SNR is that in the band, of the speech with all reflections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.signal import fftconvolve

from data.codecs import CODECS, through_codec
from data.conditions import NARROW_RATE, RATE, clip_share, gain_to, narrowband, telephone, with_noise
from data.mixing import decaying_response
from trials.material import Material, Speech
from trials.plan import Condition

DIRECT_TO_REVERBERANT = 0.0
"""dB between the direct sound and all that follows, in every room: as far away as its critical distance."""

BANDS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "full": lambda signal: signal,
    "narrow": narrowband,
    "telephone": telephone,
}
"""The values of `Condition.band`."""

_ROOM = 13  # sets these random numbers apart from all others drawn from the same seed


class Trial(NamedTuple):
    """An utterance's id, and float64 `[N]` at 16 kHz: what is to come out, and what goes in."""

    id: str
    reference: np.ndarray
    noisy: np.ndarray


def make_trial(material: Material, condition: Condition, index: int, seed: int) -> Trial:
    """Utterance `index` under a condition.

    Raises `CodecError`, `FileListError` where no noise is left, and `ValueError` where the noise is silent.
    """
    speech = material.speech(condition.group, index, round(condition.t60 * RATE))
    reference, heard = in_room(speech, condition.t60, np.random.default_rng([seed, index, _ROOM]))
    in_band = BANDS[condition.band]
    reference, noisy = in_band(reference), in_band(heard)
    if condition.snr is not None:
        noisy = with_noise(noisy, in_band(material.noise(condition.noise, speech, index)), condition.snr)
    gain = gain_to(noisy, condition.level)
    reference, noisy = gain * reference, clip_share(gain * noisy, condition.clipped)
    if condition.codec:
        codec = CODECS[condition.codec]
        reference = narrowband(reference) if codec.rate == NARROW_RATE else reference
        noisy = through_codec(noisy, codec)
    return Trial(speech.id, reference, noisy)


def in_room(speech: Speech, t60: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The speech with early reflections, and with all of them; what was said before still sounds in it."""
    if not t60:
        return speech.samples, speech.samples
    whole, early = decaying_response(random, RATE, t60, DIRECT_TO_REVERBERANT)
    dry = np.concatenate([speech.before, speech.samples])
    span = slice(len(speech.before), len(dry))
    return fftconvolve(dry, early)[span], fftconvolve(dry, whole)[span]
