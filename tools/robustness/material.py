"""The speech and noise that trials are made of: which files, which seconds of them; the same for every condition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from cli import UserError
from data.audio import AudioError
from data.dataset import AudioCache
from data.file_lists import audio_by_id, evenly_spaced
from data.levels import SILENT_POWER, mean_power
from data.mixing import NEARLY_SILENT, draw_piece, draw_start
from data.splits import hold_out_files, hold_out_speakers, speaker_of
from tools.robustness.degradations import RATE, babble, pink_noise, white_noise
from tools.robustness.plan import ALL, SYNTHETIC_NOISES

MOST_CATEGORIES = 12
"""Noise categories with the most files that are tried; a folder of many names is not many kinds of noise."""

BABBLE_VOICES = 6

# Sets these random numbers apart from all others drawn from the same seed.
_SPEECH, _NOISE = 11, 12


@dataclass(frozen=True)
class Pool:
    """Files to choose from, by id; `groups`: the speech ids of each first folder; `seen`: groups not held out.

    All files of a seen group are tried, though a network trained on these folders knows them.
    """

    speech: Mapping[str, Path]
    noise: Mapping[str, Path]
    groups: Mapping[str, Sequence[str]]
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Speech:
    """A crop of an utterance, float64 `[N]`, and what was said before it, at most `context` samples."""

    id: str
    before: np.ndarray
    samples: np.ndarray


def find_pool(speech_dir: Path, noise_dir: Path, held_out_seed: int | None) -> Pool:
    """All files, or only what training with that seed holds out (`training.data.read_mixes`).

    Raises `UserError` where a folder has too little.
    """
    speech, noise = audio_by_id(speech_dir), audio_by_id(noise_dir)
    groups: dict[str, list[str]] = {}
    for id_ in speech:
        if "/" in id_:
            groups.setdefault(id_.split("/")[0], []).append(id_)
    if held_out_seed is None:
        return Pool(speech, noise, groups)
    ids = list(speech)
    held = {ids[index] for index in hold_out_speakers(ids, held_out_seed)[1]}
    names = list(noise)
    held_noise = {names[index] for index in hold_out_files(list(noise.values()), held_out_seed)[1]}
    kept = {name: [id_ for id_ in members if id_ in held] or members for name, members in groups.items()}
    seen = frozenset(name for name, members in groups.items() if not held.intersection(members))
    wanted = held.union(*kept.values())
    return Pool(
        {id_: path for id_, path in speech.items() if id_ in wanted},
        {id_: path for id_, path in noise.items() if id_ in held_noise},
        kept,
        seen,
    )


def categories_of(noise: Sequence[str]) -> dict[str, list[str]]:
    """Noise ids by their first folder, or else by what their names begin with ("DKITCHEN_ch01" → "DKITCHEN").

    The `MOST_CATEGORIES` largest, sorted.
    """
    found: dict[str, list[str]] = {}
    for id_ in noise:
        start = re.match(r"[^\W\d_]+", id_)
        name = id_.split("/")[0] if "/" in id_ else start[0] if start else id_
        found.setdefault(name, []).append(id_)
    most = sorted(
        name for name, _ in Counter({key: len(ids) for key, ids in found.items()}).most_common(MOST_CATEGORIES)
    )
    return {name: found[name] for name in most}


class Material:
    """Crops of `seconds` of `files` utterances, and noise for each; files that cannot be read are in `problems`.

    Where and what is cut follows from the seed and the place of the file alone.
    """

    def __init__(self, pool: Pool, files: int, seconds: float, seed: int) -> None:
        self.problems: dict[str, str] = {}
        self.pool = pool
        self.categories = categories_of(list(pool.noise))
        self._files = files
        self._samples = round(seconds * RATE)
        self._seed = seed
        self._recordings = AudioCache(RATE, keep=False)
        self._pieces: dict[tuple[str, int, int], np.ndarray] = {}
        base = [id_ for id_ in pool.speech if id_.split("/")[0] not in pool.seen]
        self.utterances = {ALL: self._choose(base)}
        self.everyone = base

    def add_groups(self) -> None:
        """Choose utterances of each group too."""
        self.utterances |= {name: self._choose(ids) for name, ids in self.pool.groups.items()}

    @property
    def noises(self) -> list[str]:
        """The kinds of noise that there are: categories, where there are several, and synthetic ones."""
        kinds = list(self.categories) if len(self.categories) > 1 else []
        enough = len({speaker_of(id_) for id_ in self.everyone}) > 2
        return kinds + [name for name in SYNTHETIC_NOISES if name != "babble" or enough]

    def speech(self, group: str, index: int, context: int) -> Speech:
        """The crop of a group's utterance `index`."""
        id_ = self.utterances[group][index]
        whole = self._samples_of(id_)
        start = draw_start(np.random.default_rng([self._seed, index, _SPEECH]), whole, self._samples)
        if mean_power(whole[start : start + self._samples]) < NEARLY_SILENT * mean_power(whole):
            # No draw found more: then that with the loudest sample, for each trial is to have speech in it.
            loudest = int(np.argmax(np.abs(whole)))
            start = max(min(loudest - self._samples // 2, len(whole) - self._samples), 0)
        return Speech(id_, whole[max(start - context, 0) : start], whole[start : start + self._samples])

    def read_noises(self) -> None:
        """Make the noises of all kinds now, so that files which cannot be read are known; a kind of only such goes.

        Raises `UserError` where no noise is left.
        """
        for kind in [ALL, *self.noises]:
            try:
                for index in range(len(self.utterances[ALL])):
                    self.noise(kind, self.speech(ALL, index, 0), index)
            except UserError:
                if self.categories.pop(kind, None) is None:
                    raise

    def noise(self, kind: str, speech: Speech, index: int) -> np.ndarray:
        """Noise of a kind for the utterance `index`, float64 `[N]` as long as its crop, the same at each call."""
        place = kind, index, len(speech.samples)
        if place not in self._pieces:
            self._pieces[place] = self._make_noise(kind, speech, index)
        return self._pieces[place]

    def _make_noise(self, kind: str, speech: Speech, index: int) -> np.ndarray:
        samples = len(speech.samples)
        random = np.random.default_rng([self._seed, index, _NOISE])
        if kind == "white":
            return white_noise(random, samples)
        if kind == "pink":
            return pink_noise(random, samples)
        if kind == "babble":
            others = [id_ for id_ in self.everyone if speaker_of(id_) != speaker_of(speech.id)]
            order = (self._read(self.pool.speech[others[place]]) for place in random.permutation(len(others)))
            voices = islice((voice for voice in order if voice is not None), BABBLE_VOICES)
            return babble([draw_piece(random, repeat(voice), samples) for voice in voices])
        ids = list(self.pool.noise) if kind == ALL else self.categories[kind]
        order = np.random.default_rng([self._seed, _NOISE]).permutation(len(ids))
        # In turn, so that each counts alike; the next where one cannot be read.
        for step in range(len(ids)):
            id_ = ids[order[(index + step) % len(ids)]]
            noise = self._read(self.pool.noise[id_])
            if noise is not None:
                piece = draw_piece(random, repeat(noise), samples)
                if mean_power(piece) > SILENT_POWER:
                    return piece
        raise UserError(f"no noise file of '{kind}' can be used")

    def _choose(self, ids: Sequence[str]) -> list[str]:
        """`files` of them, evenly spaced, that can be read."""
        return [id_ for id_ in evenly_spaced(ids, self._files) if self._read(self.pool.speech[id_]) is not None]

    def _samples_of(self, id_: str) -> np.ndarray:
        return self._recordings.samples(self.pool.speech[id_]).astype(np.float64)

    def _read(self, path: Path) -> np.ndarray | None:
        """A file with sound in it, or None, and the reason is kept."""
        try:
            samples = self._recordings.samples(path).astype(np.float64)
        except AudioError as error:
            self.problems[str(path)] = str(error)
            return None
        if mean_power(samples) <= SILENT_POWER:
            self.problems[str(path)] = f"{path}: is silent"
            return None
        return samples
