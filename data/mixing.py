"""Training data by dynamic mixing: every crop is mixed anew from clean speech and noise.

A crop is speech, with a given probability in a synthetic room, plus noise at a random signal-to-noise ratio (SNR). The
training target is the speech with the early reflections of the room, without its late reverberation.
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
from data.seeds import Stream, generator

NEARLY_SILENT = 1e-2
"""A crop with less than this proportion (−20 dB) of its utterance's mean power is drawn again."""

LONGEST_NOISE = 60.0
"""Noise files are drawn in proportion to their length up to this limit in seconds."""

REVERBERATION_TIME = (0.1, 0.6)
"""Range of T60 in seconds: from a small furnished room to a meeting room."""

DIRECT_TO_REVERBERANT = (-5.0, 15.0)
"""Range in dB of the energy of the direct sound over that of the reverberation."""

EARLY_SECONDS = 0.05
"""Reflections up to this delay belong to the target."""

_MAX_REDRAWS = 10


class MixedDataset:
    """Crops of `data.segment_size` samples: each file of `speech` once per epoch, mixed with random `noise`.

    With `data.normalize_level` a crop is scaled to a mean power of 1 before the random gain. Raises `AudioError` if the
    header of a noise file cannot be read.
    """

    def __init__(
        self,
        speech: Sequence[Path],
        noise: Sequence[Path],
        cache: AudioCache,
        data: DataConfig,
        mix: MixConfig,
        seed: int,
    ) -> None:
        self._speech = speech
        self._noise = _NoisePool(noise, cache)
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
        speech = self._cache.samples(self._speech[index])
        start = draw_start(rng, speech, segment)
        target = voice = fit_segment(speech[start:], segment)
        if rng.random() < mix.reverb_share:
            decay, ratio = rng.uniform(*REVERBERATION_TIME), rng.uniform(*DIRECT_TO_REVERBERANT)
            response, early = room_response(rng, self._data.sampling_rate, decay, ratio)
            before = speech[max(start - len(response) + 1, 0) : start]
            target, voice = in_room(before, voice, response, early)
        snr = rng.uniform(mix.snr_low, mix.snr_high)
        noisy = add_noise(voice, self._noise.draw(rng, segment), snr)
        gain = np.float32(10 ** (rng.uniform(mix.gain_low, mix.gain_high) / 20))
        if self._data.normalize_level:
            gain *= np.float32(unit_power_gain(mean_power(noisy)))
        return Crop(target * gain, noisy * gain)


class MixedUtterances(Sequence[EvalPair]):
    """`mix.validation_mixes` whole utterances with noise, always the same ones; SNRs are spread evenly over the range.

    Mixed on access; raises `AudioError` then, or at once if the header of a noise file cannot be read.
    """

    def __init__(
        self, speech: Sequence[Path], noise: Sequence[Path], cache: AudioCache, mix: MixConfig, seed: int
    ) -> None:
        self._speech = speech
        self._noise = _NoisePool(noise, cache)
        self._cache = cache
        self._mix = mix
        self._seed = seed
        self._order = generator(Stream.VALIDATION, seed).permutation(len(speech))

    def __len__(self) -> int:
        return self._mix.validation_mixes

    def __getitem__(self, index: int) -> EvalPair:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        index = range(len(self))[index]
        rng = generator(Stream.VALIDATION, self._seed, 1, index)
        path = self._speech[self._order[index % len(self._order)]]
        clean = self._cache.samples(path)
        snr = self._mix.snr_low + (index + 0.5) / len(self) * (self._mix.snr_high - self._mix.snr_low)
        return EvalPair(f"{index}_{path.stem}", clean, add_noise(clean, self._noise.draw(rng, len(clean)), snr))


class _NoisePool:
    """Noise files, drawn in proportion to their lengths up to `LONGEST_NOISE`."""

    def __init__(self, paths: Sequence[Path], cache: AudioCache) -> None:
        self._paths = paths
        self._cache = cache
        seconds: list[float] = []
        for path in paths:
            with AudioReader(path) as reader:
                seconds.append(min(reader.frames / reader.format.rate, LONGEST_NOISE))
        self._ends = np.cumsum(seconds)

    def draw(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """Return a random piece `[samples]` of a random file; raises `AudioError`."""

        def random_files() -> Iterator[np.ndarray]:
            while True:
                position = rng.random() * self._ends[-1]
                yield self._cache.samples(self._paths[np.searchsorted(self._ends, position, side="right")])

        return draw_piece(rng, random_files(), samples)


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
    """Return a random piece `[samples]` of the first of `sounds`, or of a later one if the piece is silent.

    At most 11 sounds are tried. A sound shorter than the piece is repeated, from a random position.
    """
    piece = np.zeros(samples)
    for sound in islice(sounds, 1 + _MAX_REDRAWS):
        if len(sound) < samples:
            sound = np.resize(sound, samples + len(sound) - 1)  # as many starts as the sound has samples
        start = random_start(rng, len(sound), samples)
        piece = sound[start : start + samples]
        if mean_power(piece) > SILENT_POWER:
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


def check_mix(speech: Sequence[Path], noise: Sequence[Path], cache: AudioCache) -> None:
    """Raise `UserError` if all speech or all noise is silent. Reads only up to the first file that is not."""
    for kind, paths in (("speech", speech), ("noise", noise)):
        if not any(cache.samples(path).any() for path in paths):
            raise UserError(f"every {kind} file is silent: {len(paths)} hold nothing but zeros")
