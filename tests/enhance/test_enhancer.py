"""`Enhancer`: level, windows, channels, batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config
from enhance.enhancer import Enhancer
from models import build
from models.stft import Spectra
from tests.fixtures.networks import one_pass, random_network
from tests.fixtures.signals import speech_like, with_noise
from tests.reference.imse import plain_paper_protocol


def fade_in(mag: Tensor) -> Tensor:
    """A stand-in for a network whose output depends on where its window begins."""
    return mag * torch.linspace(0.5, 1, mag.shape[-1])


class FadeIn(nn.Module):
    def forward(self, spectra: Spectra) -> Spectra:
        return spectra._replace(mag=fade_in(spectra.mag))


class ReleasedFadeIn(nn.Module):
    def forward(self, mag: Tensor, pha: Tensor) -> tuple[Tensor, Tensor]:
        return fade_in(mag), pha


@pytest.mark.parametrize("samples", [9_000, 40_000, 61_400])
def test_paper_protocol_equals_the_released_one(config: Config, samples: int) -> None:
    noisy = speech_like(4, seed=1)[:samples].astype(np.float32)
    released: Any = ReleasedFadeIn()
    expected = plain_paper_protocol(released, torch.from_numpy(noisy)).numpy()
    enhanced = Enhancer(FadeIn(), config).enhance_signal(noisy, "paper")
    assert np.abs(enhanced - expected).max() < 1e-4


def test_level_does_not_matter(quick_config: Config) -> None:
    torch.manual_seed(0)
    enhancer = Enhancer(build(quick_config).eval(), quick_config)
    assert enhancer.level_gain(1 / 16) == 4
    assert enhancer.level_gain(0) == 1
    noisy = speech_like(1, seed=1)
    quiet, loud = enhancer.enhance_signal(noisy / 64), enhancer.enhance_signal(noisy)
    assert np.abs(loud).max() > 0.01
    np.testing.assert_allclose(64 * quiet, loud, rtol=0, atol=1e-5)
    assert not enhancer.enhance_signal(np.zeros(9_000)).any()
    for samples in (0, 1):
        enhanced = enhancer.enhance_signal(noisy[:samples])
        assert (enhanced.dtype, enhanced.shape) == (np.float32, (samples,))


class Recording(nn.Module):
    """Changes nothing; records (batch size, frames) of each pass and lacks memory for more than given."""

    def __init__(self, rows: int = 1000, frames: int = 1000) -> None:
        super().__init__()
        self.rows, self.frames = rows, frames
        self.passes: list[tuple[int, int]] = []

    def forward(self, spectra: Spectra) -> Spectra:
        rows, _, frames = spectra.mag.shape
        if rows > self.rows or frames > self.frames:
            raise torch.OutOfMemoryError("needs 100 GB")
        self.passes.append((rows, frames))
        return spectra


def test_windows_of_one_length_share_a_pass(config: Config) -> None:
    random = np.random.default_rng(0)
    windows = [random.standard_normal(shape).astype(np.float32) for shape in ((4000, 2), (900, 1), (4000, 3), (900, 1))]
    network = Recording()
    enhanced = Enhancer(network, config, batch_size=3).enhance_windows(windows)
    # 900 samples are 10 frames, 4000 are 41; five channels of 4000 samples need two passes.
    assert network.passes == [(2, 10), (3, 41), (2, 41)]
    for before, after in zip(windows, enhanced, strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


def test_recordings_keep_type_shape_and_rate(config: Config) -> None:
    enhancer = Enhancer(FadeIn(), config)
    mono = speech_like(1, seed=1)
    expected = enhancer.enhance_signal(mono)
    assert np.abs(expected - mono).max() > 0.01
    stereo = np.stack([mono, mono[::-1]])
    enhanced = enhancer(stereo.astype(np.float32), 16_000)
    assert (enhanced.dtype, enhanced.shape) == (np.float32, stereo.shape)
    np.testing.assert_allclose(enhanced[0], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(enhanced[1], enhancer.enhance_signal(mono[::-1]), rtol=0, atol=1e-6)

    tensor = torch.from_numpy(mono)
    assert torch.equal(enhancer(tensor, 16_000), torch.from_numpy(enhancer(mono, 16_000)))
    shorter, whole = enhancer([tensor[:5000], tensor], 16_000)  # in one batch
    assert shorter.shape == (5000,)
    torch.testing.assert_close(whole, torch.from_numpy(expected).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_other_rates(identity: Enhancer, rate: int) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    enhanced = identity(tone, rate)
    assert enhanced.shape == tone.shape
    inner = slice(rate // 20, -rate // 20)
    assert np.abs(enhanced - tone)[inner].max() < 1e-3
    for samples in (0, 1):
        assert identity(tone[:samples], rate).shape == (samples,)


def test_bfloat16(identity: Enhancer) -> None:
    wav = torch.from_numpy(speech_like(0.5)).bfloat16()
    enhanced = identity(wav, 16_000)
    assert enhanced.dtype == torch.bfloat16
    torch.testing.assert_close(enhanced, wav, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    "wav", [np.zeros((1, 1, 5)), np.array([0.0, np.nan]), np.zeros(5, np.int16)], ids=["shape", "NaN", "integers"]
)
def test_unusable_recordings(identity: Enhancer, wav: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected finite floats"):
        identity(wav, 16_000)


def test_live_networks_are_not_restarted_between_windows(config: Config) -> None:
    network, live_config = random_network("lite_rtse")
    enhancer = Enhancer(network, live_config)
    noisy = with_noise(speech_like(3), 5).astype(np.float32)
    np.testing.assert_allclose(enhancer(noisy, 16_000), one_pass(network, live_config, noisy), rtol=0, atol=1e-5)
    levelled = replace(live_config, data=replace(live_config.data, normalize_level=True))
    assert [Enhancer(network, each).default_protocol for each in (levelled, live_config)] == ["overlap", "whole"]
    assert Enhancer(nn.Identity(), config).default_protocol == "overlap"


def test_transposed_recordings(identity: Enhancer) -> None:
    with pytest.raises(ValueError, match="transpose"):
        identity(np.zeros((160, 2)), 16_000)
    assert identity(np.zeros((8, 1)), 16_000).shape == (8, 1)
