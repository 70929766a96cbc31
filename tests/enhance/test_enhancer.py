"""Applying a network to sound: level, windows, channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from config import Config
from enhance.enhancer import Enhancer, LevelMeter
from enhance.windows import PROTOCOLS
from models import build
from models.published import translate_published
from tests.fixtures.signals import speech_like
from tests.reference.imse import ReferenceIMSE, plain_paper_protocol


def enhance(enhancer: Enhancer, signal: np.ndarray, protocol: str) -> np.ndarray:
    level = LevelMeter().measure([signal])
    return np.concatenate(list(enhancer.enhance(iter(np.array_split(signal, 7)), level, protocol)))


def test_the_level_is_that_of_the_whole_signal() -> None:
    signal = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    meter = LevelMeter().measure([signal[:1], signal[1:]])
    assert meter.samples == 4
    assert np.allclose(meter.factors(), [np.sqrt(4 / 25), 1])  # the second channel is silent


@pytest.mark.parametrize("samples", [9_000, 30_700, 40_000, 61_400])
def test_the_paper_protocol_is_the_plain_one(config: Config, samples: int) -> None:
    torch.manual_seed(0)
    plain = ReferenceIMSE().eval()
    network = build(config).eval()
    network.load_state_dict(translate_published(plain.state_dict()))
    noisy = speech_like(4, seed=1)[:samples].astype(np.float32)
    with torch.inference_mode():
        expected = plain_paper_protocol(plain, torch.from_numpy(noisy)).numpy()
    ours = enhance(Enhancer(network, config), noisy[:, None], "paper")[:, 0]
    assert np.abs(ours - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_network_that_changes_nothing_leaves_no_seam(config: Config, protocol: str) -> None:
    signal = np.stack([speech_like(5, seed=seed) for seed in (1, 2)], axis=1).astype(np.float32)
    out = enhance(Enhancer(nn.Identity(), config), signal, protocol)
    assert np.abs(out - signal).max() < 1e-5


def test_channels_are_enhanced_on_their_own_and_loudness_does_not_matter(small_config: Config) -> None:
    torch.manual_seed(0)
    enhancer = Enhancer(build(small_config).eval(), small_config)
    left, right = (speech_like(2.5, seed=seed).astype(np.float32)[:, None] for seed in (1, 2))
    both = enhance(enhancer, np.concatenate([left, right / 64], axis=1), "overlap")
    assert np.allclose(both[:, :1], enhance(enhancer, left, "overlap"), atol=1e-5)
    assert np.allclose(both[:, 1:] * 64, enhance(enhancer, right, "overlap"), atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 50_000])
def test_one_call_enhances_a_signal_of_any_length(small_config: Config, samples: int) -> None:
    enhancer = Enhancer(build(small_config).eval(), small_config)
    noisy = speech_like(4, seed=1)[:samples]  # float64, as NumPy has it
    enhanced = enhancer.enhance_signal(noisy)
    assert (enhanced.dtype, enhanced.shape) == (np.float32, (samples,))
    assert np.array_equal(enhanced, enhance(enhancer, noisy[:, None].astype(np.float32), "overlap")[:, 0])


def test_silence_comes_out_as_silence(small_config: Config) -> None:
    torch.manual_seed(0)
    silence = np.zeros((40_000, 1), np.float32)
    assert np.abs(enhance(Enhancer(build(small_config).eval(), small_config), silence, "overlap")).max() == 0
