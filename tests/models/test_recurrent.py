"""RNNs: one frame, several frames and PyTorch's modules give the same; both directions; states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.recurrent import run_rnn
from models.streaming import Memory

KINDS = [nn.LSTM, nn.GRU]
Rnn = nn.LSTM | nn.GRU


def random_rnn(kind: type[nn.LSTM] | type[nn.GRU], bidirectional: bool = False) -> Rnn:
    torch.manual_seed(0)
    return kind(5, 4, batch_first=True, bidirectional=bidirectional).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [(), (2,)])
def test_frame_by_frame_equals_the_module(kind: type[nn.LSTM] | type[nn.GRU], sequences: tuple[int, ...]) -> None:
    rnn = random_rnn(kind)
    x = torch.randn(3, *sequences, 6, 5, dtype=torch.float64)
    states = tuple(torch.randn(3, *sequences, 4, dtype=torch.float64) for _ in range(2 if kind is nn.LSTM else 1))
    flat = tuple(each.reshape(1, -1, 4) for each in states)
    expected, after = rnn(x.reshape(-1, 6, 5), flat if kind is nn.LSTM else flat[0])
    outputs: list[torch.Tensor] = []
    single = states
    for frame in x.split(1, dim=-2):
        memory = Memory(single)
        outputs.append(run_rnn(rnn, frame, memory))
        single = memory.end()
    memory = Memory(states)
    whole = run_rnn(rnn, x, memory)
    for found, ends in ((torch.cat(outputs, dim=-2), single), (whole, memory.end())):
        torch.testing.assert_close(found, expected.view_as(found), rtol=0, atol=1e-12)
        for each, other in zip(ends, after if kind is nn.LSTM else (after,), strict=True):
            torch.testing.assert_close(each, other.view_as(each), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 6])
def test_both_directions(kind: type[nn.LSTM] | type[nn.GRU], frames: int) -> None:
    """The second half of the outputs is that of an RNN with the weights of the reverse direction, run backwards."""
    rnn = random_rnn(kind, bidirectional=True)
    x = torch.randn(3, frames, 5, dtype=torch.float64)
    y = run_rnn(rnn, x)
    for suffix, order in (("", slice(None)), ("_reverse", slice(None, None, -1))):
        single = random_rnn(kind)
        names = single.state_dict().keys()
        single.load_state_dict({name: rnn.state_dict()[f"{name}{suffix}"] for name in names})
        own = y[..., 4:] if suffix else y[..., :4]
        state = None
        for t in range(frames)[order]:
            memory = Memory(state)
            expected = run_rnn(single, x[:, t : t + 1], memory)
            state = memory.end()
            torch.testing.assert_close(own[:, t : t + 1], expected, rtol=0, atol=1e-12)
