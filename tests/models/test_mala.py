"""MALA against its definition, position by position and head by head, and against values by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.mala import HEAD_WIDTH, MALA, RotaryTables, rotary_tables


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


def test_without_rotation_the_weights_sum_to_one() -> None:
    q, k = torch.rand(2, 1, 50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = torch.full((1, 50, 8), 3.0, dtype=torch.float64)
    still = RotaryTables(torch.ones(50, 8, dtype=torch.float64), torch.zeros(50, 8, dtype=torch.float64))
    assert torch.allclose(MALA(8).double().attention(q, k, v, still), v, atol=1e-4)


def test_a_larger_query_sharpens_the_weights() -> None:
    """Doubling q moves the output away from the mean of v; in linear attention it would not."""
    k = torch.tensor([[[1.0] * 8, [0.1] * 8]])
    v = torch.tensor([[[1.0] * 8, [0.0] * 8]])
    still = RotaryTables(torch.ones(2, 8), torch.zeros(2, 8))
    outputs = [MALA(8).attention(torch.full((1, 2, 8), size), k, v, still)[0, 0, 0].item() for size in (0.5, 1.0)]
    # By hand: d = 8, s = 8·size / √8; z = 0.55 s; weight of the first = ((1 + 1/z) s − z) / 2.
    expected = []
    for size in (0.5, 1.0):
        s = 8 * size / math.sqrt(8)
        expected.append(((1 + 1 / (0.55 * s)) * s - 0.55 * s) / 2)
    assert torch.allclose(torch.tensor(outputs), torch.tensor(expected), atol=1e-5)
    assert outputs[1] > outputs[0] > 0.5


def test_rotary_tables_have_the_speeds_of_the_paper() -> None:
    tables = rotary_tables(3, 5, 16, torch.zeros(1))
    assert tables.cos.shape == tables.sin.shape == (15, 16)
    position = 2 * 5 + 3  # frame 2, bin 3
    expected = torch.tensor([2.0, 2.0, 2e-4, 2e-4, 3.0, 3.0, 3e-4, 3e-4] * 2)
    assert torch.allclose(tables.cos[position], expected.cos(), atol=1e-6)
    assert torch.allclose(tables.sin[position], expected.sin(), atol=1e-6)


def test_memory_layout_and_batch_do_not_change_the_result() -> None:
    torch.manual_seed(0)
    module = MALA(16).double()
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    tables = rotary_tables(6, 5, 16, x)
    alone = torch.cat([module(row[None], tables) for row in x])
    assert torch.allclose(module(x, tables), alone, atol=1e-10)
    assert torch.allclose(module(x.contiguous(memory_format=torch.channels_last), tables), alone, atol=1e-10)
