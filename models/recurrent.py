"""LSTMs and GRUs of one layer that also run frame by frame, and that can be exported to ONNX.

`nn.LSTM` and `nn.GRU` hold the weights; `run_rnn` applies them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import is_exporting
from models.streaming import Memory

_ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Positions in PyTorch's weights of the gates in ONNX's order.

LSTM: input, forget, cell, output in PyTorch; input, output, forget, cell in ONNX. GRU: reset, update, new in PyTorch;
update, reset, new in ONNX.
"""


def run_rnn(rnn: nn.LSTM | nn.GRU, x: Tensor, memory: Memory | None = None) -> Tensor:
    """Apply an RNN to sequences `[B, …, T, F]`; returns `[B, …, T, H]`, of an RNN of both directions `[B, …, T, 2H]`.

    With a memory, for one direction only, the RNN goes on from its state after the pass before.
    """
    *batch, _, size = x.shape
    x = x.reshape(-1, x.shape[-2], size)
    if memory is None:
        y, _ = _run(rnn, x, None)
        return y.unflatten(0, batch)
    weight = next(rnn.parameters())
    count = 2 if isinstance(rnn, nn.LSTM) else 1  # hidden and cell state, or the hidden state
    before = [memory.recall(weight.new_zeros(*batch, rnn.hidden_size)) for _ in range(count)]
    y, after = _run(rnn, x, tuple(each.reshape(1, -1, rnn.hidden_size) for each in before))
    for each in after:
        memory.keep(each[0].unflatten(0, batch))
    return y.unflatten(0, batch)


def _run(rnn: nn.LSTM | nn.GRU, x: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Apply an RNN to `[B, T, F]`; return its outputs, `[B, T, H]`, and the next state.

    The state is (hidden, cell) for an LSTM and (hidden,) for a GRU, each `[1, B, H]`; None for zeros.
    """
    if is_exporting():
        return _onnx_node(rnn, x, state)
    if x.shape[1] == 1 and state:
        return _single_frame(rnn, x, state)
    given = state if state is None or isinstance(rnn, nn.LSTM) else state[0]
    # float32, also within autocast: for cuDNN's RNNs it takes float16, in which small gradients become 0. oneDNN has no
    # bfloat16 LSTM for CPUs without AVX-512.
    with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
        y, after = rnn(x.float() if x.dtype == torch.bfloat16 else x, given)
    return y, after if isinstance(rnn, nn.LSTM) else (after,)


def _single_frame(rnn: nn.LSTM | nn.GRU, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Apply an RNN of one direction to `[B, 1, F]`.

    PyTorch's LSTM and GRU reorder their weights at each call on a CPU, which takes 20 times as long as the frame.
    """
    ((weight, recurrent, bias, recurrent_bias),) = rnn.all_weights
    hidden = state[0][0]
    gates = functional.linear(x[:, 0], weight, bias)
    recurrent_gates = functional.linear(hidden, recurrent, recurrent_bias)
    if isinstance(rnn, nn.LSTM):
        input_gate, forget_gate, candidate, output_gate = (gates + recurrent_gates).chunk(4, dim=-1)
        cell = forget_gate.sigmoid() * state[1][0] + input_gate.sigmoid() * candidate.tanh()
        hidden = output_gate.sigmoid() * cell.tanh()
        return hidden[:, None], (hidden[None], cell[None])
    (reset, update, new), (recurrent_reset, recurrent_update, recurrent_new) = (
        each.chunk(3, dim=-1) for each in (gates, recurrent_gates)
    )
    candidate = (new + (reset + recurrent_reset).sigmoid() * recurrent_new).tanh()
    hidden = candidate + (update + recurrent_update).sigmoid() * (hidden - candidate)
    return hidden[:, None], (hidden[None],)


def _onnx_node(rnn: nn.LSTM | nn.GRU, x: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Write ONNX's node: PyTorch's own export is for one number of frames only."""
    kind = "LSTM" if isinstance(rnn, nn.LSTM) else "GRU"
    gates, states = _ONNX_GATES[kind], 2 if kind == "LSTM" else 1
    weight, recurrent, bias, recurrent_bias = (
        torch.stack([torch.cat([each.chunk(len(gates))[gate] for gate in gates]) for each in directions])
        for directions in zip(*rnn.all_weights, strict=True)
    )
    (batch, frames, _), directions, size = x.shape, len(weight), rnn.hidden_size
    attributes = {"hidden_size": size, "direction": "bidirectional" if rnn.bidirectional else "forward"}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1  # as in PyTorch
    y, *after = torch.onnx.ops.symbolic_multi_out(
        kind,
        (
            *(x.transpose(0, 1), weight, recurrent, torch.cat([bias, recurrent_bias], dim=1)),
            *(None, *(state or [None] * states)),
        ),
        attributes,
        dtypes=[x.dtype] * (1 + states),
        shapes=[(frames, directions, batch, size), *[(directions, batch, size)] * states],
    )
    return y.permute(2, 0, 1, 3).flatten(2), tuple(after)
