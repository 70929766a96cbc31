"""The test mixes: choose speech and noise files, then build one utterance under one condition.

Crops, noises and rooms depend on the seed and the index of the utterance only, so all conditions share them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli import UserError
from data.audio import AudioError
from data.dataset import AudioCache
from data.degradations import (
    CODECS,
    RATE,
    babble,
    clip_share,
    gain_to,
    narrowband,
    pink_noise,
    telephone,
    through_codec,
)
from data.file_lists import audio_by_id, evenly_spaced
from data.levels import SILENT_POWER, mean_power
from data.mixing import add_noise, draw_piece, draw_start, in_room, room_response
from data.splits import hold_out_files, hold_out_speakers, speaker_of
from tools.robustness.conditions import ALL, SYNTHETIC_NOISES, Condition

MAX_CATEGORIES = 12
"""The categories of noise with the most files that are tested."""

BABBLE_VOICES = 6

DIRECT_TO_REVERBERANT = 0.0
"""Ratio in dB in every room: the distance is the critical distance."""

# Separate random streams that are drawn from the same seed.
_SPEECH, _NOISE, _ROOM = 11, 12, 13


@dataclass(frozen=True)
class Pool:
    """Candidate files by id.

    groups: speech ids by first folder.
    seen: groups without held-out speakers; they are tested with all their files.
    """

    speech: Mapping[str, Path]
    noise: Mapping[str, Path]
    groups: Mapping[str, Sequence[str]]
    seen: frozenset[str] = frozenset()


class Crop(NamedTuple):
    """A crop of an utterance, float64 `[N]`, and the speech right before it."""

    id: str
    before: np.ndarray
    samples: np.ndarray


class Mix(NamedTuple):
    """Target and input of the enhancer, float64 `[N]` at 16 kHz."""

    id: str
    reference: np.ndarray
    noisy: np.ndarray


def find_pool(speech_dir: Path, noise_dir: Path, held_out_seed: int | None) -> Pool:
    """List the files; with a seed, only those that training on these folders with that seed holds out.

    Raises `UserError` if a folder has too few files.
    """
    speech, noise = audio_by_id(speech_dir), audio_by_id(noise_dir)
    groups: dict[str, list[str]] = {}
    for id_ in speech:
        if "/" in id_:
            groups.setdefault(id_.split("/")[0], []).append(id_)
    if held_out_seed is None:
        return Pool(speech, noise, groups)
    ids, noise_ids = list(speech), list(noise)
    held_out = {ids[index] for index in hold_out_speakers(ids, held_out_seed)[1]}
    held_out_noise = {noise_ids[index] for index in hold_out_files(list(noise.values()), held_out_seed, noise_dir)[1]}
    seen = frozenset(name for name, members in groups.items() if held_out.isdisjoint(members))
    groups = {name: [id_ for id_ in ids if id_ in held_out] or ids for name, ids in groups.items()}
    wanted = held_out.union(*groups.values())
    return Pool(
        {id_: path for id_, path in speech.items() if id_ in wanted},
        {id_: path for id_, path in noise.items() if id_ in held_out_noise},
        groups,
        seen,
    )


def noise_categories(noise: Sequence[str]) -> dict[str, list[str]]:
    """Group noise ids by first folder, or by the letters that a name begins with ("DKITCHEN_ch01" → "DKITCHEN").

    Returns the `MAX_CATEGORIES` largest groups, sorted by name.
    """
    found: dict[str, list[str]] = {}
    for id_ in noise:
        letters = re.match(r"[^\W\d_]+", id_)
        name = id_.split("/")[0] if "/" in id_ else letters[0] if letters else id_
        found.setdefault(name, []).append(id_)
    largest = sorted(found, key=lambda name: len(found[name]), reverse=True)[:MAX_CATEGORIES]
    return {name: found[name] for name in sorted(largest)}


class Material:
    """Crops of `seconds` from `files` utterances, and noise for each crop.

    `utterances` holds the chosen ids by group; `problems` the message for each file that cannot be used, by path.
    """

    def __init__(self, pool: Pool, files: int, seconds: float, seed: int) -> None:
        self.pool, self.files, self.seed = pool, files, seed
        self.problems: dict[str, str] = {}
        self.categories = noise_categories(list(pool.noise))
        self.candidates = [id_ for id_ in pool.speech if id_.split("/")[0] not in pool.seen]
        self._crop_samples = round(seconds * RATE)
        self._cache = AudioCache(RATE, keep=False)
        self._noises: dict[tuple[str, int, int], np.ndarray] = {}
        self.utterances = {ALL: self._choose(self.candidates)}

    def add_groups(self) -> None:
        """Choose utterances of each group too."""
        self.utterances |= {name: self._choose(ids) for name, ids in self.pool.groups.items()}

    @property
    def noises(self) -> list[str]:
        """Available kinds of noise: the categories if there are several, and the synthetic ones."""
        kinds = list(self.categories) if len(self.categories) > 1 else []
        has_babble = len({speaker_of(id_) for id_ in self.candidates}) > 2
        return kinds + [kind for kind in SYNTHETIC_NOISES if kind != "babble" or has_babble]

    def speech(self, group: str, index: int, context: int) -> Crop:
        """Crop utterance `index` of a group, with up to `context` samples of the speech before it."""
        id_ = self.utterances[group][index]
        whole = self._cache.samples(self.pool.speech[id_]).astype(np.float64)
        length = self._crop_samples
        start = draw_start(np.random.default_rng([self.seed, index, _SPEECH]), whole, length)
        return Crop(id_, whole[max(start - context, 0) : start], whole[start : start + length])

    def read_noises(self) -> None:
        """Make all noises, so that unusable files are known; drop categories without a usable file.

        Raises `UserError` if no noise file can be used.
        """
        for kind in [ALL, *self.noises]:
            try:
                for index in range(len(self.utterances[ALL])):
                    self.noise(kind, self.speech(ALL, index, 0), index)
            except UserError:
                if self.categories.pop(kind, None) is None:
                    raise

    def noise(self, kind: str, speech: Crop, index: int) -> np.ndarray:
        """Return noise of a kind for utterance `index`, float64 and as long as its crop; cached."""
        samples = len(speech.samples)
        if (kind, index, samples) in self._noises:
            return self._noises[kind, index, samples]
        random = np.random.default_rng([self.seed, index, _NOISE])
        if kind == "white":
            piece = random.standard_normal(samples)
        elif kind == "pink":
            piece = pink_noise(random, samples)
        elif kind == "babble":
            others = [id_ for id_ in self.candidates if speaker_of(id_) != speaker_of(speech.id)]
            order = (self._read(self.pool.speech[others[place]]) for place in random.permutation(len(others)))
            voices = islice((voice for voice in order if voice is not None), BABBLE_VOICES)
            piece = babble([draw_piece(random, repeat(voice), samples) for voice in voices])
        else:
            ids = list(self.pool.noise) if kind == ALL else self.categories[kind]
            order = np.random.default_rng([self.seed, _NOISE]).permutation(len(ids))
            # Files in turn, so that each is used equally often; the next one if a file is unusable.
            files = (self._read(self.pool.noise[ids[place]]) for place in np.roll(order, -index))
            noise = next((noise for noise in files if noise is not None), None)
            if noise is None:
                raise UserError(f"no noise file of '{kind}' can be used")
            piece = draw_piece(random, repeat(noise), samples)
        return self._noises.setdefault((kind, index, samples), piece)

    def _choose(self, ids: Sequence[str]) -> list[str]:
        return [id_ for id_ in evenly_spaced(ids, self.files) if self._read(self.pool.speech[id_]) is not None]

    def _read(self, path: Path) -> np.ndarray | None:
        """Read a file; None and an entry in `problems` if it is unreadable or silent."""
        try:
            samples = self._cache.samples(path).astype(np.float64)
        except AudioError as error:
            self.problems[str(path)] = str(error)
            return None
        if mean_power(samples) <= SILENT_POWER:
            self.problems[str(path)] = f"{path}: is silent"
            return None
        return samples


def make_mix(material: Material, condition: Condition, index: int) -> Mix:
    """Build utterance `index` under a condition: room, band, noise, level, clipping, codec, in this order.

    The reference is the speech with its first 50 ms of reflections, as in training, in the same band and at the same
    level, without noise, clipping and coding. The SNR is measured in the band, with all reflections as speech. Raises
    `UserError`.
    """
    speech = material.speech(condition.group, index, round(condition.t60 * RATE))
    reference = noisy = speech.samples
    if condition.t60:
        random = np.random.default_rng([material.seed, index, _ROOM])
        response = room_response(random, RATE, condition.t60, DIRECT_TO_REVERBERANT)
        reference, noisy = in_room(speech.before, speech.samples, *response)
    limit_band = {"full": np.copy, "narrow": narrowband, "telephone": telephone}[condition.band]
    reference, noisy = limit_band(reference), limit_band(noisy)
    if condition.snr is not None:
        noisy = add_noise(noisy, limit_band(material.noise(condition.noise, speech, index)), condition.snr)
    gain = gain_to(noisy, condition.level)
    reference, noisy = gain * reference, clip_share(gain * noisy, condition.clipped)
    if condition.codec:
        codec = CODECS[condition.codec]
        reference = narrowband(reference) if codec.narrow else reference
        noisy = through_codec(noisy, codec)
    return Mix(speech.id, reference, noisy)
