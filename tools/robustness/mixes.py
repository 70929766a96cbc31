"""A trial: one utterance under one condition, and what an enhancer should make of it.

The order is that of a recording: room, band, noise, level, overload, codec. The reference is the speech with its first
50 ms of reflections, as in training, in the same band and at the same level, but without noise, clipping and coding.
The SNR is that in the band, of the speech with all reflections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from data.mixing import add_noise, in_room, room_response
from tools.robustness.codecs import CODECS, through_codec
from tools.robustness.degradations import NARROW_RATE, RATE, clip_share, gain_to, narrowband, telephone
from tools.robustness.material import Material
from tools.robustness.plan import Condition

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

    Raises `UserError`, and `UserError` where no noise is left.
    """
    speech = material.speech(condition.group, index, round(condition.t60 * RATE))
    reference = heard = speech.samples
    if condition.t60:
        random = np.random.default_rng([seed, index, _ROOM])
        response = room_response(random, RATE, condition.t60, DIRECT_TO_REVERBERANT)
        reference, heard = in_room(speech.before, speech.samples, *response)
    in_band = BANDS[condition.band]
    reference, noisy = in_band(reference), in_band(heard)
    if condition.snr is not None:
        noisy = add_noise(noisy, in_band(material.noise(condition.noise, speech, index)), condition.snr)
    gain = gain_to(noisy, condition.level)
    reference, noisy = gain * reference, clip_share(gain * noisy, condition.clipped)
    if condition.codec:
        codec = CODECS[condition.codec]
        reference = narrowband(reference) if codec.rate == NARROW_RATE else reference
        noisy = through_codec(noisy, codec)
    return Trial(speech.id, reference, noisy)
