"""IMSE against the release's activations and outputs, and against the plain transcription."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from config import Config, ImseConfig, load_config
from models import build
from models.checkpoint import load_checkpoint
from models.imse import IMSE
from models.published import translate_published
from models.stft import Spectra, Spectrogram
from tests.fixtures.commands import ROOT
from tests.reference.imse import ReferenceIMSE

# Stored activation → module. A stage's activation is the one before its residual.
ACTIVATIONS = {
    "dense_encoder": "dense_encoder",
    "idconv_level1": "unet.encoder_level1.local",
    "mala_level1_block0": "unet.encoder_level1.blocks.0.attention",
    "block_level1_0": "unet.encoder_level1.blocks.0",
    "encoder_level1": "unet.encoder_level1.blocks.3",
    "encoder_level2": "unet.encoder_level2.blocks.3",
    "latent": "unet.bottleneck.blocks.3",
    "decoder_level2": "unet.decoder_level2.blocks.3",
    "decoder_level1": "unet.decoder_level1.blocks.3",
    "mask_decoder": "magnitude_decoder",
    "phase_decoder": "phase_decoder",
}


def wrapped(difference: Tensor) -> Tensor:
    """Return the absolute value of a difference of angles, modulo 2π."""
    return (difference - 2 * math.pi * torch.round(difference / (2 * math.pi))).abs()


def random_pair(channels: int = 8) -> tuple[IMSE, ReferenceIMSE]:
    """Return our network and the transcription with the same random weights, in float64."""
    torch.manual_seed(0)
    plain = ReferenceIMSE(channels).double().eval()
    ours = IMSE(ImseConfig("imse", channels, 2.0), 256).double().eval()
    ours.load_state_dict(translate_published(plain.state_dict()))
    return ours, plain


def random_spectra(batch: int, frames: int, dtype: torch.dtype = torch.float64) -> Spectra:
    generator = torch.Generator().manual_seed(1)
    mag = torch.rand(batch, 256, frames, generator=generator, dtype=dtype)
    pha = (torch.rand(batch, 256, frames, generator=generator, dtype=dtype) * 2 - 1) * math.pi
    return Spectra(mag, pha)


@pytest.mark.parametrize("batch, frames", [(1, 4), (2, 12)])
def test_equals_plain_transcription(batch: int, frames: int) -> None:
    ours, plain = random_pair()
    noisy = random_spectra(batch, frames)
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(noisy.mag, noisy.pha)
    assert torch.allclose(enhanced.mag, mag, atol=1e-5)
    # The transcription's tables of angles are in float32.
    assert wrapped(enhanced.pha - pha).max() < 1e-3


@pytest.mark.parametrize("frames", [1, 7])
def test_other_frame_counts_equal_silent_padding(frames: int) -> None:
    ours, plain = random_pair()
    noisy = random_spectra(1, frames)
    silence = -frames % 4
    padded = [torch.nn.functional.pad(part, (0, silence)) for part in noisy]
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(*padded)
    assert enhanced.mag.shape == enhanced.pha.shape == (1, 256, frames)
    assert torch.allclose(enhanced.mag, mag[..., :frames], atol=1e-5)
    assert wrapped(enhanced.pha - pha[..., :frames]).max() < 1e-3


@pytest.mark.parametrize("name", ["imse", "muse"])
def test_gradients_are_finite_and_reach_every_weight(name: str) -> None:
    torch.manual_seed(0)
    network = build(load_config(ROOT / f"configs/{name}.json", ["model.channels=8"]))
    network(random_spectra(2, 8, torch.float32)).complex.square().sum().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), key
        assert weight.grad.abs().max() > 0, key
    network.zero_grad()
    silence = torch.zeros(1, 256, 8)
    enhanced = network(Spectra(silence, silence))
    (enhanced.mag.sum() + enhanced.pha.sum()).backward()
    assert enhanced.mag.abs().max() == 0 and enhanced.pha.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("frames", [64, pytest.param(308, marks=pytest.mark.slow)])
def test_released_activations_and_outputs(reference: Path, config: Config, frames: int) -> None:
    """From the release's own spectra, whose phases have the signs of its FFT."""
    stored = {key: torch.from_numpy(value) for key, value in np.load(reference / f"imse/forward_T{frames}.npz").items()}
    network, _ = load_checkpoint(reference / "imse" / "g_best_pesq_3.373")
    network = network.double()
    seen: dict[str, Tensor] = {}
    for activation, module in ACTIVATIONS.items():
        hook = lambda _module, _inputs, output, activation=activation: seen.__setitem__(activation, output)  # noqa: E731
        network.get_submodule(module).register_forward_hook(hook)
    spectrogram = Spectrogram(config.stft).double()
    wav = stored["wav"].double()[None]
    with torch.inference_mode():
        enhanced = network(Spectra(stored["mag"].double(), stored["pha"].double()))
        enhanced_wav = spectrogram.inverse(enhanced, wav.shape[1])
        noisy = spectrogram(wav)

    activations = {key.removeprefix("act_"): value for key, value in stored.items() if key.startswith("act_")}
    assert activations.keys() <= seen.keys()
    for activation, expected in activations.items():
        output = seen[activation]
        output = output.transpose(1, 2)[:, None] if output.ndim == 3 else output
        assert (output - expected).abs().max() < 1e-5 * expected.abs().max(), activation
    # The release computes in float32, which differs from float64 most in phases of small magnitude.
    audible = stored["mag"] > 1e-2
    assert (enhanced.mag - stored["mag_out"]).abs().max() < 2e-4
    assert wrapped(enhanced.pha - stored["pha_out"])[audible].max() < 5e-3
    assert (enhanced_wav[0] - stored["wav_out"]).abs().max() < 2e-4
    assert torch.allclose(noisy.mag, stored["mag"].double(), atol=1e-4)
    assert wrapped(noisy.pha - stored["pha"])[audible].max() < 1e-3
