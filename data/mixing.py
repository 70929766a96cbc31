"""Training data from clean speech and noise: mixed anew for every crop, so that no two epochs are alike.

A crop is speech, now and then in a synthetic room, with noise at a random signal-to-noise ratio (SNR). What a network
is to give back is the speech with the room's early reflections, which belong to a natural voice; later ones blur it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.signal import fftconvolve

from cli import UserError
from config import DataConfig, MixConfig
from data.audio import AudioReader
from data.dataset import AudioCache, Crop, EvalPair, fit_segment, random_start
from data.levels import SILENT_POWER, mean_power, unit_power_gain

_REDRAWS = 10

NEARLY_SILENT = 1e-2
"""Share of its utterance's mean power below which a crop is drawn again: −20 dB."""

LONGEST_NOISE = 60.0
"""Seconds of a noise file that count for how often it is drawn: an hour of one noise is still one noise."""

REVERBERATION_TIME = (0.1, 0.6)
"""Seconds in which a room's response falls by 60 dB (T60): from a small furnished room to a meeting room."""

DIRECT_TO_REVERBERANT = (-5.0, 15.0)
"""dB between the direct sound and all that follows: from across the room to an arm's length."""

EARLY_SECONDS = 0.05
"""Reflections within this time are heard as part of the voice."""

# Sets these random numbers apart from all others drawn from the same seed.
_VALIDATION_STREAM = 2


