"""Crops of paired recordings, and batches that do not depend on threads, processes or a resumed start."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli import UserError
from config import DataConfig
from data.audio import AudioError
from data.dataset import (
    AudioCache,
    Batch,
    Crop,
    CropDataset,
    PairedDataset,
    PairedUtterances,
    check_pairs,
    check_sound,
    epoch_order,
    load_batches,
    steps_per_epoch,
)
from data.file_lists import Utterance
from tests.fixtures.recordings import NOISE, QUANTISED, RATE, save

SEGMENT = 1000
DATA = DataConfig(RATE, SEGMENT)


def save_pairs(folder: Path, signals: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Utterance]:
    """Clean and noisy signals `[N]` as files of 16 bits."""
    utterances = [
        Utterance(f"u{i:02d}", folder / f"c{i:02d}.wav", folder / f"n{i:02d}.wav") for i in range(len(signals))
    ]
    for utterance, (clean, noisy) in zip(utterances, signals, strict=True):
        save(utterance.clean, clean)
        save(utterance.noisy, noisy)
    return utterances


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Seven pairs of different lengths, the last shorter than a segment."""
    lengths = (1500, 1600, 1700, 1800, 1900, 2000, 600)
    return save_pairs(tmp_path, [(QUANTISED[:length], NOISE[:length, 0]) for length in lengths])


class Counting:
    """Twenty crops that tell what they were asked for; asking for crop `bad` fails."""

    def __init__(self, bad: int = -1) -> None:
        self.asked: list[int] = []
        self.bad = bad

    def __len__(self) -> int:
        return 20

    def crop(self, epoch: int, index: int) -> Crop:
        self.asked.append(index)
        if index == self.bad:
            raise AudioError(f"crop {index} is broken")
        random = np.random.default_rng([epoch, index])
        return Crop(np.full(3, index, np.float32), random.random(3, np.float32))


def batches(
    source: CropDataset, epoch: int = 0, first_step: int = 0, rank: int = 0, ranks: int = 1, workers: int = 2
) -> list[Batch]:
    shares = {"batch_size": 6 // ranks, "rank": rank, "ranks": ranks}
    return list(load_batches(source, 7, epoch, first_step, **shares, workers=workers))


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a.indices, b.indices) and np.array_equal(a.clean, b.clean) and np.array_equal(a.noisy, b.noisy)
        for a, b in zip(first, second, strict=True)
    )


def test_the_level_is_that_of_the_whole_noisy_utterance(tmp_path: Path) -> None:
    # Mean power (3 · 0.5² + 0.25²) / 4 = 13/64.
    noisy = np.tile([0.5, 0.5, -0.5, 0.25], 500)
    pairs = save_pairs(tmp_path, [(np.full(2000, 0.125), noisy)])
    crop = PairedDataset(pairs, AudioCache(RATE, True), DATA, 0).crop(0, 0)
    factor = np.sqrt(64 / 13)
    assert crop.clean.dtype == crop.noisy.dtype == np.float32
    np.testing.assert_allclose(crop.clean, np.full(SEGMENT, 0.125 * factor), rtol=1e-6)
    assert sorted(set(np.round(crop.noisy / factor, 6).tolist())) == [-0.5, 0.25, 0.5]


def test_the_level_stays_where_it_is_not_normalised(tmp_path: Path) -> None:
    pairs = save_pairs(tmp_path, [(np.full(1500, 0.125), np.tile([0.5, -0.25], 750))])
    crop = PairedDataset(pairs, AudioCache(RATE, True), replace(DATA, normalize_level=False), 0).crop(0, 0)
    assert set(crop.clean.tolist()) == {0.125}
    assert set(crop.noisy.tolist()) == {0.5, -0.25}


