"""CNUNet: plain transcription, sizes, causality and gradients; blocks with values by hand."""

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
from models.cnunet import CausalConv2d, CNUNet, ComplexSubPixelConv, TimeFrequencyAttention
from models.stft import Spectra, Spectrogram
from tests.fixtures.commands import ROOT
from tests.reference import cnunet as plain

BINS = 257


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT / "configs" / "cnunet.json")


def randomise(module: nn.Module) -> None:
    """Give norms and slopes, which start alike, values of their own."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.GroupNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.5, 0.5)
            elif isinstance(part, nn.PReLU):
                part.weight.uniform_(0.1, 0.9)
            elif isinstance(part, ComplexSubPixelConv):
                part.slopes.uniform_(0.1, 0.9)


def without_norms(module: nn.Module) -> nn.Module:
    """A copy in which every norm passes on what it gets."""
    module = copy.deepcopy(module)
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(part, name, nn.Identity())
    return module


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


@pytest.mark.parametrize("frames", [1, 7])
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


def test_output_is_float32_under_autocast(network: CNUNet) -> None:
    network = copy.deepcopy(network).float()

    def rounded(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.bfloat16()

    network.out_conv.register_forward_hook(rounded)
    with torch.inference_mode():
        enhanced = network(random_spectra(1, 1, torch.float32))
    assert enhanced.mag.dtype == enhanced.pha.dtype == torch.float32


def test_unsupported_bins() -> None:
    with pytest.raises(ValueError, match=r"258 bins: .*256"):
        CNUNet(CnunetConfig("cnunet"), 258)


def test_network_is_causal_except_for_norms(network: CNUNet) -> None:
    noisy = random_spectra(1, 10)
    changed = noisy._replace(mag=noisy.mag.clone())
    changed.mag[..., 6:] += 1
    for module, first in ((without_norms(network), 6), (network, 0)):
        with torch.inference_mode():
            before, after = module(noisy), module(changed)
        assert before.mag.isfinite().all()
        differs = ((before.mag != after.mag) | (before.pha != after.pha)).any(dim=1)[0]
        assert differs.tolist() == [t >= first for t in range(10)]


def test_gradients_are_finite_and_reach_every_weight() -> None:
    network, silence = random_network(), torch.zeros(1, BINS, 5, dtype=torch.float64)
    for noisy in (random_spectra(1, 9), Spectra(silence, silence)):
        network.zero_grad()
        enhanced = network(noisy)
        enhanced.complex.square().sum().backward()
        assert enhanced.mag.isfinite().all() and enhanced.pha.isfinite().all()
        for name, weight in network.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            assert weight.grad.abs().max() > 0 or not noisy.mag.any(), name


def plain_causal_conv(conv: CausalConv2d, x: Tensor) -> Tensor:
    """Sum over every weight by itself."""
    _, _, bins, frames = x.shape
    assert conv.bias is not None
    (stride, _), (dilation, _) = conv.stride, conv.dilation
    per_group = conv.out_channels // conv.groups
    out = conv.bias[None, :, None, None].repeat(len(x), 1, bins // stride, frames)
    for o, i, row, column in torch.cartesian_prod(*(torch.arange(n) for n in conv.weight.shape)).tolist():
        channel = o // per_group * conv.weight.shape[1] + i
        for f in range(bins // stride):
            for t in range(frames):
                source_bin, source_frame = stride * f + (row - 1) * dilation, t - (1 - column) * dilation
                if 0 <= source_bin < bins and source_frame >= 0:
                    out[:, o, f, t] += conv.weight[o, i, row, column] * x[:, channel, source_bin, source_frame]
    return out


@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 4, 2)])
def test_causal_convolution_by_a_plain_loop(stride: int, dilation: int, groups: int) -> None:
    torch.manual_seed(0)
    conv = CausalConv2d(4, 2, stride, dilation, groups).double()
    x = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.allclose(conv(x), plain_causal_conv(conv, x), atol=1e-12)


def test_complex_convolution_is_complex_arithmetic_with_each_bias_twice() -> None:
    module = ComplexSubPixelConv(1, 1).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.slopes.copy_(torch.tensor([1.0, 0.5]))
        # W_r = (2, 3) and W_i = (5, 7) for the two bins that one becomes, of this bin and frame only.
        module.conv.weight[:, 0, 1, 1] = torch.tensor([2.0, 3, 5, 7])
        assert module.conv.bias is not None
        module.conv.bias.copy_(torch.tensor([0.1, 0.2, 0.4, 0.8]))
        out = without_norms(module)(torch.tensor([10.0, 100.0], dtype=torch.float64).reshape(1, 2, 1, 1))
    real = [20 + 0.1 - (500 + 0.4), 30 + 0.2 - (700 + 0.8)]  # negative, with slope 1
    imaginary = [50 + 0.4 + (200 + 0.1), 70 + 0.8 + (300 + 0.2)]
    assert out.flatten().tolist() == pytest.approx(real + imaginary, rel=1e-6)
    with torch.no_grad():
        turned = without_norms(module)(torch.tensor([10.0, -100.0], dtype=torch.float64).reshape(1, 2, 1, 1))
    # (2 + 5j)(10 − 100j) = 520 − 150j; the imaginary part is negative now, and has the slope 0.5.
    assert turned.flatten()[0].item() == pytest.approx(520 + 0.1 - 0.4, rel=1e-6)
    assert turned.flatten()[2].item() == pytest.approx(0.5 * (-150 + 0.4 + 0.1), rel=1e-6)


def test_attention_gates_frames_by_all_bins_and_bins_by_32_frames() -> None:
    """With one channel and gates that are the sigmoid of their input."""
    attention = TimeFrequencyAttention(1).double()
    with torch.no_grad():
        for gate in (attention.time_gate, attention.frequency_gate):
            for name, weight in gate.named_parameters():
                weight.zero_()
                if name.endswith("weight"):
                    weight[0, 0] = 1
        x = torch.zeros(1, 1, 2, 34, dtype=torch.float64)
        x[0, 0, 0, 0] = 64
        x[0, 0, 1] = 3
        out = attention(x)[0, 0]

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    assert out[0, 0].item() == pytest.approx(64 * sigmoid((64 + 3) / 2) * sigmoid(64 / 32))
    assert out[1, 0].item() == pytest.approx(3 * sigmoid((64 + 3) / 2) * sigmoid(3 / 32))
    assert out[1, 30].item() == pytest.approx(3 * sigmoid(3 / 2) * sigmoid(3 * 31 / 32))
    assert out[1, 33].item() == pytest.approx(3 * sigmoid(3 / 2) * sigmoid(3))
    # In one bin, the first frame counts until the 32nd: moved by 1e-3, which the bin's gate alone shows.
    x[0, 0, 0, 1:] = 1e-3
    with torch.no_grad():
        gates = attention(x)[0, 0, 0, 1:] / 1e-3
    assert gates[30].item() == pytest.approx(sigmoid(3.001 / 2) * sigmoid((64 + 31e-3) / 32))
    assert gates[31].item() == pytest.approx(sigmoid(3.001 / 2) * sigmoid(1e-3))
