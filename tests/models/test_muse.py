"""MUSE against its plain transcription, and its own blocks; its released weights are in test_published.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from config import MuseConfig
from models.muse import MUSE, DeformableConv, DeformableEmbedding, TaylorAttention
from models.published import translate_published
from tests.models.spectra import random_spectra, wrapped
from tests.reference.muse import ReferenceMUSE


@pytest.mark.parametrize("batch, frames", [(1, 5), (2, 12)])
def test_equals_plain_transcription_of_silently_padded_spectra(batch: int, frames: int) -> None:
    torch.manual_seed(0)
    plain = ReferenceMUSE(8).double().eval()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.endswith("temperature"):
                weight.uniform_(0.5, 2)
            if ".offset_generator." in name:
                weight.mul_(5)  # offsets reach their limits
    ours = MUSE(MuseConfig("muse", 8, 2.0), 256).double().eval()
    ours.load_state_dict(translate_published(plain.state_dict()))
    noisy = random_spectra(batch, frames)
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(*(functional.pad(part, (0, -frames % 4)) for part in noisy))
    assert enhanced.mag.shape == enhanced.pha.shape == (batch, 256, frames)
    assert torch.allclose(enhanced.mag, mag[..., :frames], atol=1e-9)
    assert wrapped(enhanced.pha - pha[..., :frames]).max() < 1e-6


def test_offsets_in_bfloat16_keep_late_positions() -> None:
    torch.manual_seed(0)
    x, offsets = torch.randn(1, 4, 300, 2), torch.rand(1, 18, 300, 2).bfloat16()
    convolve = DeformableConv(4)
    torch.testing.assert_close(convolve(x, offsets), convolve(x, offsets.float()), rtol=0, atol=0)


def read(x: Tensor, time: Tensor, frequency: Tensor) -> Tensor:
    """Interpolate a map `[C, T, F]` bilinearly, with zeros outside."""
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


@pytest.mark.parametrize("frames, bins", [(4, 5), (1, 3)])
def test_deformable_convolution_equals_a_loop(frames: int, bins: int) -> None:
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


def test_deformable_embedding_is_initialised_as_released() -> None:
    torch.manual_seed(0)
    module = DeformableEmbedding(64)
    for conv, fan_out in ((module.offsets[0], 9 * 64), (module.offsets[1], 18), (module.mix, 64)):
        assert isinstance(conv, nn.Conv2d)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
    assert module.deformable.weight.abs().max() <= 1 / 3  # Kaiming-uniform over nine inputs


def test_taylor_attention_equals_sum_over_all_pairs() -> None:
    """The weight of a pair of positions is 1 + q · k; the release adds 1e-6 to the denominator."""
    torch.manual_seed(0)
    heads, width, positions = 3, 4, 10
    module = TaylorAttention(heads * width, {3: 1, 5: 2}).double()
    q, k, v = torch.randn(3, 2, positions, heads * width, dtype=torch.float64)
    attended = module.attention(q, k, v)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        weights = 1 + q[..., own] @ k[..., own].mT
        expected = weights @ v[..., own] / (weights.sum(dim=2, keepdim=True) + 1e-6)
        assert torch.allclose(attended[..., own], expected, rtol=1e-9)