def test_a_crop_is_one_piece_of_both_recordings(tmp_path: Path) -> None:
    ramp = np.arange(1, 1501) / 32_768
    pairs = save_pairs(tmp_path, [(ramp, 2 * ramp)])
    source = PairedDataset(pairs, AudioCache(RATE, True), DATA, 0)
    factor = 1 / np.sqrt(np.mean((2 * ramp) ** 2))
    starts: list[int] = []
    for epoch in range(300):
        clean, noisy = source.crop(epoch, 0)
        np.testing.assert_allclose(noisy, 2 * clean, rtol=1e-6)
        steps = clean / factor * 32_768
        starts.append(round(float(steps[0])) - 1)
        np.testing.assert_allclose(steps, starts[-1] + np.arange(1, SEGMENT + 1), rtol=1e-5)
    assert 0 <= min(starts) < 20
    assert 480 < max(starts) <= 500


def test_a_short_utterance_is_followed_by_zeros(tmp_path: Path) -> None:
    pairs = save_pairs(tmp_path, [(np.full(600, 0.25), np.full(600, 0.5))])
    clean, noisy = PairedDataset(pairs, AudioCache(RATE, True), DATA, 0).crop(3, 0)
    assert clean.tolist() == [0.5] * 600 + [0] * 400  # 0.5 becomes 1: the zeros do not count for the level
    assert noisy.tolist() == [1.0] * 600 + [0] * 400


def test_silence_stays_silent(tmp_path: Path) -> None:
    pairs = save_pairs(tmp_path, [(np.full(1200, 0.25), np.zeros(1200))])
    clean, noisy = PairedDataset(pairs, AudioCache(RATE, True), DATA, 0).crop(0, 0)
    assert np.array_equal(clean, np.full(SEGMENT, 0.25))
    assert not noisy.any()


def test_a_crop_follows_from_seed_epoch_and_index(utterances: list[Utterance]) -> None:
    def crop(keep: bool, seed: int, epoch: int, index: int) -> Crop:
        return PairedDataset(utterances, AudioCache(RATE, keep), DATA, seed).crop(epoch, index)

    expected = crop(True, 1, 2, 0)
    assert np.array_equal(crop(False, 1, 2, 0), expected)
    assert not np.array_equal(crop(True, 2, 2, 0), expected)
    assert not np.array_equal(crop(True, 1, 3, 0), expected)
    source = PairedDataset([utterances[0], utterances[0]], AudioCache(RATE, True), DATA, 1)
    assert not np.array_equal(source.crop(2, 1), expected)
    assert np.array_equal(source.crop(2, 0), expected)  # whatever was asked for before


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_threads_and_ranks(utterances: list[Utterance], workers: int) -> None:
    source = PairedDataset(utterances, AudioCache(RATE, True), DATA, 1)
    expected = batches(source)
    assert len(expected) == 1
    assert expected[0].clean.shape == expected[0].noisy.shape == (6, SEGMENT)
    for number, index in enumerate(expected[0].indices):
        assert np.array_equal(expected[0].noisy[number], source.crop(0, index).noisy)
    assert same(batches(source, workers=workers), expected)
    ranks = [batches(Counting(), 2, rank=rank, ranks=2, workers=workers) for rank in range(2)]
    joined = [
        Batch(*(np.concatenate([getattr(a, name), getattr(b, name)]) for name in ("indices", "clean", "noisy")))
        for a, b in zip(*ranks, strict=True)
    ]
    assert same(joined, batches(Counting(), 2))


def test_an_epoch_takes_every_crop_once_in_an_order_of_its_own() -> None:
    indices = [np.concatenate([batch.indices for batch in batches(Counting(), epoch)]).tolist() for epoch in range(3)]
    assert steps_per_epoch(20, 6) == 3
    for epoch, taken in enumerate(indices):
        assert len(set(taken)) == len(taken) == 18
        order = epoch_order(7, epoch, 20).tolist()
        assert sorted(order) == list(range(20))
        assert taken == order[:18]
    assert indices[0] != indices[1] != indices[2]
    assert epoch_order(8, 0, 20).tolist() != epoch_order(7, 0, 20).tolist()


def test_a_batch_holds_the_crops_that_it_names() -> None:
    for batch in batches(Counting(), 5):
        assert np.array_equal(batch.clean, np.repeat(batch.indices[:, None], 3, axis=1))


def test_a_resumed_epoch_is_the_rest_of_the_whole_one() -> None:
    whole = batches(Counting(), 4)
    source = Counting()
    assert same(batches(source, 4, first_step=1), whole[1:])
    assert len(source.asked) == 12
    assert batches(Counting(), 4, first_step=3) == []


