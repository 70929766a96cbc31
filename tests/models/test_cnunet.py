"""CNUNet: plain transcription, sizes, causality and gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from config import CnunetConfig, Config, load_config
from models.cnunet import CNUNet, ComplexSubPixelConv
from models.stft import Spectra, Spectrogram
from tests.fixtures.commands import ROOT
from tests.models.spectra import assert_finite_gradients, random_spectra
from tests.reference import cnunet as plain

BINS = 257


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT / "configs" / "cnunet.json")


def random_network(released_skips: bool = False) -> CNUNet:
    """Return a network in float64 with random norms and slopes too, which start alike."""
    torch.manual_seed(0)
    network = CNUNet(CnunetConfig("cnunet", released_skips), BINS).double().eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.GroupNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.5, 0.5)
            elif isinstance(part, nn.PReLU):
                part.weight.uniform_(0.1, 0.9)
            elif isinstance(part, ComplexSubPixelConv):
                part.slopes.uniform_(0.1, 0.9)
    return network


@pytest.fixture(scope="module")
def network() -> CNUNet:
    """Return the network with intended skips; must not be modified."""
    return random_network()


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_parameter_counts_of_the_release(network: CNUNet) -> None:
    assert parameters(network.in_conv) == 321
    assert [parameters(stage) for stage in network.stages] == [150_220, 127_273, 108_614, 108_614, 108_614, 89_955]
    assert [parameters(down) for down in network.down_samplers] == [6_208] * 6
    assert parameters(network.bottleneck) == 38_121
    for decoder in (network.real_decoder, network.imaginary_decoder):
        assert [parameters(up) for up in decoder.up_samplers] == [1_568] * 6
        assert [parameters(stage) for stage in decoder.stages] == [44_696, 54_586, 54_586, 54_586, 64_476, 76_510]
    assert parameters(network.out_conv) == 130
    assert parameters(network) == 1_486_806


@pytest.mark.slow
def test_operations_per_second_of_audio(network: CNUNet) -> None:
    spectrum = torch.zeros(1, BINS, 163, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).float().to("meta")(Spectra(spectrum, spectrum))
    assert counter.get_total_flops() / 2 == pytest.approx(7.576e9, rel=0.02)


def test_stft_equals_the_release_up_to_edges_and_phase_origin(config: Config) -> None:
    wav = torch.randn(1, 3_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames = functional.pad(wav, (300, 300)).unfold(1, 400, 100)
    window = 0.54 - 0.46 * torch.cos(2 * math.pi * torch.arange(400, dtype=torch.float64) / 400)
    expected = torch.fft.rfft(frames * window, 512).transpose(1, 2)  # [B, F, T]
    ours = torch.view_as_complex(Spectrogram(config.stft).double()(wav).complex)
    assert expected.shape[2] == ours.shape[2] + 2 == 33
    turns = -56 / 512 * torch.arange(BINS, dtype=torch.float64)
    expected = expected[..., 1:-1] * torch.exp(2j * math.pi * turns)[:, None]
    inner = slice(2, -2)  # the frames at the edges see beyond them
    assert (ours - expected)[..., inner].abs().max() < 1e-5  # the window is in float32


def test_equals_plain_transcription_for_both_skips(network: CNUNet) -> None:
    noisy, released = random_spectra(2, 35, BINS), random_network(released_skips=True)  # the same weights
    with torch.inference_mode():
        enhanced = [torch.view_as_complex(each(noisy).complex) for each in (network, released)]
        spectrum = torch.view_as_complex(noisy.complex)
        expected = [plain.cnunet(network.state_dict(), spectrum, released=slips) for slips in (False, True)]
    scale = expected[0].abs().max()
    for ours, theirs in zip(enhanced, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-9 * scale
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("frames", [1, 7])
def test_any_number_of_frames_and_batch(network: CNUNet, frames: int) -> None:
    noisy = random_spectra(2, frames, BINS)
    with torch.inference_mode():
        enhanced = network(noisy)
        alone = network(Spectra(noisy.mag[1:], noisy.pha[1:]))
    assert enhanced.mag.shape == enhanced.pha.shape == (2, BINS, frames)
    assert alone.mag.shape == alone.pha.shape == (1, BINS, frames)
    assert torch.allclose(enhanced.mag[1:], alone.mag, atol=1e-12)
    assert not torch.allclose(enhanced.mag[0], enhanced.mag[1], rtol=0.01)


def test_bin_at_0_hz_is_ignored(network: CNUNet) -> None:
    noisy = random_spectra(1, 2, BINS)
    changed = Spectra(noisy.mag.clone(), noisy.pha.clone())
    changed.mag[:, 0], changed.pha[:, 0] = 5, 1
    with torch.inference_mode():
        enhanced, enhanced_changed = network(noisy), network(changed)
    assert enhanced.mag[:, 0].eq(0).all() and enhanced.pha[:, 0].eq(0).all() and enhanced.mag[:, 1:].gt(0).all()
    assert torch.equal(enhanced.mag, enhanced_changed.mag) and torch.equal(enhanced.pha, enhanced_changed.pha)


def test_output_is_float32_under_autocast(network: CNUNet) -> None:
    network = copy.deepcopy(network).float()

    def rounded(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.bfloat16()

    network.out_conv.register_forward_hook(rounded)
    with torch.inference_mode():
        enhanced = network(random_spectra(1, 1, BINS, torch.float32))
    assert enhanced.mag.dtype == enhanced.pha.dtype == torch.float32


def test_network_is_causal_except_for_norms(network: CNUNet) -> None:
    noisy = random_spectra(1, 10, BINS)
    changed = noisy._replace(mag=noisy.mag.clone())
    changed.mag[..., 6:] += 1
    without_norms = copy.deepcopy(network)
    for part in list(without_norms.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(part, name, nn.Identity())
    for module, first in ((without_norms, 6), (network, 0)):
        with torch.inference_mode():
            before, after = module(noisy), module(changed)
        difference = (before.complex - after.complex).abs().amax(dim=(0, 1, 3))
        assert difference[:first].lt(1e-12).all() and difference[first:].gt(1e-6).all()


def test_gradients_are_finite_and_reach_every_weight() -> None:
    network, silence = random_network(), torch.zeros(1, BINS, 5, dtype=torch.float64)
    for noisy in (random_spectra(1, 9, BINS), Spectra(silence, silence)):
        network.zero_grad()
        enhanced = network(noisy)
        enhanced.complex.square().sum().backward()
        assert enhanced.mag.isfinite().all() and enhanced.pha.isfinite().all()
        assert_finite_gradients(network, reached=bool(noisy.mag.any()))
