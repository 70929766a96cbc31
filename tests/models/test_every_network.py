"""Properties that every network has, in all its variants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from config import Config, load_config
from models import build
from models.stft import AnySpectra, Spectrogram
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like

NARROW = "model.channels=8"
FEW_BINS = ("stft.n_fft=256", "stft.win_size=256", "stft.hop_size=128")
LIVE = (
    *(("lite_rtse",), ("lite_rtse", "model.multi_order=single"), ("dpcrn", *FEW_BINS), ("dpcrn_ac",), ("dpcrn_cf",)),
    ("dpcrn", "model.size=light", "model.adaptive_kernels=true", "model.comb=true", "loss.f0=0.1"),
)
NETWORKS = (
    *LIVE,
    *(("imse", NARROW), ("muse", NARROW), ("imse_live", NARROW), ("imse_live", NARROW, "model.lookahead=4")),
    *(("cnunet",), ("mpsenet", NARROW), ("mpsenet", NARROW, "model.released_axes=false")),
    *(("dccrn",), ("dccrn", "model.mask=C"), ("dccrn", "model.mask=R"), ("dccrn", "model.look_ahead=0")),
)
"""Each by the name of its recipe and by settings."""


def make(names: tuple[str, ...]) -> tuple[nn.Module, Config]:
    config = load_config(ROOT / f"configs/{names[0]}.json", names[1:])
    torch.manual_seed(0)
    return build(config).eval(), config


def speech(config: Config, hops: int) -> Tensor:
    """Return two different utterances."""
    samples = hops * config.stft.hop_size
    return torch.stack([torch.from_numpy(speech_like(1, seed=seed)[4000:][:samples]).float() for seed in (1, 2)])


def spectra_of(wav: Tensor, config: Config) -> AnySpectra:
    return Spectrogram(config.stft, config.model.complex_spectra)(wav)


@pytest.mark.parametrize("names", NETWORKS, ids=" ".join)
def test_gradients_are_finite_and_reach_every_weight(names: tuple[str, ...]) -> None:
    network, config = make(names)
    clean = speech(config, hops=11)
    shares = torch.rand(2, config.stft.bins, 12, 1, generator=torch.Generator().manual_seed(0))
    for noisy, training in ((clean, False), (clean, True), (0 * clean, False), (0 * clean, True)):
        network.train(training).zero_grad()
        noisy = spectra_of(noisy, config)
        enhanced, terms = network(noisy, clean) if config.model.own_terms else (network(noisy), {})
        ((enhanced.complex * shares).square().sum() + sum(terms.values())).backward()
        assert enhanced.mag.isfinite().all() and enhanced.pha.isfinite().all()
        for name, weight in network.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            assert weight.grad.any() or not noisy.mag.any() or training, name  # batch norms hide biases in training


@pytest.mark.parametrize("frames", [1, 7])
@pytest.mark.parametrize("names", NETWORKS, ids=" ".join)
def test_any_number_of_frames_and_signals(names: tuple[str, ...], frames: int) -> None:
    network, config = make(names)
    noisy = spectra_of(speech(config, hops=frames), config)
    noisy = type(noisy)(*(part[..., :frames].double() for part in noisy))
    network.double()
    with torch.inference_mode():
        enhanced, alone = network(noisy), network(type(noisy)(*(part[1:] for part in noisy)))
    assert enhanced.mag.shape == enhanced.pha.shape == noisy.mag.shape
    torch.testing.assert_close(alone.complex, enhanced.complex[1:], rtol=0, atol=1e-12)
    assert not torch.allclose(enhanced.mag[0], enhanced.mag[1], rtol=0.01)


BFLOAT16 = (*LIVE, ("cnunet",), ("dccrn",), ("mpsenet", NARROW))  # tests/training/test_trainer.py has those of IMSE


@pytest.mark.parametrize("names", BFLOAT16, ids=" ".join)
def test_bfloat16_is_close_to_float32(names: tuple[str, ...]) -> None:
    network, config = make(names)
    noisy = spectra_of(speech(config, hops=11), config)
    with torch.inference_mode():
        expected = network(noisy)
        with torch.autocast("cpu", torch.bfloat16):
            enhanced = network(noisy)
    assert enhanced.mag.dtype == enhanced.pha.dtype == torch.float32
    limit = 0.1 if names[0] == "mpsenet" else 0.05
    assert 1e-6 < (enhanced.complex - expected.complex).norm() / expected.complex.norm() < limit


@pytest.mark.parametrize("names", LIVE, ids=" ".join)
def test_silence_and_the_largest_magnitude(names: tuple[str, ...]) -> None:
    """512 samples of full scale, all in one bin."""
    network, config = make(names)
    wav = speech(config, hops=11)
    for level in (0, 512 / float(spectra_of(wav, config).mag.max())):
        with torch.inference_mode():
            enhanced = network(spectra_of(level * wav, config))
        assert enhanced.mag.isfinite().all() and enhanced.pha.isfinite().all()
        assert enhanced.mag.any() == (level > 0)
