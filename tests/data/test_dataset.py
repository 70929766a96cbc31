"""AudioCache, crops of paired recordings, batches, and checks of the pairs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import data.dataset
from cli import UserError
from config import DataConfig
from data.audio import AudioError, read_audio
from data.dataset import (
    AudioCache,
    Batch,
    Crop,
    CropDataset,
    PairedDataset,
    PairedUtterances,
    Sound,
    check_pairs,
    epoch_order,
    load_batches,
    split_long,
    steps_per_epoch,
)
from data.file_lists import Utterance
from tests.fixtures.recordings import NOISE, QUANTISED, RATE, save

SEGMENT = 1000
DATA = DataConfig(RATE, SEGMENT)
ALL_STEPS = np.arange(-32_768, 32_768, dtype=np.float32) / 32_768  # of 16 bits


@pytest.mark.parametrize("keep", [True, False])
def test_the_cache_is_exact_in_16_bits(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "steps.wav"
    save(path, ALL_STEPS)
    cache = AudioCache(RATE, keep)
    for _ in range(2):  # the second time from memory
        samples = cache.samples(path)
        assert samples.dtype == np.float32
        assert np.array_equal(samples, ALL_STEPS)
    assert cache.bytes_kept == (2 * 65_536 if keep else 0)


def test_the_cache_averages_channels_and_clips(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", np.array([[0.5, -0.25], [4, 2], [-4, -2], [0.75, -0.75]]), subtype="FLOAT")
    assert AudioCache(RATE, True).samples(tmp_path / "a.wav").tolist() == [0.125, 32_767 / 32_768, -1, 0]


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("rate", [RATE, 8000])
def test_parts_of_a_long_file_are_its_samples(tmp_path: Path, container: str, rate: int) -> None:
    path = tmp_path / f"long.{container.lower()}"
    samples = 0.1 * np.random.default_rng(0).standard_normal((90 * rate + 1, 2))
    with soundfile.SoundFile(path, "w", rate, 2, format=container) as file:
        for block in np.array_split(samples, 90):  # libsndfile cannot write much Vorbis at once
            file.write(block)
    save(tmp_path / "short.wav", np.zeros(40 * RATE))
    parts, short = split_long([path, tmp_path / "short.wav"])
    assert short == [Sound(tmp_path / "short.wav")]
    assert parts == [
        Sound(path, 0, 30 * rate),
        Sound(path, 30 * rate, 30 * rate),
        Sound(path, 60 * rate, 30 * rate + 1),
    ]
    cache = AudioCache(RATE, False)
    whole, joined = cache.samples(path), np.concatenate([cache.samples(part) for part in parts])
    assert len(whole) == pytest.approx(90 * RATE, abs=3)
    assert len(joined) == pytest.approx(len(whole), abs=1)
    inside = np.arange(len(whole)) % (30 * RATE)
    inside = (inside > 1000) & (inside < 30 * RATE - 1000)  # resampling differs at the ends of the parts
    np.testing.assert_allclose(joined[: len(whole)][inside], whole[inside], atol=2**-14)


def test_part_of_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(130 * RATE), RATE)
    (parts,) = split_long([path])
    path.write_bytes(path.read_bytes()[:-1_000_000])
    cache = AudioCache(RATE, False)
    assert len(cache.samples(parts[0])) == parts[0].frames
    with pytest.raises(AudioError, match=r"long.flac: (broken or )?cut short"):
        cache.samples(parts[-1])


def test_files_that_cannot_be_read_are_one_part(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    paths = [tmp_path / "a.wav", tmp_path / "none.wav"]
    assert split_long(paths) == [[Sound(path)] for path in paths]


def test_load_decodes_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.wav" for index in range(5)]
    for index, path in enumerate(paths):
        save(path, ALL_STEPS[1000 * index :][:100])
    decoded: list[Path] = []

    def spy(path: Path, rate: int) -> object:
        decoded.append(path)
        return read_audio(path, rate)

    monkeypatch.setattr(data.dataset, "read_audio", spy)
    AudioCache(RATE, False).load(paths, workers=3, quiet=True)
    assert decoded == []
    cache = AudioCache(RATE, True)
    cache.load(paths + paths, workers=3, quiet=True)
    assert sorted(decoded) == paths
    assert cache.bytes_kept == 5 * 200
    for index, path in enumerate(paths):
        path.unlink()
        assert np.array_equal(cache.samples(path), ALL_STEPS[1000 * index :][:100])


def test_load_stops_when_the_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{index}.wav" for index in range(9)]
    for index, path in enumerate(paths):
        save(path, ALL_STEPS[1000 * index :][:100])
    monkeypatch.setattr(data.dataset, "memory_for_audio", lambda: 850)  # four recordings of 200 bytes
    cache = AudioCache(RATE, True)
    cache.load(paths, workers=1, quiet=True)
    assert cache.bytes_kept == 800
    assert "4 of 9" in capsys.readouterr().err
    for index, path in enumerate(paths):
        assert np.array_equal(cache.samples(path), ALL_STEPS[1000 * index :][:100])
    assert cache.bytes_kept == 800
    monkeypatch.setattr(data.dataset, "memory_for_audio", lambda: 1800)
    AudioCache(RATE, True).load(paths, workers=1, quiet=True)
    assert capsys.readouterr().err == ""


def test_memory_for_audio_is_half_of_what_the_container_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(data.dataset, "CONTAINER_LIMIT", limit)
    machine = data.dataset.memory_for_audio()
    assert machine > 10_000_000
    for content, expected in (("max\n", machine), ("2000\n", 1000), (f"{10**18}\n", machine)):
        limit.write_text(content)
        assert data.dataset.memory_for_audio() == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    limit.write_text("2000")
    assert data.dataset.memory_for_audio() == 250


def save_pairs(folder: Path, signals: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Utterance]:
    """Write clean and noisy signals `[N]` as 16-bit files."""
    utterances: list[Utterance] = []
    for index, pair in enumerate(signals):
        utterances.append(Utterance(f"u{index}", folder / f"c{index}.wav", folder / f"n{index}.wav"))
        save(utterances[-1].clean, pair[0])
        save(utterances[-1].noisy, pair[1])
    return utterances


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Seven pairs of different lengths, the last shorter than a segment."""
    lengths = (1500, 1600, 1700, 1800, 1900, 2000, 600)
    return save_pairs(tmp_path, [(QUANTISED[:length], NOISE[:length, 0]) for length in lengths])