class MixedDataset:
    """Crops of `data.segment_size` samples from clean speech `speech`, each file once an epoch, mixed with `noise`.

    Raises `AudioError` where the header of a noise file cannot be read.
    """

    def __init__(
        self,
        speech: Sequence[Path],
        noise: Sequence[Path],
        recordings: AudioCache,
        data: DataConfig,
        mix: MixConfig,
        seed: int,
    ) -> None:
        self._speech = speech
        self._noise = _Noises(noise, recordings)
        self._recordings = recordings
        self._data = data
        self._mix = mix
        self._seed = seed

    def __len__(self) -> int:
        return len(self._speech)

    def crop(self, epoch: int, index: int) -> Crop:
        """A random mix with the speech file `index`; raises `AudioError`."""
        random = np.random.default_rng([self._seed, epoch, index])
        clean, voice = self._draw_speech(random, self._recordings.samples(self._speech[index]))
        snr = random.uniform(self._mix.snr_low, self._mix.snr_high)
        noisy = add_noise(voice, self._noise.draw(random, self._data.segment_size), snr)
        gain = np.float32(10 ** (random.uniform(self._mix.gain_low, self._mix.gain_high) / 20))
        factor = unit_power_gain(mean_power(noisy)) * gain if self._data.normalize_level else gain
        return Crop(clean * factor, noisy * factor)

    def _draw_speech(self, random: np.random.Generator, speech: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A crop `[segment]` of speech as it is to be given back, and as it is heard in the room."""
        start = draw_start(random, speech, self._data.segment_size)
        dry = fit_segment(speech[start:], self._data.segment_size)
        if random.random() >= self._mix.reverb_share:
            return dry, dry
        decay, ratio = random.uniform(*REVERBERATION_TIME), random.uniform(*DIRECT_TO_REVERBERANT)
        whole, early = room_response(random, self._data.sampling_rate, decay, ratio)
        # What was said before the crop still sounds in it.
        return in_room(speech[max(start - len(whole) + 1, 0) : start], dry, whole, early)


class MixedUtterances(Sequence[EvalPair]):
    """`mix.validation_mixes` whole utterances with noise, the same ones each time; SNRs spread evenly over the range.

    Made when they are asked for; raises `AudioError` then, or at once where a noise file's header cannot be read.
    """

    def __init__(
        self, speech: Sequence[Path], noise: Sequence[Path], recordings: AudioCache, mix: MixConfig, seed: int
    ) -> None:
        self._speech = speech
        self._noise = _Noises(noise, recordings)
        self._recordings = recordings
        self._mix = mix
        self._seed = seed
        self._order = np.random.default_rng([seed, 0, 0, _VALIDATION_STREAM]).permutation(len(speech))

    def __len__(self) -> int:
        return self._mix.validation_mixes

    def __getitem__(self, index: int) -> EvalPair:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        index = range(len(self))[index]
        random = np.random.default_rng([self._seed, 1, index, _VALIDATION_STREAM])
        path = self._speech[self._order[index % len(self._order)]]
        clean = self._recordings.samples(path)
        share = (index + 0.5) / len(self)
        snr = self._mix.snr_low + share * (self._mix.snr_high - self._mix.snr_low)
        return EvalPair(f"{index}_{path.stem}", clean, add_noise(clean, self._noise.draw(random, len(clean)), snr))


class _Noises:
    """Noise files to draw pieces from: in proportion to their lengths, up to `LONGEST_NOISE`."""

    def __init__(self, paths: Sequence[Path], recordings: AudioCache) -> None:
        self._paths = paths
        self._recordings = recordings
        self._ends = np.cumsum([min(_seconds(path), LONGEST_NOISE) for path in paths])

    def draw(self, random: np.random.Generator, samples: int) -> np.ndarray:
        """A random piece `[samples]` of a random file; raises `AudioError`."""
        return draw_piece(random, self._draw_files(random), samples)

    def _draw_files(self, random: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            place = random.random() * self._ends[-1]
            yield self._recordings.samples(self._paths[np.searchsorted(self._ends, place, side="right")])


def _seconds(path: Path) -> float:
    with AudioReader(path) as reader:
        return reader.frames / reader.format.rate


def draw_start(random: np.random.Generator, speech: np.ndarray, segment: int) -> int:
    """Where a crop of `segment` samples begins in speech `[N]`; a nearly silent one is drawn again, some times."""
    least = NEARLY_SILENT * mean_power(speech)
    start = 0
    for _ in range(1 + _REDRAWS):
        start = random_start(random, len(speech), segment)
        if mean_power(speech[start : start + segment]) >= least:
            break
    return start


def draw_piece(random: np.random.Generator, sounds: Iterable[np.ndarray], samples: int) -> np.ndarray:
    """A random piece `[samples]` of the first of `sounds`; a silent one is drawn again, some times, from the next.

    A sound that is shorter than the piece is repeated, from anywhere in it.
    """
    piece = np.zeros(samples)
    for sound in islice(sounds, 1 + _REDRAWS):
        if len(sound) < samples:
            sound = np.resize(sound, samples + len(sound) - 1)  # a whole period to begin in
        start = random_start(random, len(sound), samples)
        piece = sound[start : start + samples]
        if mean_power(piece) > SILENT_POWER:
            break
    return piece


def add_noise(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Speech plus noise `[N]`, both in float32 or both in float64, the noise scaled to `snr` dB below the speech.

    The ratio is that of the mean powers over all samples. Where either is silent there is none, and the noise is added
    as it is.
    """
    powers = mean_power(speech), mean_power(noise)
    scale = (powers[0] / powers[1]) ** 0.5 * 10 ** (-snr / 20) if min(powers) > SILENT_POWER else 1
    return speech + noise * scale


def in_room(
    before: np.ndarray, speech: np.ndarray, whole: np.ndarray, early: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Speech `[N]` as it sounds by the early part of a room's response, and by the whole of it.

    What was said `before` still sounds in it.
    """
    dry = np.concatenate([before, speech])
    span = slice(len(before), len(dry))
    return fftconvolve(dry, early)[span], fftconvolve(dry, whole)[span]


def room_response(random: np.random.Generator, rate: int, decay: float, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic room's response at `rate` Hz, float32 `[N]`, and its early part: direct sound and first 50 ms.

    The direct sound is 1; Gaussian noise follows that decays exponentially, by 60 dB over `decay` seconds (T60), its
    energy `ratio` dB below that of the direct sound.
    """
    samples = round(decay * rate)
    tail = random.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples)
    tail *= 10 ** (-ratio / 20) / np.linalg.norm(tail)
    whole = np.concatenate([[1], tail]).astype(np.float32)
    return whole, whole[: 1 + round(EARLY_SECONDS * rate)]


def check_mix(speech: Sequence[Path], noise: Sequence[Path], recordings: AudioCache) -> None:
    """Raises `UserError` where all speech or all noise is silent; reads no further than the first that is not."""
    for kind, paths in (("speech", speech), ("noise", noise)):
        if not any(recordings.samples(path).any() for path in paths):
            raise UserError(f"every {kind} file is silent: {len(paths)} hold nothing but zeros")
