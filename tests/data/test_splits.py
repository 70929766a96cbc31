"""Validation splits by speaker and by noise file, independent of order and location."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cli import UserError
from data.splits import hold_out_files, hold_out_speakers, speaker_of

# 30 speakers with 3 utterances each.
IDS = [f"s{speaker:02d}_{number}" for speaker in range(30) for number in range(3)]


def names(ids: Sequence[str], split: tuple[list[int], list[int]]) -> tuple[set[str], set[str]]:
    """Return the names of both parts of a split, after a check that each index occurs once."""
    train, held_out = ([ids[index] for index in part] for part in split)
    assert sorted(train + held_out) == sorted(ids)
    return set(train), set(held_out)


@pytest.mark.parametrize(
    ("id_", "speaker"),
    [
        ("p226_001", "p226"),
        ("1034/121119/1034-121119-0000", "1034"),
        ("train/p226/p226_001_mic1", "train/p226"),
        ("a/b/c", "a/b/c"),
    ],
)
def test_speaker_of(id_: str, speaker: str) -> None:
    assert speaker_of(id_) == speaker


def test_voicebank_holds_out_its_two_speakers() -> None:
    ids = ["p225_1", "p226_1", "p227_1", "p287_1", "p226_2", "p2_1"]
    assert hold_out_speakers(ids, 0) == hold_out_speakers(ids, 5) == ([0, 2, 5], [1, 3, 4])
    # With only one of the two, or without other speakers: a tenth as usual.
    for some in (["p226_1", "p3_1"], ["p226_1", "p226_2", "p287_1"]):
        held_out = [hold_out_speakers(some, seed)[1] for seed in range(10)]
        assert {len({speaker_of(some[index]) for index in part}) for part in held_out} == {1}
        assert len({tuple(part) for part in held_out}) == 2


def test_a_tenth_of_the_speakers_is_held_out_with_all_utterances() -> None:
    shuffled = [IDS[index] for index in np.random.default_rng(0).permutation(len(IDS))]
    choices: set[frozenset[str]] = set()
    for seed in range(10):
        train, held_out = names(IDS, hold_out_speakers(IDS, seed))
        speakers = {speaker_of(id_) for id_ in held_out}
        assert (len(speakers), len(held_out)) == (3, 9)
        assert speakers.isdisjoint(speaker_of(id_) for id_ in train)
        assert names(shuffled, hold_out_speakers(shuffled, seed)) == (train, held_out)
        choices.add(frozenset(held_out))
    assert len(choices) == 10


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (19, 1), (20, 2), (40, 4)])
def test_of_a_single_speaker_a_tenth_of_the_utterances_is_held_out(count: int, held_out: int) -> None:
    ids = [f"me_{index:02d}" for index in range(count)]
    assert len(names(ids, hold_out_speakers(ids, 0))[1]) == held_out
    assert names(ids, hold_out_speakers(ids, 0)) == names(ids[::-1], hold_out_speakers(ids[::-1], 0))


def test_too_few_names_are_rejected() -> None:
    for ids in ([], ["p226_1"]):
        with pytest.raises(UserError, match=f"{len(ids)} utterances are too few"):
            hold_out_speakers(ids, 0)
    with pytest.raises(UserError, match=r"^noises: 1 files are too few"):
        hold_out_files([Path("a.wav")], 0, Path("noises"))


def test_a_tenth_of_the_noise_files_is_held_out() -> None:
    files = [f"{kind}/{index:02d}.wav" for kind in ("street", "street-night") for index in range(12)]
    choices: list[set[str]] = []
    for folder, order in (("/a", files), ("/b/c", files[::-1])):
        split = hold_out_files([Path(folder, file) for file in order], 3, Path(folder))
        choices.append(names(order, split)[1])
    assert choices[0] == choices[1]
    assert len(choices[0]) == 2
    assert len(hold_out_files([Path("a.wav"), Path("b.wav")], 0, Path())[1]) == 1
