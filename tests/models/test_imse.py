"""IMSE and MUSE against plain transcriptions, and their blocks by hand; test_published.py has the released weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from config import load_config
from models import build
from models.blocks import BiasFreeLayerNorm, InstanceNorm
from models.idconv import IDConv
from models.mala import HEAD_WIDTH, MALA, rotary_tables
from models.muse import DeformableConv, DeformableEmbedding, TaylorAttention
from models.published import translate_published
from tests.fixtures.commands import ROOT
from tests.models.spectra import random_spectra, wrapped
from tests.reference.imse import ReferenceIMSE
from tests.reference.muse import ReferenceMUSE


def plain_network(name: str) -> nn.Module:
    """Return a transcription; of MUSE with temperatures that differ and offsets that reach their limits."""
    torch.manual_seed(0)
    plain = {"imse": ReferenceIMSE, "muse": ReferenceMUSE}[name](8).double().eval()
    with torch.no_grad():
        for key, weight in plain.named_parameters():
            if key.endswith("temperature"):
                weight.uniform_(0.5, 2)
            if ".offset_generator." in key:
                weight.mul_(5)
    return plain


@pytest.mark.parametrize(
    "name, batch, frames", [("imse", 1, 1), ("imse", 1, 7), ("imse", 2, 12), ("muse", 1, 5), ("muse", 2, 12)]
)
def test_equals_plain_transcription_of_silently_padded_spectra(name: str, batch: int, frames: int) -> None:
    plain = plain_network(name)
    ours = build(load_config(ROOT / f"configs/{name}.json", ["model.channels=8"])).double().eval()
    ours.load_state_dict(translate_published(plain.state_dict()))
    noisy = random_spectra(batch, frames)
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(*(functional.pad(part, (0, -frames % 4)) for part in noisy))
    assert enhanced.mag.shape == enhanced.pha.shape == (batch, 256, frames)
    mag_error, pha_error = (1e-5, 1e-3) if name == "imse" else (1e-9, 1e-6)  # IMSE's tables of angles are in float32
    assert torch.allclose(enhanced.mag, mag[..., :frames], atol=mag_error)
    assert wrapped(enhanced.pha - pha[..., :frames]).max() < pha_error


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
    norm = BiasFreeLayerNorm(2).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0])[:, None, None])
    # Channels 3 and 5: mean 4, variance 1.
    out = norm(torch.tensor([3.0, 5.0], dtype=torch.float64).reshape(1, 2, 1, 1)).flatten()
    assert torch.allclose(out, torch.tensor([3.0, 50.0], dtype=torch.float64) / math.sqrt(1 + 1e-5), rtol=1e-12)


def test_idconv_filters_the_last_three_eighths() -> None:
    module = IDConv(8).double()
    with torch.no_grad():
        module.mix.weight.copy_(torch.eye(8)[..., None, None])
        for number, branch in enumerate((module.square, module.along_frequency, module.along_time), start=1):
            assert isinstance(branch, nn.Conv2d)
            branch.weight.fill_(number)
            branch.bias.zero_() if branch.bias is not None else None
        # An impulse in each channel, of 1 in the first and 8 in the last.
        impulses = torch.arange(1.0, 9.0, dtype=torch.float64).reshape(1, 8, 1, 1)
        out = module(functional.pad(impulses, (12, 12, 12, 12)))[0]
    for channel in range(5):
        assert out[channel, 12, 12] == out[channel].sum() == channel + 1
    assert out[5, 11:14, 11:14].eq(6).all() and out[5].sum() == 6 * 9
    assert out[6, 12, 7:18].eq(2 * 7).all() and out[6].sum() == 2 * 7 * 11  # one frame, eleven bins
    assert out[7, 7:18, 12].eq(3 * 8).all() and out[7].sum() == 3 * 8 * 11  # eleven frames, one bin


def turned(vector: Tensor, time: int, frequency: int) -> Tensor:
    """Rotate each pair of channels of one head's vector `[d]` by its angle."""
    out = vector.clone()
    for pair in range(HEAD_WIDTH // 2):
        index = time if pair < HEAD_WIDTH // 4 else frequency
        steps = HEAD_WIDTH // 4 - 1
        angle = index / 10_000 ** ((pair % (HEAD_WIDTH // 4)) / steps)
        a, b = vector[2 * pair], vector[2 * pair + 1]
        out[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
    return out


def slow_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, bins: int) -> Tensor:
    """Sum over all pairs of positions by the paper's formula; all `[N, C]`."""
    places = [(t, f) for t in range(frames) for f in range(bins)]
    out = torch.zeros_like(v)
    for head in range(q.shape[1] // HEAD_WIDTH):
        part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        keys = [turned(k[j, part], *place) for j, place in enumerate(places)]
        for i, place in enumerate(places):
            z = sum(q[i, part] @ k[j, part] for j in range(len(places))) / len(places) / math.sqrt(HEAD_WIDTH)
            query = turned(q[i, part], *place)
            for j, key in enumerate(keys):
                similarity = query @ key / math.sqrt(HEAD_WIDTH)
                weight = ((1 + 1 / (z + 1e-6)) * similarity - z) / len(places)
                out[i, part] += weight * v[j, part]
    return out


def test_attention_equals_sum_over_all_pairs() -> None:
    frames, bins, channels = 3, 4, 16
    generator = torch.Generator().manual_seed(0)
    q, k = torch.rand(2, frames * bins, channels, generator=generator, dtype=torch.float64) + 0.1
    v = torch.randn(frames * bins, channels, generator=generator, dtype=torch.float64)
    module = MALA(channels).double()
    tables = rotary_tables(frames, bins, channels, v)
    fast = module.attention(q[None], k[None], v[None], tables)[0]
    assert torch.allclose(fast, slow_attention(q, k, v, frames, bins), atol=1e-6)


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


def test_offsets_in_bfloat16_keep_late_positions() -> None:
    torch.manual_seed(0)
    x, offsets = torch.randn(1, 4, 300, 2), torch.rand(1, 18, 300, 2).bfloat16()
    convolve = DeformableConv(4)
    torch.testing.assert_close(convolve(x, offsets), convolve(x, offsets.float()), rtol=0, atol=0)


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
