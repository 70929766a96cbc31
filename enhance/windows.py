"""Cut a signal into windows that a network can take, and join what comes back: the three inference protocols.

A protocol is a list of `Window`s, made by one of `PROTOCOLS`. `cut` and `join` follow it block by block, so that
memory does not grow with the signal's length. `join` of an unchanged `cut` gives back the signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

OVERLAP_WINDOW = 1.5
"""Length of overlapping windows, in segments."""

OVERLAP_HOP = 0.5
"""Their distance at most, as a share of their length."""

OVERLAP_FADE = 0.5
"""Length of their cross-fade, likewise."""

SHORTEST_WINDOW = 1 / 3
"""A signal that is shorter than this share of a window is followed by zeros."""

WHOLE_LIMIT = 300 * 16_000
"""Samples that are taken in one pass at most: five minutes, for which IMSE needs some 11 GB."""

_SEVERAL_SEGMENTS = 10
"""Of a signal that is longer than any protocol's window."""


@dataclass(frozen=True)
class Window:
    """One pass of the network, in samples of the whole signal.

    It reads [start, start + length), zeros where the signal has ended, and gives the output [begin, end). The first
    `fade` samples of that are also given by the window before, and cross-faded.
    """

    start: int
    length: int
    begin: int
    end: int
    fade: int = 0


def plan_paper(samples: int, segment: int) -> list[Window]:
    """Consecutive segments, then one more at the very end; short signals padded with zeros; no cross-fade.

    Section "inference" of the released IMSE and MUSE: the protocol of their published numbers.
    """
    if samples < segment:
        return [Window(0, segment, 0, samples)]
    count, rest = divmod(samples, segment)
    ends = [segment * (i + 1) for i in range(count)]
    if rest:
        ends[-1] -= segment - rest
    windows = [Window(i * segment, segment, i * segment, end) for i, end in enumerate(ends)]
    if rest:
        windows.append(Window(samples - segment, segment, samples - segment, samples))
    return windows


def plan_overlap(samples: int, segment: int) -> list[Window]:
    """Evenly spaced windows that overlap by half or more, each faded linearly into the next over half its length.

    A signal shorter than a window is taken at its own length. Chosen with scripts/choose_overlap.py, on speech and
    noise that are not in the test set.
    """
    return spread_windows(samples, int(OVERLAP_WINDOW * segment), OVERLAP_HOP, OVERLAP_FADE)


def spread_windows(samples: int, length: int, hop_share: float, fade_share: float) -> list[Window]:
    """Evenly spaced windows, at most `hop_share` of their length apart, cross-faded over `fade_share` of it.

    The first begins and the last ends with the signal, each fade lies in the middle of its overlap. One window of
    its own length is enough for a signal that is shorter.
    """
    if samples <= length:
        return [Window(0, max(samples, int(SHORTEST_WINDOW * length)), 0, samples)]
    fade = int(fade_share * length)
    steps = -(-(samples - length) // int(hop_share * length))
    starts = [round(i * (samples - length) / steps) for i in range(steps + 1)]
    begins = [0] + [start + (before + length - start - fade) // 2 for before, start in pairwise(starts)]
    ends = [begin + fade for begin in begins[1:]] + [samples]
    fades = [0] + [fade] * steps
    return [
        Window(start, length, begin, end, fade)
        for start, begin, end, fade in zip(starts, begins, ends, fades, strict=True)
    ]


def plan_whole(samples: int, segment: int) -> list[Window]:
    """One window over everything: memory grows with the signal.

    Raises `MemoryError` for a signal of more than `WHOLE_LIMIT` samples.
    """
    del segment
    if samples > WHOLE_LIMIT:
        raise MemoryError(f"it has {samples} samples; one pass takes {WHOLE_LIMIT} at most")
    return [Window(0, samples, 0, samples)]


PROTOCOLS: dict[str, Callable[[int, int], list[Window]]] = {
    "overlap": plan_overlap,
    "paper": plan_paper,
    "whole": plan_whole,
}
"""The protocols by name: (samples of the signal, samples of a segment) → windows in order."""


def repeated_length(protocol: str, segment: int) -> int | None:
    """Samples of the windows that signals of all lengths share; None for protocol "whole", which has none."""
    return None if protocol == "whole" else PROTOCOLS[protocol](_SEVERAL_SEGMENTS * segment, segment)[0].length


def cut(blocks: Iterable[np.ndarray], windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """Blocks `[n, channels]` of a signal → the samples `[length, channels]` that each window reads, in order."""
    source = iter(blocks)
    held: list[np.ndarray] = []
    first, count = 0, 0  # the signal's index of the first held sample, and how many are held
    for window in windows:
        while first + count < window.start + window.length and (block := next(source, None)) is not None:
            held.append(block)
            count += len(block)
        if not held:
            raise ValueError("the signal ended before its first window")
        joined = np.concatenate(held)[window.start - first :]
        held, first, count = [joined], window.start, len(joined)
        piece = joined[: window.length]
        yield np.pad(piece, ((0, window.length - len(piece)), (0, 0)))


def join(pieces: Iterable[np.ndarray], windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """The windows' results `[length, channels]`, in order → blocks `[n, channels]` of the whole signal."""
    tail: np.ndarray | None = None
    for index, (piece, window) in enumerate(zip(pieces, windows, strict=True)):
        span = piece[window.begin - window.start : window.end - window.start].copy()
        if tail is not None and window.fade:
            rise = ((np.arange(window.fade, dtype=np.float32) + 0.5) / window.fade)[:, None]
            span[: window.fade] = tail * (1 - rise) + span[: window.fade] * rise
        next_fade = windows[index + 1].fade if index + 1 < len(windows) else 0
        yield span[: len(span) - next_fade]
        tail = span[len(span) - next_fade :]
