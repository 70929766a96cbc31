"""Blocks of IMSE: values by hand, or against PyTorch's own modules."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models.blocks import GDFN, BiasFreeLayerNorm, DenseBlock, FreqUpsample, InstanceNorm
from models.idconv import IDConv
from models.imse import Downsample, Upsample, imse_stage
from models.mala import rotary_tables


def test_instance_norm_equals_torch_also_at_a_large_mean() -> None:
    torch.manual_seed(0)
    ours, plain = InstanceNorm(4).double(), nn.InstanceNorm2d(4, affine=True).double()
    with torch.no_grad():
        plain.weight.copy_(ours.weight.uniform_(0.5, 2))
        plain.bias.copy_(ours.bias.normal_())
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64) + 1000
    assert torch.allclose(ours(x), plain(x), atol=1e-8)
    # E[x²] − E[x]² in float32 would be wrong in the first digit.
    assert torch.allclose(ours.float()(x.float()).double(), plain(x.float().double()), atol=1e-2)


def test_bias_free_layer_norm_keeps_the_mean() -> None:
    norm = BiasFreeLayerNorm(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0])[:, None, None])
    # Channels 3 and 5: mean 4, deviation 1.
    out = norm(torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1)).flatten()
    assert torch.allclose(out, torch.tensor([3.0, 50.0]), atol=1e-3)


def test_idconv_filters_the_last_three_eighths() -> None:
    module = IDConv(8)
    with torch.no_grad():
        module.mix.weight.copy_(torch.eye(8)[..., None, None])
        for number, branch in enumerate((module.square, module.along_frequency, module.along_time), start=1):
            assert isinstance(branch, nn.Conv2d)
            branch.weight.fill_(number)
            branch.bias.zero_() if branch.bias is not None else None
        # An impulse in each channel, of 1 in the first and 8 in the last.
        impulses = torch.arange(1.0, 9.0).reshape(1, 8, 1, 1)
        out = module(functional.pad(impulses, (12, 12, 12, 12)))[0]
    for channel in range(5):
        assert out[channel, 12, 12] == out[channel].sum() == channel + 1
    assert out[5, 11:14, 11:14].eq(6).all() and out[5].sum() == 6 * 9
    assert out[6, 12, 7:18].eq(2 * 7).all() and out[6].sum() == 2 * 7 * 11  # one frame, eleven bins
    assert out[7, 7:18, 12].eq(3 * 8).all() and out[7].sum() == 3 * 8 * 11  # eleven frames, one bin


def test_freq_upsample_equals_released_shuffle_and_strided_convolution() -> None:
    torch.manual_seed(0)
    channels = 4
    ours = FreqUpsample(channels)
    wide = nn.Conv2d(channels, 4 * channels, 1, bias=False)
    strided = nn.Conv2d(channels, channels, (1, 3), stride=(2, 1), padding=(0, 1), groups=channels, bias=False)
    with torch.no_grad():
        for channel in range(channels):
            for bin_index in range(2):
                ours.spread.weight[bin_index * channels + channel] = wide.weight[4 * channel + bin_index]
        ours.smooth.weight.copy_(strided.weight)
    x = torch.randn(2, channels, 3, 6)
    assert torch.allclose(ours(x), strided(functional.pixel_shuffle(wide(x), 2)), atol=1e-6)


def test_dense_block_concatenates_newest_first() -> None:
    torch.manual_seed(0)
    block = DenseBlock(3).double()
    x = torch.randn(1, 3, 20, 7, dtype=torch.float64)
    seen = x
    weights = {name: weight.detach().normal_() for name, weight in block.named_parameters()}
    for index in range(4):
        conv, scale, shift, slope = (
            weights[f"layers.{index}.{name}"] for name in ("0.weight", "1.weight", "1.bias", "2.weight")
        )
        y = functional.conv2d(seen, conv, padding=(2**index, 1), dilation=(2**index, 1))
        y = functional.instance_norm(y, weight=scale, bias=shift)
        y = torch.where(y > 0, y, y * slope[:, None, None])
        seen = torch.cat([y, seen], dim=1)
    assert torch.allclose(block(x), seen[:, :3], atol=1e-10)


def test_feed_forward_gates_with_gelu() -> None:
    torch.manual_seed(0)
    module = GDFN(16)
    assert module.project.weight.shape == (16, 42, 1, 1)
    x = torch.randn(1, 16, 4, 5)
    gate, value = module.gate(x), module.value(x)
    expected = functional.conv2d(gate * 0.5 * (1 + torch.erf(gate / 2**0.5)) * value, module.project.weight)
    assert torch.allclose(module(x), expected, atol=1e-6)


def test_downsample_and_upsample_shapes() -> None:
    x = torch.randn(1, 16, 8, 12)
    assert Downsample(16, 32)(x).shape == (1, 32, 4, 6)
    assert Upsample(16, 8)(x).shape == (1, 8, 16, 24)


def test_stage_adds_its_input() -> None:
    torch.manual_seed(0)
    stage = imse_stage(0, 8)
    with torch.no_grad():
        for name, weight in stage.named_parameters():
            if ".project." in name:
                weight.zero_()
    x = torch.randn(1, 8, 4, 4)
    assert torch.allclose(stage(x, rotary_tables(4, 4, 8, x)), stage.local(x) + x, atol=1e-6)


def test_transformer_block_has_two_residual_branches() -> None:
    torch.manual_seed(0)
    block = imse_stage(0, 8).blocks[0].double()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    tables = rotary_tables(4, 4, 8, x)
    y = x + block.get_submodule("attention")(block.get_submodule("attention_norm")(x), tables)
    expected = y + block.get_submodule("feed_forward")(block.get_submodule("feed_forward_norm")(y))
    assert torch.equal(block(x, tables), expected)
