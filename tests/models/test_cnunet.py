"""CNUNet: plain transcription, sizes, gradients, skip connections and causality."""

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
from models.cnunet import CausalConv2d, CNUNet
from models.stft import PHASE_FLOOR, Spectra, Spectrogram
from tests.fixtures.cnunet import frames_changed, from_frame, random_map, randomise, without_norms
from tests.fixtures.commands import ROOT
from tests.reference import cnunet as plain

BINS = 257
REAL, IMAGINARY = 0, 1


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT / "configs" / "cnunet.json")


def random_network(released_skips: bool = False) -> CNUNet:
    """Return a network in float64 with random norms and slopes too."""
    torch.manual_seed(0)
    network = CNUNet(CnunetConfig("cnunet", released_skips), BINS).double().eval()
    randomise(network)
    return network


@pytest.fixture(scope="module")
def network() -> CNUNet:
    """Return the network with intended skips; must not be modified."""
    return random_network()


@pytest.fixture(scope="module")
def released() -> CNUNet:
    """Return the network with the same weights and released skips; must not be modified."""
    return random_network(released_skips=True)


def random_spectra(batch: int, frames: int, dtype: torch.dtype = torch.float64) -> Spectra:
    generator = torch.Generator().manual_seed(1)
    mag = torch.rand(batch, BINS, frames, generator=generator, dtype=dtype)
    return Spectra(mag, (torch.rand(batch, BINS, frames, generator=generator, dtype=dtype) * 2 - 1) * math.pi)


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


def test_operations_per_second_of_audio(network: CNUNet) -> None:
    spectrum = torch.zeros(1, BINS, 163, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).float().to("meta")(Spectra(spectrum, spectrum))
    assert counter.get_total_flops() / 2 == pytest.approx(7.576e9, rel=0.02)


@pytest.mark.parametrize("samples", [48_000, 12_345])
def test_stft_round_trip(config: Config, samples: int) -> None:
    wav = torch.randn(2, samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrogram = Spectrogram(config.stft).double()
    error = (spectrogram.inverse(spectrogram(wav), samples) - wav).abs().max()
    assert error < PHASE_FLOOR * wav.abs().max()  # parts below the floor are lost


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


def test_equals_plain_transcription_for_both_skips(network: CNUNet, released: CNUNet) -> None:
    noisy = random_spectra(2, 35)
    with torch.inference_mode():
        enhanced = [torch.view_as_complex(each(noisy).complex) for each in (network, released)]
        spectrum = torch.view_as_complex(noisy.complex)
        expected = [plain.cnunet(network.state_dict(), spectrum, released=slips) for slips in (False, True)]
    scale = expected[0].abs().max()
    for ours, theirs in zip(enhanced, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-9 * scale
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 40])
def test_any_number_of_frames_and_batch(network: CNUNet, frames: int) -> None:
    noisy = random_spectra(2, frames)
    with torch.inference_mode():
        enhanced = network(noisy)
        alone = network(Spectra(noisy.mag[1:], noisy.pha[1:]))
    assert enhanced.mag.shape == enhanced.pha.shape == (2, BINS, frames)
    assert alone.mag.shape == alone.pha.shape == (1, BINS, frames)
    assert torch.allclose(enhanced.mag[1:], alone.mag, atol=1e-12)
    assert not torch.allclose(enhanced.mag[0], enhanced.mag[1], rtol=0.01)


def test_bin_at_0_hz_is_ignored(network: CNUNet) -> None:
    noisy = random_spectra(1, 2)
    changed = Spectra(noisy.mag.clone(), noisy.pha.clone())
    changed.mag[:, 0], changed.pha[:, 0] = 5, 1
    with torch.inference_mode():
        enhanced, enhanced_changed = network(noisy), network(changed)
    assert enhanced.mag[:, 0].eq(0).all() and enhanced.pha[:, 0].eq(0).all() and enhanced.mag[:, 1:].gt(0).all()
    assert torch.equal(enhanced.mag, enhanced_changed.mag) and torch.equal(enhanced.pha, enhanced_changed.pha)


def test_silence_gives_finite_spectra_and_gradients() -> None:
    torch.manual_seed(0)
    network = CNUNet(CnunetConfig("cnunet"), BINS)
    silence = torch.zeros(1, BINS, 5)
    enhanced = network(Spectra(silence, silence))
    enhanced.complex.square().sum().backward()
    assert enhanced.mag.isfinite().all() and enhanced.pha.isfinite().all()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name


def test_spectra_of_twice_the_bins() -> None:
    torch.manual_seed(0)
    noisy = Spectra(torch.rand(1, 513, 2), torch.rand(1, 513, 2))
    with torch.inference_mode():
        enhanced = CNUNet(CnunetConfig("cnunet"), 513)(noisy)
    assert enhanced.mag.shape == (1, 513, 2)
    assert enhanced.mag.isfinite().all() and enhanced.mag[:, 1:].gt(0).all()


