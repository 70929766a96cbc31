"""Inference protocols: how a signal is cut into windows for the network, and how the enhanced windows are joined.

A protocol is a function in `PROTOCOLS` that returns a list of `Window`. `cut` and `join` work block by block, so that
memory does not grow with the signal. `join` of unchanged windows gives back the signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

OVERLAP_WINDOW = 1.5
"""Window length of protocols "overlap" and "averaged" in segments; see docs/REPRODUCTION.md for the choice."""

MAX_HOP = {1: 0.85, 2: 0.5}
"""Maximum hop, as a fraction of the window length, by the number of passes over each sample of a long signal."""

WHOLE_LIMIT = 300 * 16_000
"""Maximum number of samples of protocol "whole": five minutes, for which IMSE needs about 11 GB."""


@dataclass(frozen=True)
class Window:
    """One pass of the network; all positions are samples of the signal.

    The input starts at `input_start` and has `input_length` samples; a signal that ends before is continued by zeros,
    or if `mirrored` by its mirror image. The output is [output_start, output_end), and its first `fade` samples are
    cross-faded with those of the window before.
    """

    input_start: int
    input_length: int
    output_start: int
    output_end: int
    fade: int = 0
    mirrored: bool = False


def plan_paper(samples: int, segment: int) -> list[Window]:
    """Plan consecutive segments and one more that ends with the signal, without cross-fade.

    A signal shorter than a segment is zero-padded. This is the protocol of the published numbers (section "inference"
    of the released IMSE and MUSE).
    """
    if samples < segment:
        return [Window(0, segment, 0, samples)]
    count, rest = divmod(samples, segment)
    windows = [Window(i * segment, segment, i * segment, (i + 1) * segment) for i in range(count)]
    if rest:  # the last full segment gives only its first `rest` samples, the one at the end all of its own
        start = (count - 1) * segment
        windows[-1] = Window(start, segment, start, start + rest)
        windows.append(Window(samples - segment, segment, samples - segment, samples))
    return windows


def plan_overlap(samples: int, segment: int) -> list[Window]:
    """Plan windows of 1.5 segments that overlap by at least 15 %: at most 1.2 passes over a long signal."""
    return spread_windows(samples, int(OVERLAP_WINDOW * segment), MAX_HOP[1])


def plan_averaged(samples: int, segment: int) -> list[Window]:
    """Plan windows of 1.5 segments that overlap by at least half: two passes over each sample, which are averaged."""
    return spread_windows(samples, int(OVERLAP_WINDOW * segment), MAX_HOP[2])


def spread_windows(samples: int, length: int, max_hop: float) -> list[Window]:
    """Plan evenly spaced windows of `length` samples, the first and the last flush with the signal.

    `max_hop` is a fraction of the window length. Windows are cross-faded over their whole overlap, or a part of it, so
    that at most two windows contribute to each sample. A shorter signal is mirrored: then all windows have one length,
    for which a network can be compiled.
    """
    if samples <= length:
        return [Window(0, length, 0, samples, mirrored=True)]
    hops = -(-(samples - length) // int(max_hop * length))
    starts = [round(i * (samples - length) / hops) for i in range(hops + 1)]
    widest = max(after - before for before, after in pairwise(starts))
    fade = min(length - widest, (samples - length) // hops) if hops > 1 else length - widest
    begins = [0] + [start + (before + length - start - fade) // 2 for before, start in pairwise(starts)]
    ends = [begin + fade for begin in begins[1:]] + [samples]
    fades = [0] + [fade] * hops
    return [
        Window(start, length, begin, end, fade)
        for start, begin, end, fade in zip(starts, begins, ends, fades, strict=True)
    ]


def plan_whole(samples: int, segment: int) -> list[Window]:
    """Plan one window over the whole signal; memory grows with its length.

    Raises `MemoryError` for more than `WHOLE_LIMIT` samples.
    """
    del segment
    if samples > WHOLE_LIMIT:
        raise MemoryError(f"it has {samples} samples; one pass takes {WHOLE_LIMIT} at most")
    return [Window(0, samples, 0, samples)]


PROTOCOLS: dict[str, Callable[[int, int], list[Window]]] = {
    "overlap": plan_overlap,
    "averaged": plan_averaged,
    "paper": plan_paper,
    "whole": plan_whole,
}
"""By name, functions (samples of the signal, samples of a segment) → windows in order."""


def repeated_length(protocol: str, segment: int) -> int | None:
    """Return the window length of long signals, in samples; None for protocol "whole", which has none."""
    return None if protocol == "whole" else PROTOCOLS[protocol](10 * segment, segment)[0].input_length


def cut(blocks: Iterable[np.ndarray], windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """Cut a signal in blocks `[n, channels]` into the inputs `[length, channels]` of its windows."""
    source = iter(blocks)
    held: list[np.ndarray] = []
    first, count = 0, 0  # position of the first sample in `held`, and number of samples in it
    for window in windows:
        while first + count < window.input_start + window.input_length and (block := next(source, None)) is not None:
            held.append(block)
            count += len(block)
        if not held:
            raise ValueError("the signal ended before its first window")
        joined = np.concatenate(held)[window.input_start - first :]
        held, first, count = [joined], window.input_start, len(joined)
        piece = joined[: window.input_length]
        padding = (0, window.input_length - len(piece)), (0, 0)
        yield np.pad(piece, padding, mode="symmetric" if window.mirrored else "constant")


def join(pieces: Iterable[np.ndarray], windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """Join the enhanced windows `[length, channels]` to blocks `[n, channels]` of the signal.

    Raises `ValueError` if there are fewer or more pieces than windows.
    """
    tail: np.ndarray | None = None
    for index, (piece, window) in enumerate(zip(pieces, windows, strict=True)):
        span = piece[window.output_start - window.input_start : window.output_end - window.input_start].copy()
        if tail is not None and window.fade:
            rise = ((np.arange(window.fade, dtype=np.float32) + 0.5) / window.fade)[:, None]
            span[: window.fade] = tail * (1 - rise) + span[: window.fade] * rise
        next_fade = windows[index + 1].fade if index + 1 < len(windows) else 0
        yield span[: len(span) - next_fade]
        tail = span[len(span) - next_fade :]
