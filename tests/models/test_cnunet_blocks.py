"""Blocks of CNUNet: values by hand, plain transcription and causality."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.cnunet import (
    CausalConv2d,
    ComplexAttention,
    ComplexSubPixelConv,
    DecoderStage,
    DilatedDenseBlock,
    DownConv,
    EncoderStage,
    InConv,
    SpreadBins,
    SubPixelConv,
    TimeFrequencyAttention,
    complex_concat,
)
from tests.fixtures.cnunet import frames_changed, from_frame, random_map, randomise, without_norms
from tests.reference import cnunet as plain


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
    x = random_map(4, 4, 6, batch=2)
    with torch.inference_mode():
        assert torch.allclose(conv(x), plain_causal_conv(conv, x), atol=1e-12)


def test_spread_bins_by_hand() -> None:
    # Channels 0..3 of two bins and one frame: 2c + s at f goes to c at 2f + s.
    x = torch.tensor([[0.0, 1], [10, 11], [20, 21], [30, 31]]).reshape(1, 4, 2, 1)
    expected = torch.tensor([[0.0, 10, 1, 11], [20, 30, 21, 31]]).reshape(1, 2, 4, 1)
    assert torch.equal(SpreadBins()(x), expected)


def test_complex_concat_by_hand() -> None:
    first, second = (torch.tensor(values).reshape(1, -1, 1, 1) for values in ([1, 2, -1, -2], [3, -3]))
    assert complex_concat([first, second]).flatten().tolist() == [1, 2, 3, -1, -2, -3]


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


def test_real_and_imaginary_part_have_separate_norms() -> None:
    torch.manual_seed(0)
    module = ComplexSubPixelConv(2, 2).double()
    randomise(module)
    x = random_map(4, 3, 5)
    with torch.inference_mode():
        out = module(x)
        real, imaginary = plain.cspconv(module.state_dict(), *x.chunk(2, dim=1))
    assert torch.allclose(out, torch.cat([real, imaginary], dim=1), atol=1e-12)


def test_group_norm_spans_channels_bins_and_frames() -> None:
    conv = InConv(1, 2).double()
    with torch.no_grad():
        conv.get_parameter("0.weight").copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        conv.get_parameter("0.bias").zero_()
        # ±1 and ±3: mean 0, variance 5 over both channels; slope 0.25 below zero.
        out = conv(torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(1, 1, 1, 2))
    expected = torch.tensor([1, 3, -0.25, -0.75], dtype=torch.float64) / 5**0.5
    assert torch.allclose(out.flatten(), expected, atol=1e-8)


def test_the_blocks_own_convolutions() -> None:
    torch.manual_seed(0)
    x = random_map(3, 4, 5, batch=2)
    for module, block in ((DownConv(3, 2), plain.conv), (SubPixelConv(3, 2), plain.spconv)):
        randomise(module.double())
        with torch.inference_mode():
            assert torch.allclose(module(x), block(module.state_dict(), x), atol=1e-12)


@pytest.mark.parametrize("bins", [1, 2, 4])
def test_dense_block_concatenates_real_parts_first(bins: int) -> None:
    torch.manual_seed(0)
    block = DilatedDenseBlock(8).double()
    randomise(block)
    x = random_map(8, bins, 70)
    with torch.inference_mode():
        assert torch.allclose(block(x), plain.ddb(block.state_dict(), x), atol=1e-10)


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


def test_attention_is_the_plain_one_for_each_part() -> None:
    torch.manual_seed(0)
    attention = ComplexAttention(3).double()
    x = random_map(6, 4, 40, batch=2)
    with torch.inference_mode():
        out = attention(x)
    real, imaginary = x.chunk(2, dim=1)
    weights = attention.state_dict()
    expected = [
        plain.ctfa(plain.under(weights, "real"), real),
        plain.ctfa(plain.under(weights, "imaginary"), imaginary),
    ]
    assert torch.allclose(out, torch.cat(expected, dim=1), atol=1e-12)


BLOCKS = {
    "in": lambda: InConv(8, 4),
    "down": lambda: DownConv(8, 4),
    "sub-pixel": lambda: SubPixelConv(8, 4),
    "complex sub-pixel": lambda: ComplexSubPixelConv(4, 4),
    "dense": lambda: DilatedDenseBlock(8),
    "attention": lambda: TimeFrequencyAttention(8),
    "complex attention": lambda: ComplexAttention(4),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_causal_except_for_norms(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]().double()
    x = random_map(8, 4, 40)
    assert frames_changed(without_norms(block), x, 35).tolist() == from_frame(35, 40)
    normed = any(isinstance(part, nn.GroupNorm) for part in block.modules())
    assert frames_changed(block, x, 35).tolist() == from_frame(0 if normed else 35, 40)


def test_stages_are_causal_except_for_norms() -> None:
    torch.manual_seed(0)
    x = random_map(64, 64, 9)
    encoder, decoder = EncoderStage(3, attention=True).double(), DecoderStage(3, attention=True).double()
    features = [part[:, : part.shape[1] // 2] for part in encoder(x)[1]]
    for stage, args in ((encoder, ()), (decoder, (features,))):
        assert frames_changed(without_norms(stage), x, 5, *args).tolist() == from_frame(5, 9)
        assert frames_changed(stage, x, 5, *args).tolist() == from_frame(0, 9)
