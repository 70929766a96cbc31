"""RNNs: one frame, several frames and PyTorch's modules give the same; both directions; states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.recurrent import run_rnn

KINDS = [nn.LSTM, nn.GRU]
Rnn = nn.LSTM | nn.GRU


def random_rnn(kind: type[nn.LSTM] | type[nn.GRU], bidirectional: bool = False) -> Rnn:
    torch.manual_seed(0)
    return kind(5, 4, batch_first=True, bidirectional=bidirectional).double()


def random_state(rnn: Rnn, batch: int) -> tuple[torch.Tensor, ...]:
    count, directions = 2 if isinstance(rnn, nn.LSTM) else 1, 1 + rnn.bidirectional
    return tuple(torch.randn(directions, batch, 4, dtype=torch.float64) for _ in range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_frame_by_frame_equals_the_module(kind: type[nn.LSTM] | type[nn.GRU]) -> None:
    rnn = random_rnn(kind)
    x, state = torch.randn(3, 6, 5, dtype=torch.float64), random_state(rnn, 3)
    expected, after = rnn(x, state if kind is nn.LSTM else state[0])
    outputs: list[torch.Tensor] = []
    single = state
    for frame in x.split(1, dim=1):
        y, single = run_rnn(rnn, frame, single)
        outputs.append(y)
    whole, last = run_rnn(rnn, x, state)
    for found, states in ((torch.cat(outputs, dim=1), single), (whole, last)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for each, other in zip(states, after if kind is nn.LSTM else (after,), strict=True):
            torch.testing.assert_close(each, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 6])
def test_both_directions(kind: type[nn.LSTM] | type[nn.GRU], frames: int) -> None:
    """The second half of the outputs is that of an RNN with the weights of the reverse direction, run backwards."""
    rnn = random_rnn(kind, bidirectional=True)
    x = torch.randn(3, frames, 5, dtype=torch.float64)
    y, _ = run_rnn(rnn, x)
    for suffix, order in (("", slice(None)), ("_reverse", slice(None, None, -1))):
        single = random_rnn(kind)
        names = single.state_dict().keys()
        single.load_state_dict({name: rnn.state_dict()[f"{name}{suffix}"] for name in names})
        own = y[..., 4:] if suffix else y[..., :4]
        steps = range(frames)[order]
        state = tuple(0 * each for each in random_state(single, 3))
        for t in steps:
            expected, state = run_rnn(single, x[:, t : t + 1], state)
            torch.testing.assert_close(own[:, t : t + 1], expected, rtol=0, atol=1e-12)
