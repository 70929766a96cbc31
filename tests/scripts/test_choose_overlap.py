"""The comparison of windows: what it mixes and how it pads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from config import Config
from data.audio import AudioFormat, write_audio
from models.enhancer import Enhancer
from scripts.choose_overlap import PADDINGS, SNRS_DB, enhance_padded, mixtures
from tests.fixtures.signals import speech_like


@pytest.fixture
def recordings(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    lengths = {"short": 1.2, "long": 2.5, "longer": 3.0, "noise": 0.7}
    for seed, (name, seconds) in enumerate(lengths.items()):
        write_audio(tmp_path / f"{name}.flac", speech_like(seconds, seed=seed)[:, None], AudioFormat(16_000, 1, "FLAC"))
    return [tmp_path / f"{name}.flac" for name in ("short", "long", "longer")], [tmp_path / "noise.flac"]


def test_mixtures_have_the_length_and_the_noise_they_should(recordings: tuple[list[Path], list[Path]]) -> None:
    pairs = mixtures(*recordings, shortest=20_000, longest=100_000, count=5, rate=16_000)
    assert sorted(len(clean) for clean, _ in pairs) == [40_000, 48_000]
    for (clean, noisy), snr in zip(pairs, SNRS_DB, strict=False):
        assert clean.shape == noisy.shape
        ratio = np.mean(clean.astype(float) ** 2) / np.mean((noisy.astype(float) - clean) ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(snr, abs=0.01)


@pytest.mark.parametrize("how", PADDINGS)
def test_padding_is_taken_off_again(config: Config, how: str) -> None:
    noisy = speech_like(1.3).astype(np.float32)[:, None]
    out = enhance_padded(Enhancer(nn.Identity(), config), noisy, how)
    assert np.abs(out - noisy).max() < 1e-4
