"""Streaming networks: what their layers keep from one piece of a signal to the next, and whole signals in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from models.stft import AnySpectra

S = TypeVar("S", bound=AnySpectra)

State = tuple[Tensor, ...]
"""State of a network after a frame: what each layer with a memory keeps, in the order of computation, for B signals."""


class Memory:
    """State of a network's layers during a pass.

    Each layer with a memory recalls what it kept in the pass before, and keeps the same for the next. The layers take
    their turns in the order of computation, so a pass must always have the same layers.
    """

    def __init__(self, before: State | None = None) -> None:
        self.begin(before)

    def begin(self, before: State | None) -> None:
        """Begin a pass after `before`; None at the start of the signals."""
        self._before: Iterator[Tensor] | None = None if before is None else iter(before)
        self._after: list[Tensor] = []

    def recall(self, initial: Tensor) -> Tensor:
        """Return the tensor that the calling layer kept; `initial`, zeros, at the start of the signals."""
        return initial if self._before is None else next(self._before)

    def keep(self, after: Tensor) -> None:
        """Keep a tensor `[B, …]` until the next pass."""
        self._after.append(after)

    def end(self) -> State:
        """Return the state after the pass."""
        after = tuple(self._after)
        self.begin(None)
        return after


def with_past(x: Tensor, frames: int, memory: Memory) -> Tensor:
    """Put the last frames of the pass before in front of a map: `[B, C, T, F]` → `[B, C, frames + T, F]`.

    At the start of the signals they are zeros. The result is channels-last.
    """
    past = memory.recall(x.new_zeros(x.shape[0], frames, x.shape[3], x.shape[1]))
    # With the channels as last axis, the state has the layout of the feature maps. If it had not, OpenVINO would
    # transpose it, which takes as long as the rest of Lite-RTSE.
    x = torch.cat([past.permute(0, 3, 1, 2), x.contiguous(memory_format=torch.channels_last)], dim=2)
    memory.keep(x[:, :, -frames:].permute(0, 2, 3, 1))
    return x


def stream_whole(
    stream: Callable[[S, State | None], tuple[S, State]], noisy: S, piece: int, block: int, delay: int
) -> S:
    """Enhance whole signals, spectra `[B, F, T]`, by a network that takes its frames in pieces and keeps a state.

    stream: maps the next frames and the state to as many frames, delayed by `delay` frames, and the next state.
    piece: maximum number of frames in one call, a multiple of `block`.
    block: the number of frames in a call is a multiple of this.
    delay: frames by which the output of `stream` is delayed.
    """
    frames = noisy[0].shape[-1]
    padding = delay + -(frames + delay) % block
    pieces = (functional.pad(part, (0, padding)).split(piece, dim=2) for part in noisy)
    enhanced: list[S] = []
    state = None
    for parts in zip(*pieces, strict=True):
        spectra, state = stream(type(noisy)(*parts), state)
        enhanced.append(spectra)
    joined = (torch.cat(parts, dim=2)[:, :, delay : delay + frames] for parts in zip(*enhanced, strict=True))
    return type(enhanced[0])(*joined)
