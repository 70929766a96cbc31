"""Training data by dynamic mixing: every crop is mixed anew from clean speech and noise.

A crop is speech, with given probabilities filtered, in a room, with noise at a random signal-to-noise ratio (SNR),
limited in band, clipped and coded. The training target is the speech with the same filter, early reflections and band.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from scipy.signal import fftconvolve, lfilter

from cli import UserError
from config import DataConfig, MixConfig
from data.audio import AudioReader, resample
from data.dataset import AudioCache, Crop, EvalPair, Sound, fit_segment, random_start
from data.degradations import (
    CODECS,
    babble,
    clip_share,
    encode_decode,
    gain_to,
    narrowband,
    telephone,
    through_codec,
)
from data.levels import SILENT_POWER, mean_power, unit_power_gain
from data.seeds import Stream, generator
from data.splits import speaker_of

NEARLY_SILENT = 1e-2
"""A crop with less than this proportion (−20 dB) of its utterance's mean power is drawn again."""

QUIET_POWER = 1e-8
"""Mean power below which a piece of noise is drawn again (−80 dBFS): amplified, it would be rounding errors."""

LONGEST_NOISE = 60.0
"""Noise files are drawn in proportion to their length up to this limit in seconds."""

REVERBERATION_TIME = (0.1, 0.6)
"""Range of T60 in seconds: from a small furnished room to a meeting room."""

DIRECT_TO_REVERBERANT = (-5.0, 15.0)
"""Range in dB of the energy of the direct sound over that of the reverberation."""

EARLY_SECONDS = 0.05
"""Reflections up to this delay belong to the target."""

SPEED = (0.85, 1.18)
"""Range of the factor of the speed, and with it of the pitch."""

BABBLE_VOICES = (3, 8)
"""Range of the number of voices in babble."""

SECOND_NOISE = (-10.0, 10.0)
"""Range in dB of the power of the first noise over that of the second."""

CLIPPED = (0.001, 0.2)
"""Range of the fraction of samples that are clipped; its logarithm is uniform."""

CODED_LEVEL = (-40.0, -16.0)
"""Range in dBFS of the level of coded speech."""

_MAX_REDRAWS = 10