@pytest.mark.parametrize(
    ("noisy", "normalize", "gain"),
    [
        ([0.5, 0.5, -0.5, 0.25], True, np.sqrt(64 / 13)),  # mean power (3 · 0.5² + 0.25²) / 4 = 13/64
        ([0.5, 0.5, -0.5, 0.25], False, 1),
        ([0, 0, 0, 0], True, 1),
    ],
)
def test_the_gain_follows_from_the_noisy_utterance(
    tmp_path: Path, noisy: list[float], normalize: bool, gain: float
) -> None:
    pairs = save_pairs(tmp_path, [(np.full(2000, 0.125), np.tile(noisy, 500))])
    crop = PairedDataset(pairs, AudioCache(RATE, True), replace(DATA, normalize_level=normalize), 0).crop(0, 0)
    assert crop.clean.dtype == crop.noisy.dtype == np.float32
    np.testing.assert_allclose(crop.clean, np.full(SEGMENT, 0.125 * gain), rtol=1e-6)
    assert set(np.round(crop.noisy / gain, 6).tolist()) == set(noisy)


def test_a_crop_is_the_same_segment_of_both_recordings(tmp_path: Path) -> None:
    ramp = np.arange(1, 1501) / 32_768
    pairs = save_pairs(tmp_path, [(ramp, 2 * ramp)])
    source = PairedDataset(pairs, AudioCache(RATE, True), DATA, 0)
    gain = 1 / np.sqrt(np.mean((2 * ramp) ** 2))
    starts: list[int] = []
    for epoch in range(300):
        clean, noisy, _ = source.crop(epoch, 0)
        np.testing.assert_allclose(noisy, 2 * clean, rtol=1e-6)
        steps = clean / gain * 32_768
        starts.append(round(float(steps[0])) - 1)
        np.testing.assert_allclose(steps, starts[-1] + np.arange(1, SEGMENT + 1), rtol=1e-5)
    assert 0 <= min(starts) < 20
    assert 480 < max(starts) <= 500


def test_a_short_utterance_is_padded(tmp_path: Path) -> None:
    pairs = save_pairs(tmp_path, [(np.full(600, 0.25), np.full(600, 0.5))])
    clean, noisy, _ = PairedDataset(pairs, AudioCache(RATE, True), DATA, 0).crop(3, 0)
    assert clean.tolist() == [0.5] * 600 + [0] * 400  # the padding does not count for the gain of 2
    assert noisy.tolist() == [1.0] * 600 + [0] * 400


def test_a_crop_follows_from_seed_epoch_and_index(utterances: list[Utterance]) -> None:
    def crop(keep: bool, seed: int, epoch: int, index: int) -> tuple[np.ndarray, ...]:
        return PairedDataset(utterances, AudioCache(RATE, keep), DATA, seed).crop(epoch, index)[:2]

    expected = crop(True, 1, 2, 0)
    assert np.array_equal(crop(False, 1, 2, 0), expected)
    assert not np.array_equal(crop(True, 2, 2, 0), expected)
    assert not np.array_equal(crop(True, 1, 3, 0), expected)
    source = PairedDataset([utterances[0], utterances[0]], AudioCache(RATE, True), DATA, 1)
    assert not np.array_equal(source.crop(2, 1)[:2], expected)
    assert np.array_equal(source.crop(2, 0)[:2], expected)  # independent of earlier crops


