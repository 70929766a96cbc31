"""Training and held-out data. Files can be told apart by their samples, so a leak would show."""

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
# The second and the fourth are held out.
SPEAKERS = ["p225", "p226", "p227", "p287", "p300"]
MIX = MixConfig(snr_low=0, snr_high=0, gain_low=0, gain_high=0, reverb_share=0, validation_mixes=30)


@pytest.fixture
def plain_config(config: Config) -> Config:
    """A configuration without level normalization."""
    return replace(config, data=DataConfig(RATE, SEGMENT, normalize_level=False))


def constant(number: int) -> np.ndarray:
    """A recording with all samples number / 64."""
    return np.full(2000, number / 64)


def numbers(signals: Iterable[np.ndarray]) -> set[float]:
    """The numbers of recordings or crops made by `constant`."""
    return {value for signal in signals for value in np.unique(64 * signal).tolist()}


def crops(source: CropDataset, epochs: int = 1) -> list[Crop]:
    return [source.crop(epoch, index) for epoch in range(epochs) for index in range(len(source))]


def save_pairs(folder: Path) -> list[Utterance]:
    """Speaker k, from 1 on, has clean samples k / 64 and noisy samples 10 k / 64."""
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
    assert numbers(crop.clean for crop in crops(found.crops)) == {1, 3, 5}
    assert numbers(crop.noisy for crop in crops(found.crops)) == {10, 30, 50}
    assert [example.id for example in found.validation] == ["p226_001", "p287_001"]
    assert numbers(example.clean for example in found.validation) == {2, 4}
    assert numbers(example.noisy for example in found.validation) == {20, 40}
    assert found.summary == "training on 3 pairs, selecting on 2 held out"


def test_with_a_list_to_select_on_all_pairs_are_trained_on(tmp_path: Path, plain_config: Config) -> None:
    pairs = save_pairs(tmp_path)
    found = read(pairs[:4], pairs[4:], plain_config)
    assert numbers(crop.clean for crop in crops(found.crops)) == {1, 2, 3, 4}
    assert [example.id for example in found.validation] == ["p300_001"]


def test_fingerprint_depends_on_the_listed_files(tmp_path: Path, plain_config: Config) -> None:
    pairs = save_pairs(tmp_path)
    prints = [read(some, None, plain_config).fingerprint for some in (pairs, pairs[:4], pairs)]
    assert prints[0] == prints[2] != prints[1]
    # A list without the held-out speakers has the same three to train on.
    kept = [pairs[index] for index in (0, 2, 4)]
    prints += [read(kept, pairs[start : start + 1], plain_config).fingerprint for start in (1, 3)]
    assert len(set(prints)) == 4


def tones(mixes: Iterable[Crop | EvalPair]) -> set[int]:
    """The frequencies in Hz of the noises in mixes with a constant."""
    found: set[int] = set()
    for mix in mixes:
        spectrum = np.abs(np.fft.rfft((mix.noisy - mix.clean)[:SEGMENT]))
        found.add(int(spectrum.argmax()) * RATE // SEGMENT)
    return found


def test_no_held_out_speech_or_noise_is_trained_on(tmp_path: Path, plain_config: Config) -> None:
    for number, speaker in enumerate(SPEAKERS, start=1):
        save(tmp_path / f"speech/{speaker}_001.wav", constant(number))
    frequencies = {1000, 2000, 3000}
    for hertz in frequencies:
        save(tmp_path / f"noise/{hertz}.wav", np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE) / 2)
    folders = tmp_path / "speech", tmp_path / "noise"
    found = read_mixes(*folders, None, replace(plain_config, mix=MIX), AudioCache(RATE, True), workers=1, quiet=True)
    # Twenty epochs of three files draw both training noises; thirty mixes have the only held-out one.
    training, held_out = crops(found.crops, epochs=20), list(found.validation)
    assert numbers(crop.clean for crop in training) == {1, 3, 5}
    assert numbers(example.clean for example in held_out) == {2, 4}
    assert (len(tones(training)), len(tones(held_out))) == (2, 1)
    assert tones(training) | tones(held_out) == frequencies
    assert found.summary == "training on 3 speech and 2 noise files, selecting on 2 and 1 held out"