class Mixer:
    """Mixes speech with noise, and degrades it, as a `MixConfig` says.

    Parameters
    ----------
    speech, noise, rooms: recordings. Babble is made of `speech`, if it has several speakers. Without `rooms`, the
        responses are synthetic.
    mix: probabilities and ranges.
    rate: sampling rate in Hz; 16000 for band limits and codecs.

    Raises `AudioError` if the header of a noise file cannot be read, `UserError` if this libsndfile lacks a codec.
    """

    def __init__(
        self,
        speech: Sequence[Sound],
        noise: Sequence[Sound],
        rooms: Sequence[Sound],
        cache: AudioCache,
        mix: MixConfig,
        rate: int,
    ) -> None:
        self._speech = speech
        self._noise = _NoisePool(noise, cache)
        self._rooms = rooms
        self._cache = cache
        self._mix = mix
        self._rate = rate
        self._speakers = [speaker_of(sound.path.as_posix()) for sound in speech]
        self._several_speakers = len(set(self._speakers)) > 1
        if mix.codec_share:
            for codec in CODECS.values():
                encode_decode(np.zeros(codec.rate), codec)

    def mix(
        self,
        rng: np.random.Generator,
        sound: Sound,
        speech: np.ndarray,
        start: int,
        samples: int,
        snr: float | None = None,
    ) -> Crop:
        """Return target and noisy speech `[samples]` from position `start` of `speech`, the content of `sound`.

        In this order: filter, room, noise, band limit, clipping, codec. The target has the same filter and band and the
        first 50 ms of the room's reflections. `snr` replaces the random SNR. Raises `AudioError`.
        """
        mix = self._mix
        if chance(rng, mix.filter_share):
            speech = random_filter(rng, speech)
        target = noisy = fit_segment(speech[start:], samples)
        dry = True
        if chance(rng, mix.reverb_share):
            response, early = self._room(rng)
            before = speech[max(start - len(response) + 1, 0) : start]
            target, noisy = in_room(before, noisy, response, early)
            dry = False
        drawn_snr = rng.uniform(mix.snr_low, mix.snr_high)
        if chance(rng, mix.noise_free_share):
            dry = False
        else:
            babbling = chance(rng, mix.babble_share) and self._several_speakers
            noise = self._babble(rng, sound, samples) if babbling else self._noise.draw(rng, samples)
            if chance(rng, mix.second_noise_share):
                noise = add_noise(noise, self._noise.draw(rng, samples), rng.uniform(*SECOND_NOISE))
            if chance(rng, mix.filter_share):
                noise = random_filter(rng, noise)
            noisy = add_noise(noisy, noise, drawn_snr if snr is None else snr)
        if chance(rng, mix.band_share):
            limit_band = (narrowband, telephone)[rng.integers(2)]
            target, noisy = limit_band(target), limit_band(noisy)
            dry = False
        if chance(rng, mix.clip_share):
            noisy = clip_share(noisy, 10 ** rng.uniform(*np.log10(CLIPPED)))
            dry = False
        if chance(rng, mix.codec_share):
            codec = list(CODECS.values())[rng.integers(len(CODECS))]
            gain = gain_to(noisy, rng.uniform(*CODED_LEVEL))
            noisy = through_codec(gain * noisy, codec) / gain
            target = narrowband(target) if codec.narrow else target
            dry = False
        return Crop(target.astype(np.float32), noisy.astype(np.float32), dry)

    def _room(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the response of a random room and its early part."""
        if not self._rooms or chance(rng, self._mix.synthetic_room_share):
            decay, ratio = rng.uniform(*REVERBERATION_TIME), rng.uniform(*DIRECT_TO_REVERBERANT)
            return room_response(rng, self._rate, decay, ratio)
        response = self._cache.samples(self._rooms[int(rng.integers(len(self._rooms)))])
        direct = int(np.argmax(np.abs(response)))
        return response, response[: direct + round(EARLY_SECONDS * self._rate)]

    def _babble(self, rng: np.random.Generator, sound: Sound, samples: int) -> np.ndarray:
        """Return the sum of several voices of other speakers than that of `sound`."""

        def other_voices() -> Iterator[np.ndarray]:
            speaker = speaker_of(sound.path.as_posix())
            while True:
                other = int(rng.integers(len(self._speech)))
                if self._speakers[other] != speaker:
                    yield self._cache.samples(self._speech[other])

        count = rng.integers(*BABBLE_VOICES, endpoint=True)
        return babble([draw_piece(rng, other_voices(), samples) for _ in range(count)]).astype(np.float32)


class MixedDataset:
    """Crops of `data.segment_size` samples: one of each of `speech` per epoch, mixed by `mixer`.

    With `data.normalize_level` a crop is scaled to a mean power of 1 before the random gain.
    """

    def __init__(
        self, speech: Sequence[Sound], mixer: Mixer, cache: AudioCache, data: DataConfig, mix: MixConfig, seed: int
    ) -> None:
        self._speech = speech
        self._mixer = mixer
        self._cache = cache
        self._data = data
        self._mix = mix
        self._seed = seed

    def __len__(self) -> int:
        return len(self._speech)

    def crop(self, epoch: int, index: int) -> Crop:
        """Return a random mix with speech file `index`; raises `AudioError`."""
        mix, segment = self._mix, self._data.segment_size
        rng = generator(Stream.CROP, self._seed, epoch, index)
        sound = self._speech[index]
        speech = self._cache.samples(sound)
        if chance(rng, mix.speed_share):
            speech = resample(speech, round(self._data.sampling_rate * rng.uniform(*SPEED)), self._data.sampling_rate)
        start = draw_start(rng, speech, segment)
        target, noisy, dry = self._mixer.mix(rng, sound, speech, start, segment)
        gain = np.float32(10 ** (rng.uniform(mix.gain_low, mix.gain_high) / 20))
        if self._data.normalize_level:
            gain *= np.float32(unit_power_gain(mean_power(noisy)))
        return Crop(target * gain, noisy * gain, dry)


class MixedUtterances(Sequence[EvalPair]):
    """`mix.validation_mixes` whole utterances mixed by `mixer`, always the same; SNRs are spread evenly over the range.

    Mixed on access; raises `AudioError` then.
    """

    def __init__(self, speech: Sequence[Sound], mixer: Mixer, cache: AudioCache, mix: MixConfig, seed: int) -> None:
        self._speech = speech
        self._mixer = mixer
        self._cache = cache
        self._mix = mix
        self._seed = seed
        self._order = generator(Stream.VALIDATION, seed).permutation(len(speech))

    def __len__(self) -> int:
        return self._mix.validation_mixes

    def __getitem__(self, index: int) -> EvalPair:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        index = range(len(self))[index]
        rng = generator(Stream.VALIDATION, self._seed, 1, index)
        sound = self._speech[self._order[index % len(self._order)]]
        speech = self._cache.samples(sound)
        snr = self._mix.snr_low + (index + 0.5) / len(self) * (self._mix.snr_high - self._mix.snr_low)
        return EvalPair(f"{index}_{sound.path.stem}", *self._mixer.mix(rng, sound, speech, 0, len(speech), snr)[:2])


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Return True with this probability; probability 0 draws no random number."""
    return probability > 0 and rng.random() < probability


class _NoisePool:
    """Noise, drawn in proportion to the lengths of files up to `LONGEST_NOISE`."""

    def __init__(self, sounds: Sequence[Sound], cache: AudioCache) -> None:
        self._sounds = sounds
        self._cache = cache
        parts = Counter(sound.path for sound in sounds)
        seconds: list[float] = []
        for sound in sounds:
            with AudioReader(sound.path) as reader:
                seconds.append(min(reader.frames / reader.format.rate, LONGEST_NOISE) / parts[sound.path])
        self._ends = np.cumsum(seconds)

    def draw(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """Return a random piece `[samples]` of a random file; raises `AudioError`."""

        def random_sounds() -> Iterator[np.ndarray]:
            while True:
                position = rng.random() * self._ends[-1]
                yield self._cache.samples(self._sounds[np.searchsorted(self._ends, position, side="right")])

        return draw_piece(rng, random_sounds(), samples)


def draw_start(rng: np.random.Generator, speech: np.ndarray, segment: int) -> int:
    """Return a random start of a crop of `segment` samples in speech `[N]`; redraw nearly silent crops, up to 10 times.

    See `NEARLY_SILENT`.
    """
    min_power = NEARLY_SILENT * mean_power(speech)
    start = 0
    for _ in range(1 + _MAX_REDRAWS):
        start = random_start(rng, len(speech), segment)
        if mean_power(speech[start : start + segment]) >= min_power:
            break
    return start


def draw_piece(rng: np.random.Generator, sounds: Iterable[np.ndarray], samples: int) -> np.ndarray:
    """Return a random piece `[samples]` of the first of `sounds`, or of a later one if the piece is quiet.

    At most 11 sounds are tried. A sound shorter than the piece is repeated, from a random position.
    """
    piece = np.zeros(samples)
    for sound in islice(sounds, 1 + _MAX_REDRAWS):
        if len(sound) < samples:
            sound = np.resize(sound, samples + len(sound) - 1)  # as many starts as the sound has samples
        start = random_start(rng, len(sound), samples)
        piece = sound[start : start + samples]
        if mean_power(piece) > QUIET_POWER:
            break
    return piece


def add_noise(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Add noise `[N]` to speech `[N]` at an SNR of `snr` dB; both are float32 or both float64.

    The SNR is the ratio of mean powers over all samples. If either signal is silent, the noise is added unscaled.
    """
    speech_power, noise_power = mean_power(speech), mean_power(noise)
    scale = 1.0
    if min(speech_power, noise_power) > SILENT_POWER:
        scale = (speech_power / noise_power) ** 0.5 * 10 ** (-snr / 20)
    return speech + noise * scale


def random_filter(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Return `x` `[N]` filtered by a random second-order section, with its mean power, as float32.

    The coefficients are uniform within ±3/8 (Valin 2018, arXiv 1709.08243, eq. 17). Such filters stand for other
    microphones.
    """
    b1, b2, a1, a2 = rng.uniform(-0.375, 0.375, 4)
    y = np.asarray(lfilter([1, b1, b2], [1, a1, a2], x))
    power = mean_power(y)
    return (y * (mean_power(x) / power) ** 0.5 if power else y).astype(np.float32)


def in_room(
    before: np.ndarray, speech: np.ndarray, response: np.ndarray, early: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return speech `[N]` convolved with the early part of a room response, and with the whole response.

    `before` is the speech that precedes it, whose reverberation reaches into it.
    """
    dry = np.concatenate([before, speech])
    span = slice(len(before), len(dry))
    return fftconvolve(dry, early)[span], fftconvolve(dry, response)[span]


def room_response(rng: np.random.Generator, rate: int, decay: float, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a synthetic room response at `rate` Hz, float32 `[N]`, and its early part of 50 ms.

    The response is 1 (direct sound) followed by Gaussian noise that decays exponentially by 60 dB over `decay` seconds
    (T60). The energy of the direct sound is `ratio` dB above that of the noise.
    """
    samples = round(decay * rate)
    tail = rng.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples)
    tail *= 10 ** (-ratio / 20) / np.linalg.norm(tail)
    response = np.concatenate([[1], tail]).astype(np.float32)
    return response, response[: 1 + round(EARLY_SECONDS * rate)]


def check_sounds(sounds: Sequence[Sound], what: str, cache: AudioCache) -> None:
    """Raise `UserError` if all of `sounds` are silent. Reads only up to the first file that is not.

    what: what they are, for the message.
    """
    if not any(cache.samples(sound).any() for sound in sounds):
        count = len({sound.path for sound in sounds})
        raise UserError(f"{what}: every file is silent: {count} hold nothing but zeros")
