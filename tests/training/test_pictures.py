"""What TensorBoard shows of a validation: colours that can be compared, and the inside of any network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from config import Config, load_config
from enhance.enhancer import Enhancer
from models import build
from models.stft import Spectrogram
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from tools.inspect.inspection import mask_of, place_in_speech, run_once
from training.pictures import inner_pictures, spectrogram_picture

RATE = 16_000
TONE = np.sin(2 * np.pi * 500 * np.arange(8000) / RATE)
FRAMES, BINS, GAP = 81, 256, 4
NOISY = with_noise(speech_like(0.6), 5).astype(np.float32)
CPU = torch.device("cpu")


@pytest.fixture
def spectrogram(config: Config) -> Spectrogram:
    return Spectrogram(config.stft)


def test_a_low_tone_is_a_bright_line_near_the_bottom(spectrogram: Spectrogram) -> None:
    image = spectrogram_picture([TONE], spectrogram)
    assert (image.shape, image.dtype) == ((3, BINS, FRAMES), np.uint8)
    brightness = image.mean(axis=(0, 2))
    # Bin 16 of 0..255, counted from below.
    assert brightness.argmax() == 255 - round(500 * 510 / RATE)
    assert image[1].max() == 252  # the lightest colour


def test_versions_share_one_scale_of_decibels(spectrogram: Spectrogram) -> None:
    image = spectrogram_picture([TONE, 0.01 * TONE, 0 * TONE], spectrogram)
    assert image.shape == (3, BINS, 3 * FRAMES + 2 * GAP)
    loud, soft, silent = (image[:, :, start:][:, :, :FRAMES] for start in (0, FRAMES + GAP, 2 * (FRAMES + GAP)))
    assert (image[:, :, FRAMES : FRAMES + GAP] == 255).all()
    # 40 dB down is the middle of 80 dB, and of the colours.
    middle = soft[:, 255 - 16, 40]
    assert np.abs(middle.astype(int) - (182, 54, 121)).max() <= 3
    assert loud[:, 255 - 16, 40].tolist() == [251, 252, 191]
    assert (silent == np.array([0, 0, 3])[:, None, None]).all()


@pytest.mark.parametrize("level", [0.0, 1e-12, 100.0, np.nan])
def test_any_level_has_a_picture(spectrogram: Spectrogram, level: float) -> None:
    image = spectrogram_picture([level * NOISY], spectrogram)
    assert (image.max() > 200) == (level > 0)


def test_the_inside_of_imse_is_drawn_and_the_network_left_as_it_was(small_config: Config) -> None:
    torch.manual_seed(0)
    network = build(small_config).train()
    pictures = inner_pictures(network, small_config, NOISY, CPU)
    assert network.training
    frames = len(NOISY) // 100 + 1
    assert {name: image.shape for name, image in pictures.items()} == {
        "mask": (3, BINS, frames),
        "attention": (3, 3 * BINS + 2 * GAP, 2 * frames + GAP),  # stages by attentions
    }
    attention = pictures["attention"].astype(int)
    black = (attention == 0).all(axis=0)
    # A cross for the query in each stage's first map, at one place.
    crosses = [black[top : top + BINS, :frames] for top in range(0, 3 * (BINS + GAP), BINS + GAP)]
    assert all(4 < cross.sum() < 18 for cross in crosses)
    assert len({cross.tobytes() for cross in crosses}) == 1
    assert not black[:, frames:].any()
    pass_ = run_once(Enhancer(network.eval(), small_config), NOISY)
    place = place_in_speech(pass_)
    assert crosses[0][BINS - 1 - place.bin, place.frame]
    assert crosses[0][BINS - 1 - place.bin].sum() > 4
    # Lighter where the mask is larger, low frequencies below.
    lightness = pictures["mask"].mean(axis=0)[::-1]
    assert np.corrcoef(lightness.ravel(), mask_of(pass_).numpy().ravel())[0, 1] > 0.8
    # Plain linear attention has hardly a negative weight, MALA has them: blue ones.
    blue = attention[2] > attention[0] + 20
    assert blue[:, :frames].mean() > blue[:, frames + GAP :].mean()
    # On one scale, the strongest colours are MALA's.
    strongest = (attention[1] < 60) & ~black
    assert strongest[:, :frames].any()
    assert not strongest[:, frames:].any()


def test_only_the_middle_segment_is_looked_at(small_config: Config) -> None:
    torch.manual_seed(0)
    network = build(small_config)
    config = replace(small_config, data=replace(small_config.data, segment_size=4000))
    whole = inner_pictures(network, config, NOISY, CPU)
    middle = inner_pictures(network, config, NOISY[(len(NOISY) - 4000) // 2 :][:4000], CPU)
    assert whole["mask"].shape == (3, BINS, 41)
    assert all(np.array_equal(whole[name], middle[name]) for name in ("mask", "attention"))


def test_a_network_without_such_an_attention_has_its_mask_alone() -> None:
    config = load_config(ROOT / "configs/lite_rtse.json")
    assert set(inner_pictures(build(config), config, NOISY, CPU)) == {"mask"}


def test_a_stage_with_one_attention_leaves_the_place_of_the_other_white() -> None:
    torch.manual_seed(0)
    config = load_config(ROOT / "configs/ablation/softmax_bottleneck.json", ["model.channels=8"])
    attention = inner_pictures(build(config), config, NOISY[:8000], CPU)["attention"]
    _, bottleneck, _ = np.split(attention[:, : 3 * (BINS + GAP) - GAP], [BINS + GAP, 2 * (BINS + GAP)], axis=1)
    frames = (attention.shape[2] - GAP) // 2
    assert (bottleneck[:, :, frames:] == 255).all()
    assert not (bottleneck[:, :, :frames] == 255).all()


def test_a_network_that_has_become_nan_has_pictures(small_config: Config) -> None:
    network = build(small_config)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, np.nan)
    pictures = inner_pictures(network, small_config, NOISY, CPU)
    assert (pictures["mask"] == np.array([0, 0, 3])[:, None, None]).all()
