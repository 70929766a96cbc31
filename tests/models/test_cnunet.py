"""CNUNet: plain transcription, sizes and causality; other checks are in test_every_network.py."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from config import CnunetConfig, Config, load_config
from models.cnunet import CNUNet, ComplexSubPixelConv
from models.stft import Spectrogram
from tests.fixtures.commands import ROOT
from tests.models.spectra import random_spectra
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
    noisy, released = random_spectra(2, 20, BINS), random_network(released_skips=True)  # the same weights
    with torch.inference_mode():
        enhanced = [torch.view_as_complex(each(noisy).complex) for each in (network, released)]
        spectrum = torch.view_as_complex(noisy.complex)
        expected = [plain.cnunet(network.state_dict(), spectrum, released=slips) for slips in (False, True)]
    scale = expected[0].abs().max()
    for ours, theirs in zip(enhanced, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-9 * scale
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * scale


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
