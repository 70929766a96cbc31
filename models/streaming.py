"""Apply a streaming network to whole signals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.nn import functional

from models.stft import AnySpectra

S = TypeVar("S", bound=AnySpectra)


def stream_whole(
    stream: Callable[[S, Any], tuple[S, Any]],
    noisy: S,
    state: Any,
    piece: int,
    block: int,
    delay: int,
) -> S:
    """Enhance whole signals, spectra `[B, F, T]`, by a network that takes its frames in pieces and keeps a state.

    stream: maps the next frames and the state to as many frames, delayed by `delay` frames, and the next state.
    state: state before the first frame.
    piece: maximum number of frames in one call, a multiple of `block`.
    block: the number of frames in a call is a multiple of this.
    delay: frames by which the output of `stream` is delayed.
    """
    frames = noisy[0].shape[-1]
    padding = delay + -(frames + delay) % block
    pieces = (functional.pad(part, (0, padding)).split(piece, dim=2) for part in noisy)
    enhanced: list[S] = []
    for parts in zip(*pieces, strict=True):
        spectra, state = stream(type(noisy)(*parts), state)
        enhanced.append(spectra)
    joined = (torch.cat(parts, dim=2)[:, :, delay : delay + frames] for parts in zip(*enhanced, strict=True))
    return type(enhanced[0])(*joined)
