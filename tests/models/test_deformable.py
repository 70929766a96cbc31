"""The deformable convolution against a loop over positions, values and gradients, with offsets that leave the map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.muse import DeformableConv, DeformableEmbedding


def read(x: Tensor, time: Tensor, frequency: Tensor) -> Tensor:
    """A map `[C, T, F]` between its positions: bilinear, zeros outside."""
    value = x.new_zeros(len(x))
    first, second = math.floor(time.item()), math.floor(frequency.item())
    for t in (first, first + 1):
        for f in (second, second + 1):
            if 0 <= t < x.shape[1] and 0 <= f < x.shape[2]:
                value = value + x[:, t, f] * (1 - (time - t).abs()) * (1 - (frequency - f).abs())
    return value


def slow_deformable(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Position by position, tap by tap."""
    batch, channels, frames, bins = x.shape
    rows: list[Tensor] = []
    for b in range(batch):
        for t in range(frames):
            for f in range(bins):
                total = x.new_zeros(channels)
                for tap in range(9):
                    i, j = divmod(tap, 3)
                    place = t + i - 1 + offsets[b, 2 * tap, t, f], f + j - 1 + offsets[b, 2 * tap + 1, t, f]
                    total = total + weight[:, 0, i, j] * read(x[b], *place)
                rows.append(total)
    return torch.stack(rows).reshape(batch, frames, bins, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("frames, bins", [(4, 5), (1, 3), (3, 1)])
def test_values_and_gradients_are_those_of_the_loop(frames: int, bins: int) -> None:
    torch.manual_seed(0)
    conv = DeformableConv(3).double()
    x = torch.randn(2, 3, frames, bins, dtype=torch.float64)
    offsets = 2.5 * torch.randn(2, 18, frames, bins, dtype=torch.float64)  # many outside, some beyond the zeros
    targets = torch.randn_like(x)
    leaves = [leaf.requires_grad_() for leaf in (x, offsets, conv.weight)]
    ours, slow = conv(x, offsets), slow_deformable(x, offsets, conv.weight)
    assert torch.allclose(ours, slow, atol=1e-12)
    gradients = [torch.autograd.grad((out * targets).sum(), leaves) for out in (ours, slow)]
    for name, mine, expected in zip(("input", "offsets", "weight"), *gradients, strict=True):
        assert torch.allclose(mine, expected, atol=1e-10), name


def test_without_offsets_it_is_a_depthwise_convolution() -> None:
    torch.manual_seed(0)
    conv = DeformableConv(4)
    x = torch.randn(1, 4, 30, 20)
    plain = nn.functional.conv2d(x, conv.weight, padding=1, groups=4)
    assert torch.allclose(conv(x, torch.zeros(1, 18, 30, 20)), plain, atol=1e-5)


def test_an_offset_of_one_reads_the_next_position() -> None:
    conv = DeformableConv(1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 2] = 1.0  # the tap one frame before and one bin above
    x = torch.arange(20.0).reshape(1, 1, 4, 5)
    offsets = torch.zeros(1, 18, 4, 5)
    offsets[:, 2 * 2] = 1.0  # one frame later: the frame itself
    assert torch.allclose(conv(x, offsets)[0, 0, :, :4], x[0, 0, :, 1:], atol=1e-5)
    assert conv(x, offsets)[0, 0, :, 4].eq(0).all()


def test_offsets_are_held_within_one_position() -> None:
    torch.manual_seed(0)
    module = DeformableEmbedding(4)
    x = torch.randn(1, 4, 6, 7)
    with torch.no_grad():
        list(module.offsets.parameters())[1].mul_(1000)
    seen: list[Tensor] = []
    module.deformable.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    module(x)
    assert seen[0].abs().max() == 1
    assert (seen[0].abs() == 1).float().mean() > 0.9


def test_its_convolutions_start_as_in_the_release() -> None:
    torch.manual_seed(0)
    module = DeformableEmbedding(64)
    for conv, fan_out in ((module.offsets[0], 9 * 64), (module.offsets[1], 18), (module.mix, 64)):
        assert isinstance(conv, nn.Conv2d)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
    assert module.deformable.weight.abs().max() <= 1 / 3  # Kaiming-uniform over nine inputs