def test_crops_are_built_a_few_batches_ahead_and_threads_end_with_the_reader() -> None:
    source, before = Counting(), threading.active_count()
    stream = load_batches(source, 0, 0, 0, batch_size=1, rank=0, ranks=1, workers=2)
    next(stream)
    time.sleep(0.05)  # for twenty crops that take no time
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
    assert len(source.asked) == 5  # what was taken, two batches ahead, and one for each thread


def test_what_a_crop_raises_reaches_the_reader() -> None:
    before = threading.active_count()
    order = epoch_order(0, 0, 20)
    stream = load_batches(Counting(bad=int(order[2])), 0, 0, 0, batch_size=2, rank=0, ranks=1, workers=2)
    assert np.array_equal(next(stream).indices, order[:2])
    with pytest.raises(AudioError, match="is broken"):
        next(stream)
    assert threading.active_count() == before


def test_examples_are_whole_recordings_at_their_own_level(utterances: list[Utterance]) -> None:
    examples = PairedUtterances(utterances, AudioCache(RATE, True))
    assert [example.id for example in examples] == [f"u{number:02d}" for number in range(7)]
    assert np.array_equal(examples[0].clean, QUANTISED[:1500].astype(np.float32))
    assert len(examples) == 7
    assert examples[0].noisy.dtype == np.float32


def test_good_pairs_are_accepted(utterances: list[Utterance]) -> None:
    check_pairs(utterances)
    check_sound(utterances, AudioCache(RATE, False))


def test_missing_files_are_counted_and_ten_are_shown(tmp_path: Path, utterances: list[Utterance]) -> None:
    gone = [Utterance(f"g{i}", tmp_path / f"gone{i}.wav", utterances[0].noisy) for i in range(12)]
    with pytest.raises(UserError) as caught:
        check_pairs(utterances + gone)
    summary, *shown = str(caught.value).splitlines()
    assert summary == "12 of 26 files are missing:"  # seven pairs and the twelve
    assert [line.strip() for line in shown] == [str(utterance.clean) for utterance in gone[:10]]


def test_pairs_that_do_not_fit_are_counted_and_ten_are_shown(utterances: list[Utterance]) -> None:
    save(utterances[1].noisy, NOISE[:1599])
    save(utterances[3].noisy, NOISE[:1800], rate=8000)
    utterances[4].clean.write_text("Dear diary", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        check_pairs(utterances)
    summary, *shown = str(caught.value).splitlines()
    assert summary == "3 of 7 pairs cannot be used:"
    assert [line.strip() for line in shown[:2]] == [
        "u01: clean and noisy differ in length: 1600 and 1599 samples",
        "u03: clean and noisy differ in rate: 16000 and 8000 Hz",
    ]
    assert "c04.wav: not an audio file that can be decoded" in shown[2]
    with pytest.raises(UserError, match=r"^12 of 13 pairs cannot be used:(\n  u01: .*){10}$"):
        check_pairs([*[utterances[1]] * 12, utterances[0]])


def test_no_sound_at_all_is_refused(tmp_path: Path) -> None:
    silent = (np.zeros(50), np.full(50, 0.5))
    pairs = save_pairs(tmp_path, [silent, silent])
    with pytest.raises(UserError, match=r"^every crop is silent: the 2 clean files .*$"):
        check_sound(pairs, AudioCache(RATE, True))
    save(pairs[0].clean, np.full(50, 1 / 32_768))
    pairs[1].clean.unlink()
    check_sound(pairs, AudioCache(RATE, True))  # the first is enough


def test_a_pair_that_turns_out_different_is_refused(utterances: list[Utterance]) -> None:
    odd = [Utterance("odd", utterances[0].clean, utterances[5].noisy)]
    recordings = AudioCache(RATE, True)
    for read in (
        lambda: PairedDataset(odd, recordings, DATA, 0).crop(0, 0),
        lambda: PairedUtterances(odd, recordings)[0],
    ):
        with pytest.raises(AudioError, match=r"^odd: clean and noisy differ in length: 1500 and \d+ samples$"):
            read()
