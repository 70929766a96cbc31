"""Which recordings are kept from training and used for validation: other speakers, other noises.

The choice depends on the names and the seed alone, so that every process of a run, and every later run, makes the
same one, in whatever order and wherever the files lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cli import UserError

VOICEBANK_VALIDATION = frozenset(["p226", "p287"])
"""The speakers of VoiceBank+DEMAND's training set that are customarily held out."""

_SHARE = 10  # one in so many is held out

# Sets these random numbers apart from all others drawn from the same seed.
_STREAM = 3


def speaker_of(id_: str) -> str:
    """The speaker that an utterance's id names: "p226_001" → "p226", "libri/1034-121119-0000" → "libri/1034".

    The name up to the first `-` or `_`, behind the folders, as numbers of two corpora may clash. A folder with the
    speaker's name ends them: chapters below it are of one speaker ("1034/121119/1034-121119-0000" → "1034").
    """
    *folders, name = id_.split("/")
    speaker = re.split("[-_]", name)[0]
    above = folders[: folders.index(speaker)] if speaker in folders else folders
    return "/".join([*above, speaker])


def hold_out_speakers(ids: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the utterances to train on, and of those held out; in the order of `ids`, none in both.

    Held out are VoiceBank's p226 and p287 where they are among the speakers; else a tenth of the speakers, or, where
    there is only one, a tenth of the utterances; at least one. Raises `UserError` for less than two utterances.
    """
    speakers = [speaker_of(id_) for id_ in ids]
    everyone = set(speakers)
    if everyone > VOICEBANK_VALIDATION:
        return _split(speakers, VOICEBANK_VALIDATION)
    if len(everyone) > 1:
        return _split(speakers, _choose(sorted(everyone), seed))
    if len(ids) < 2:
        raise UserError(f"{len(ids)} utterances are too few: one is held out for validation, the rest trained on")
    return _split(ids, _choose(sorted(ids), seed))


def hold_out_files(paths: Sequence[Path], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the files to train on, and of the tenth held out (at least one); in the order of `paths`.

    Raises `UserError` for less than two files.
    """
    if len(paths) < 2:
        raise UserError(f"{len(paths)} noise files are too few: one is held out for validation, the rest mixed")
    # By its parts, a path sorts the same wherever the common folder lies.
    names = [path.parts for path in paths]
    return _split(names, _choose(sorted(names), seed))


def _choose(names: Sequence, seed: int) -> set:
    """A seeded tenth of sorted names: at least one."""
    count = max(1, len(names) // _SHARE)
    order = np.random.default_rng([seed, 0, 0, _STREAM]).permutation(len(names))
    return {names[index] for index in order[:count]}


def _split(names: Sequence, held_out: set | frozenset) -> tuple[list[int], list[int]]:
    """The indices of the names that are not held out, and of those that are."""
    train = [index for index, name in enumerate(names) if name not in held_out]
    return train, [index for index, name in enumerate(names) if name in held_out]