class FakeCrops:
    """Twenty crops that record their indices; crop `bad` raises."""

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
    return list(
        load_batches(source, 7, epoch, first_step, batch_size=6 // ranks, rank=rank, ranks=ranks, workers=workers)
    )


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a.indices, b.indices) and np.array_equal(a.clean, b.clean) and np.array_equal(a.noisy, b.noisy)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_threads_and_ranks(utterances: list[Utterance], workers: int) -> None:
    source = PairedDataset(utterances, AudioCache(RATE, True), DATA, 1)
    expected = batches(source)
    assert len(expected) == 1
    assert expected[0].clean.shape == expected[0].noisy.shape == (6, SEGMENT)
    for number, index in enumerate(expected[0].indices):
        assert np.array_equal(expected[0].noisy[number], source.crop(0, index).noisy)
    assert same(batches(source, workers=workers), expected)
    ranks = [batches(FakeCrops(), 2, rank=rank, ranks=2, workers=workers) for rank in range(2)]
    joined = [
        Batch(*(np.concatenate([getattr(a, name), getattr(b, name)]) for name in ("indices", "clean", "noisy", "dry")))
        for a, b in zip(*ranks, strict=True)
    ]
    assert same(joined, batches(FakeCrops(), 2))


def test_every_epoch_has_its_own_order() -> None:
    assert steps_per_epoch(20, 6) == 3
    orders = [epoch_order(7, epoch, 20).tolist() for epoch in range(3)]
    for epoch, order in enumerate(orders):
        assert sorted(order) == list(range(20))
        taken = batches(FakeCrops(), epoch)
        assert np.concatenate([batch.indices for batch in taken]).tolist() == order[:18]
        assert all(np.array_equal(batch.clean, np.repeat(batch.indices[:, None], 3, axis=1)) for batch in taken)
    assert orders[0] != orders[1] != orders[2]
    assert epoch_order(8, 0, 20).tolist() != orders[0]


def test_a_resumed_epoch_is_the_rest_of_the_whole_one() -> None:
    whole = batches(FakeCrops(), 4)
    source = FakeCrops()
    assert same(batches(source, 4, first_step=1), whole[1:])
    assert len(source.asked) == 12
    assert batches(FakeCrops(), 4, first_step=3) == []


def test_crops_are_prefetched_and_threads_end_with_the_generator() -> None:
    source, before = FakeCrops(), threading.active_count()
    stream = load_batches(source, 0, 0, 0, batch_size=1, rank=0, ranks=1, workers=2)
    next(stream)
    time.sleep(0.05)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
    assert len(source.asked) == 5  # the first batch, two ahead, and one per thread


def test_exceptions_of_a_crop_reach_the_caller() -> None:
    before = threading.active_count()
    order = epoch_order(0, 0, 20)
    stream = load_batches(FakeCrops(bad=int(order[2])), 0, 0, 0, batch_size=2, rank=0, ranks=1, workers=2)
    assert np.array_equal(next(stream).indices, order[:2])
    with pytest.raises(AudioError, match="is broken"):
        next(stream)
    assert threading.active_count() == before


def test_utterances_are_whole_recordings_at_their_own_level(utterances: list[Utterance]) -> None:
    pairs = PairedUtterances(utterances, AudioCache(RATE, True))
    assert [pair.id for pair in pairs] == [f"u{number}" for number in range(7)]
    assert np.array_equal(pairs[0].clean, QUANTISED[:1500].astype(np.float32))


def test_unusable_pairs_are_counted_and_ten_named(utterances: list[Utterance]) -> None:
    save(utterances[1].noisy, NOISE[:1599])
    save(utterances[3].noisy, NOISE[:1800], rate=8000)
    utterances[4].clean.write_text("Dear diary", encoding="utf-8")
    message = r"3 of 7 pairs .*\n  u1: .* length: 1600 and 1599 .*\n  u3: .* rate: 16000 and 8000 .*\n  \S+c4.wav: "
    with pytest.raises(UserError, match=message):
        check_pairs(utterances)
    with pytest.raises(UserError, match=r"^12 of 13 pairs .*:(\n  u1: .*){10}$"):
        check_pairs([*[utterances[1]] * 12, utterances[0]])


def test_a_pair_whose_header_was_wrong_is_rejected(utterances: list[Utterance]) -> None:
    odd = [Utterance("odd", utterances[0].clean, utterances[5].noisy)]
    with pytest.raises(AudioError, match=r"odd: .* length: 1500 and 2000"):
        PairedDataset(odd, AudioCache(RATE, True), DATA, 0).crop(0, 0)