def test_output_is_float32_under_autocast(network: CNUNet) -> None:
    network = copy.deepcopy(network).float()

    def rounded(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.bfloat16()

    network.out_conv.register_forward_hook(rounded)
    with torch.inference_mode():
        enhanced = network(random_spectra(1, 1, torch.float32))
    assert enhanced.mag.dtype == enhanced.pha.dtype == torch.float32


@pytest.mark.parametrize("bins", [1, 256, 258])
def test_unsupported_bins(bins: int) -> None:
    with pytest.raises(ValueError, match=f"{bins} bins: .*256"):
        CNUNet(CnunetConfig("cnunet"), bins)


def noted_inputs(*modules: nn.Module) -> list[Any]:
    """Return a list that collects the arguments of each call."""
    seen: list[Any] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs)

    for module in modules:
        module.register_forward_pre_hook(note)
    return seen


def noted_outputs(*modules: nn.Module) -> list[Any]:
    """Return a list that collects the result of each call."""
    seen: list[Any] = []

    def note(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        seen.append(output)

    for module in modules:
        module.register_forward_hook(note)
    return seen


@pytest.mark.parametrize("slips", [False, True])
def test_skips_of_each_decoder_stage(network: CNUNet, released: CNUNet, slips: bool) -> None:
    network = copy.deepcopy(released if slips else network)
    encoded = noted_outputs(*network.stages)
    seen = {
        REAL: noted_inputs(*network.real_decoder.stages),
        IMAGINARY: noted_inputs(*network.imaginary_decoder.stages),
    }
    with torch.inference_mode():
        network(random_spectra(1, 3))
    # Part, encoder stage, s_k; as the paper counts, from 1.
    swapped = {(IMAGINARY, 4, 4), (IMAGINARY, 3, 4), (REAL, 2, 4)} if slips else set()
    for part, stages in seen.items():
        for number, (x, features) in zip((6, 5, 4, 3, 2, 1), stages, strict=True):
            output, kept = encoded[number - 1]
            for k, (got, both) in enumerate(zip([x[:, 32:], *features], [output, *kept], strict=True)):
                source = 1 - part if (part, number, k) in swapped else part
                assert torch.equal(got, both.chunk(2, dim=1)[source]), (part, number, k)
                assert not torch.equal(got, both.chunk(2, dim=1)[1 - source]), (part, number, k)


def test_samplers_have_two_groups(network: CNUNet) -> None:
    samplers = (network.down_samplers[0], plain.down_sampler), (network.real_decoder.up_samplers[0], plain.up_sampler)
    for sampler, plain_sampler in samplers:
        assert isinstance(sampler, (nn.Conv2d, nn.ConvTranspose2d))
        channels = sampler.in_channels
        x = random_map(channels, 4, 3)
        changed = x.clone()
        changed[:, channels // 2 :] += 1
        with torch.inference_mode():
            out, out_changed = sampler(x), sampler(changed)
            assert torch.allclose(out, plain_sampler(sampler.state_dict(), x), atol=1e-12)
        assert out.shape[2] == (2 if sampler.in_channels == 64 else 8)
        assert torch.equal(out[:, : channels // 2], out_changed[:, : channels // 2])
        assert not torch.equal(out[:, channels // 2 :], out_changed[:, channels // 2 :])


def test_every_convolution_is_causal(network: CNUNet) -> None:
    count = 0
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            changed = frames_changed(module, random_map(module.in_channels, 2, 7), 4)
            assert changed.tolist() == from_frame(4, 7), name
            count += 1
    assert count == 618


def network_frames_changed(network: nn.Module, first: int, frames: int) -> list[bool]:
    noisy = random_spectra(1, frames)
    changed = Spectra(noisy.mag.clone(), noisy.pha)
    changed.mag[..., first:] += 1
    with torch.inference_mode():
        before, after = network(noisy), network(changed)
    assert before.mag.isfinite().all() and before.mag[:, 1:].gt(0).all()
    return ((before.mag != after.mag) | (before.pha != after.pha)).any(dim=1)[0].tolist()


def test_network_is_causal_except_for_norms(network: CNUNet) -> None:
    assert network_frames_changed(without_norms(network), 6, 10) == from_frame(6, 10)
    assert network_frames_changed(network, 6, 10) == from_frame(0, 10)


def test_gradient_of_every_weight_that_reads_more_than_padding() -> None:
    """With few bins or frames some weights of a 3×2 kernel read padding only; only those get no gradient."""
    network, frames = random_network(), 9
    reads: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, CausalConv2d)
        bins, stride, dilation = inputs[0].shape[2], module.stride[0], module.dilation[0]
        rows = [any(0 <= f + (row - 1) * dilation < bins for f in range(0, bins, stride)) for row in range(3)]
        reads[module] = torch.tensor(rows)[:, None] & torch.tensor([dilation < frames, True])

    convs = [module for module in network.modules() if isinstance(module, CausalConv2d)]
    for conv in convs:
        conv.register_forward_pre_hook(note)
    network(random_spectra(1, frames)).complex.square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name
    assert sum(1 for mask in reads.values() if not mask.all()) > 0
    for conv in convs:
        assert conv.weight.grad is not None
        assert torch.equal(conv.weight.grad != 0, reads[conv].expand_as(conv.weight))


def test_decoders_get_halves_of_the_bottleneck(network: CNUNet) -> None:
    network = copy.deepcopy(network)
    bottleneck = noted_outputs(network.bottleneck)
    decoders = noted_inputs(network.real_decoder, network.imaginary_decoder)
    with torch.inference_mode():
        network(random_spectra(1, 2))
    (real, _), (imaginary, _) = decoders
    assert torch.equal(bottleneck[0], torch.cat([real, imaginary], dim=1))
