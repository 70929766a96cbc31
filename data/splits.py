"""Split the training data into a training and a validation part, by speaker and by noise file.

A split depends on the names and the seed only, so that all processes of a run and all later runs agree, whatever the
order and location of the files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cli import UserError
from data.seeds import Stream, generator

VOICEBANK_VALIDATION = frozenset(["p226", "p287"])
"""Speakers of VoiceBank+DEMAND's training set that are customarily held out."""

_FRACTION = 10  # one in ten is held out


def speaker_of(id_: str) -> str:
    """Return the speaker in an utterance id: "p226_001" → "p226", "libri/1034-121119-0000" → "libri/1034".

    The speaker is the file name up to the first `-` or `_`, with the folders before it, since numbers of two corpora
    may clash. If a folder has the speaker's name, folders below it are ignored
    ("1034/121119/1034-121119-0000" → "1034").
    """
    *folders, name = id_.split("/")
    speaker = re.split("[-_]", name)[0]
    parents = folders[: folders.index(speaker)] if speaker in folders else folders
    return "/".join([*parents, speaker])


def hold_out_speakers(ids: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of the training and of the held-out utterances, in the order of `ids`.

    Held out are VoiceBank's p226 and p287 if both are present beside other speakers; otherwise a tenth of the speakers;
    with a single speaker, a tenth of the utterances; at least one. Raises `UserError` for fewer than two utterances.
    """
    speakers = [speaker_of(id_) for id_ in ids]
    if set(speakers) > VOICEBANK_VALIDATION:
        return _split(speakers, VOICEBANK_VALIDATION)
    if len(set(speakers)) > 1:
        return _split(speakers, _choose(set(speakers), seed))
    if len(ids) < 2:
        raise UserError(f"{len(ids)} utterances are too few: at least one to train on and one to validate are needed")
    return _split(ids, _choose(ids, seed))


def hold_out_files(paths: Sequence[Path], seed: int, folder: Path) -> tuple[list[int], list[int]]:
    """Return the indices of the training files and of the held-out tenth (at least one), in the order of `paths`.

    Raises `UserError`, with the name of `folder`, for fewer than two files.
    """
    if len(paths) < 2:
        raise UserError(f"{folder}: {len(paths)} files are too few: one to train and one to validate are needed")
    names = [path.parts for path in paths]  # their order does not depend on the common folder
    return _split(names, _choose(names, seed))


def _choose(names: Collection[Any], seed: int) -> set[Any]:
    """Return a random tenth of the names, at least one."""
    ordered = sorted(names)
    order = generator(Stream.SPLIT, seed).permutation(len(ordered))
    return {ordered[index] for index in order[: max(1, len(ordered) // _FRACTION)]}


def _split(names: Sequence[Any], held_out: Collection[Any]) -> tuple[list[int], list[int]]:
    train = [index for index, name in enumerate(names) if name not in held_out]
    return train, [index for index, name in enumerate(names) if name in held_out]
