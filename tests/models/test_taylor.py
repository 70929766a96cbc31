"""Taylor attention against sums over pairs of positions, head by head."""

from __future__ import annotations

import torch
from torch.nn import functional

from models.muse import AttentionRefinement, TaylorAttention


def test_attention_is_the_taylor_expansion_over_all_pairs() -> None:
    """With weights 1 + q·k for each pair of positions, as far as the release's floor of 1e-6 lets it."""
    torch.manual_seed(0)
    heads, width, positions = 3, 4, 10
    module = TaylorAttention(heads * width, {3: 1, 5: 2}).double()
    q, k, v = torch.randn(3, 2, positions, heads * width, dtype=torch.float64)
    attended = module.attend(q, k, v, bins=5)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        weights = 1 + q[..., own] @ k[..., own].mT
        expected = weights @ v[..., own] / (weights.sum(dim=2, keepdim=True) + 1e-6)
        assert torch.allclose(attended[..., own], expected, rtol=1e-9)


def test_queries_and_keys_have_norm_one_in_each_head() -> None:
    module = TaylorAttention(8, {3: 2}).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    x[0, 2, :4] = 0
    norms = module.normalized(x).unflatten(2, (2, 4)).norm(dim=3)
    assert norms[0, 2, 0] == 0
    norms[0, 2, 0] = 1
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def test_each_head_is_refined_by_its_own_window_of_its_own_queries_and_keys() -> None:
    torch.manual_seed(0)
    module = AttentionRefinement(2, {3: 1, 5: 2}).double()
    q, k = torch.randn(2, 1, 6 * 7, 6, dtype=torch.float64)
    refined = module(q, k, torch.Size((6, 7)))
    assert refined.shape == (1, 42, 3)
    for head, (conv, row) in enumerate([(0, 0), (1, 0), (1, 1)]):
        own = slice(2 * head, 2 * head + 2)
        both = torch.cat([q[..., own], k[..., own]], dim=2).mT.reshape(1, 4, 6, 7)
        weight, bias = (parameter[row : row + 1] for parameter in module.convs[conv].parameters())
        expected = torch.sigmoid(functional.conv2d(both, weight, bias, padding=(3, 5)[conv] // 2))
        assert torch.allclose(refined[0, :, head], expected.flatten(), atol=1e-12)
