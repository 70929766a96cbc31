"""What is trained on and what selects: files that can be told apart by their samples, so that a leak is heard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config import Config, DataConfig, MixConfig
from data.dataset import AudioCache, Crop, CropDataset, EvalPair
from data.file_lists import Utterance
from tests.fixtures.recordings import RATE, save
from training.data import Data, read_mixes, read_pairs

SEGMENT = 1600
# Two that are held out, wherever they stand among others.
SPEAKERS = ["p225", "p226", "p227", "p287", "p300"]
MIX = MixConfig(snr_low=0, snr_high=0, gain_low=0, gain_high=0, reverb_share=0, validation_mixes=30)


@pytest.fixture
def plain_config(config: Config) -> Config:
    """Crops at the level of their recordings."""
    return replace(config, data=DataConfig(RATE, SEGMENT, normalize_level=False))


def constant(number: int) -> np.ndarray:
    """A recording that says its number: all its samples are number / 64."""
    return np.full(2000, number / 64)


def numbers(signals: Iterable[np.ndarray]) -> set[float]:
    """Those that recordings, or crops of them, say."""
    return {value for signal in signals for value in np.unique(64 * signal).tolist()}


def crops(source: CropDataset, epochs: int = 1) -> list[Crop]:
    return [source.crop(epoch, index) for epoch in range(epochs) for index in range(len(source))]


def save_pairs(folder: Path) -> list[Utterance]:
    """Of the speaker in place k, from 1 on, k / 64 is the clean sample and 10 k / 64 that with noise."""
    pairs: list[Utterance] = []
    for number, speaker in enumerate(SPEAKERS, start=1):
        pair = Utterance(f"{speaker}_001", folder / f"clean/{speaker}.wav", folder / f"noisy/{speaker}.wav")
        save(pair.clean, constant(number))
        save(pair.noisy, constant(10 * number))
        pairs.append(pair)
    return pairs


def read(pairs: list[Utterance], selected_on: list[Utterance] | None, config: Config) -> Data:
    return read_pairs(pairs, selected_on, config, AudioCache(RATE, True), workers=1, quiet=True)


def test_no_pair_of_a_held_out_speaker_is_trained_on(tmp_path: Path, plain_config: Config) -> None:
    found = read(save_pairs(tmp_path), None, plain_config)
    assert numbers(crop.clean for crop in crops(found.source)) == {1, 3, 5}
    assert numbers(crop.noisy for crop in crops(found.source)) == {10, 30, 50}
    assert [example.id for example in found.held_out] == ["p226_001", "p287_001"]
    assert numbers(example.clean for example in found.held_out) == {2, 4}
    assert numbers(example.noisy for example in found.held_out) == {20, 40}
    assert found.summary == "3 pairs to train on, 2 held out to select by"


def test_a_list_to_select_on_leaves_all_pairs_to_train_on(tmp_path: Path, plain_config: Config) -> None:
    pairs = save_pairs(tmp_path)
    found = read(pairs[:4], pairs[4:], plain_config)
    assert numbers(crop.clean for crop in crops(found.source)) == {1, 2, 3, 4}
    assert [example.id for example in found.held_out] == ["p300_001"]


def test_the_fingerprint_is_that_of_what_is_trained_on(tmp_path: Path, plain_config: Config) -> None:
    pairs = save_pairs(tmp_path)
    prints = [read(some, None, plain_config).fingerprint for some in (pairs, pairs[:4], pairs)]
    assert prints[0] == prints[2] != prints[1]
    # Without the held-out speakers in the list, the same three are trained on.
    kept = [pairs[index] for index in (0, 2, 4)]
    assert read(kept, pairs[1:2], plain_config).fingerprint == prints[0]


def tones(mixes: Iterable[Crop | EvalPair]) -> set[int]:
    """The frequencies in Hz of the noises that are in mixes with a constant."""
    found: set[int] = set()
    for mix in mixes:
        spectrum = np.abs(np.fft.rfft((mix.noisy - mix.clean)[:SEGMENT]))
        found.add(int(spectrum.argmax()) * RATE // SEGMENT)
    return found


def test_no_speech_and_no_noise_that_is_held_out_is_in_the_mixes(tmp_path: Path, plain_config: Config) -> None:
    for number, speaker in enumerate(SPEAKERS, start=1):
        save(tmp_path / f"speech/{speaker}_001.wav", constant(number))
    frequencies = {1000, 2000, 3000}
    for hertz in frequencies:
        save(tmp_path / f"noise/{hertz}.wav", np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE) / 2)
    folders = tmp_path / "speech", tmp_path / "noise"
    found = read_mixes(*folders, replace(plain_config, mix=MIX), AudioCache(RATE, True), workers=1, quiet=True)
    # Three files in twenty epochs draw either of two noises, thirty mixes the only one.
    learnt, judged = crops(found.source, epochs=20), list(found.held_out)
    assert numbers(crop.clean for crop in learnt) == {1, 3, 5}
    assert numbers(example.clean for example in judged) == {2, 4}
    assert (len(tones(learnt)), len(tones(judged))) == (2, 1)
    assert tones(learnt) | tones(judged) == frequencies
    assert found.summary == "3 speech and 2 noise files to train on, 2 and 1 held out to select by"
