"""IMSE against the release: reference activations and outputs, and the plain transcription kept beside."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from config import Config, ImseConfig
from models import build
from models.checkpoint import load_checkpoint
from models.imse import IMSE
from models.published import translate_published
from models.stft import Spectra, Spectrogram
from tests.reference.imse import ReferenceIMSE

# Where the stored activations are taken: name there → module here. A stage's is the one before its residual.
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
    """A difference of angles, brought into −π..π, as a size."""
    return (difference - 2 * math.pi * torch.round(difference / (2 * math.pi))).abs()


def random_pair(channels: int = 8) -> tuple[IMSE, ReferenceIMSE]:
    """Our network and the plain one with the same random weights, in float64."""
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
def test_the_plain_transcription_gives_the_same(batch: int, frames: int) -> None:
    ours, plain = random_pair()
    noisy = random_spectra(batch, frames)
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(noisy.mag, noisy.pha)
    assert torch.allclose(enhanced.mag, mag, atol=1e-5)
    # The plain tables of angles are in float32.
    assert wrapped(enhanced.pha - pha).max() < 1e-3


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 7])
def test_any_number_of_frames_is_as_if_silence_followed(frames: int) -> None:
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


def test_silence_in_silence_out(config: Config) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        enhanced = build(config)(Spectra(torch.zeros(1, 256, 8), torch.zeros(1, 256, 8)))
    assert enhanced.mag.abs().max() == 0
    assert enhanced.pha.isfinite().all()


def test_every_weight_gets_a_finite_gradient(small_config: Config) -> None:
    torch.manual_seed(0)
    network = build(small_config)
    enhanced = network(random_spectra(2, 8, torch.float32))
    enhanced.complex.square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


def test_parameters_are_the_releases_without_those_of_no_effect(config: Config) -> None:
    ours = sum(weight.numel() for weight in build(config).parameters())
    released = sum(weight.numel() for weight in ReferenceIMSE().parameters())
    fusion, unread, biases = 1607, 2 * 512, 225
    assert released == 432_995
    assert ours == released - fusion - unread - biases == 430_139


@pytest.fixture(scope="module")
def released(reference: Path) -> IMSE:
    network, _ = load_checkpoint(reference / "imse" / "g_best_pesq_3.373")
    assert isinstance(network, IMSE)
    return network


def test_reference_activations(reference: Path) -> None:
    stored = np.load(reference / "imse" / "forward_T64.npz")
    network, _ = load_checkpoint(reference / "imse" / "g_best_pesq_3.373")
    network = network.double()  # as the stored ones: where the magnitude is tiny, float32 moves a phase by 1e-3
    seen: dict[str, Tensor] = {}
    for name, module in ACTIVATIONS.items():
        hook = lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)  # noqa: E731
        network.get_submodule(module).register_forward_hook(hook)
    with torch.inference_mode():
        network(Spectra(*(torch.from_numpy(stored[key]).double() for key in ("mag", "pha"))))
    assert len(seen) == 11
    for name, activation in seen.items():
        expected = torch.from_numpy(stored[f"act_{name}"])
        if activation.ndim == 3:
            activation = activation.transpose(1, 2)[:, None]
        assert (activation - expected).abs().max() < 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("name", ["forward_T64.npz", "forward_T308.npz"])
def test_reference_outputs(released: IMSE, reference: Path, config: Config, name: str) -> None:
    stored = {key: torch.from_numpy(value) for key, value in np.load(reference / "imse" / name).items()}
    spectrogram = Spectrogram(config.stft)
    wav = stored["wav"][None]
    with torch.inference_mode():
        noisy = spectrogram(wav)
        enhanced = released(Spectra(stored["mag"], stored["pha"]))
        sound = spectrogram.inverse(released(noisy), wav.shape[1])
    audible = stored["mag"] > 1e-2
    assert torch.allclose(noisy.mag, stored["mag"], atol=1e-5)
    assert wrapped(noisy.pha - stored["pha"])[audible].max() < 1e-4
    assert (enhanced.mag - stored["mag_out"]).abs().max() < 2e-4
    assert wrapped(enhanced.pha - stored["pha_out"])[audible].max() < 5e-3
    assert (sound[0] - stored["wav_out"]).abs().max() < 2e-4
