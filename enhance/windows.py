"""Inference protocols: how a signal is cut into windows for the network, and how the enhanced windows are joined.

A protocol is a function in `PROTOCOLS` that returns a list of `Window`. `cut` and `join` work block by block, so that
memory does not grow with the signal. `join` of unchanged windows gives back the signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Protocol "overlap", chosen by PESQ on speech and noise that are not in the test set.
OVERLAP_WINDOW = 1.5
"""Window length in segments."""

OVERLAP_HOP = 0.5
"""Maximum hop, as a fraction of the window length."""

OVERLAP_FADE = 0.5
"""Length of the cross-fade, as a fraction of the window length."""

SHORTEST_WINDOW = 1 / 3
"""Signals shorter than this fraction of a window are zero-padded to it."""

WHOLE_LIMIT = 300 * 16_000
"""Maximum number of samples of protocol "whole": five minutes, for which IMSE needs about 11 GB."""


@dataclass(frozen=True)
class Window:
    """One pass of the network; all positions are samples of the signal.

    The input starts at `input_start` and has `input_length` samples, zero-padded at the end of the signal. The output
    is [output_start, output_end), and its first `fade` samples are cross-faded with those of the window before.
    """

    input_start: int
    input_length: int
    output_start: int
    output_end: int
    fade: int = 0


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
    """Plan windows of 1.5 segments that overlap by at least half and are cross-faded over half of their length."""
    return spread_windows(samples, int(OVERLAP_WINDOW * segment), OVERLAP_HOP, OVERLAP_FADE)


def spread_windows(samples: int, length: int, max_hop: float, fade: float) -> list[Window]:
    """Plan evenly spaced windows of `length` samples, the first and the last flush with the signal.

    `max_hop` and `fade` are fractions of the length; each cross-fade is centred in its overlap. A signal that is not
    longer than a window becomes one window of its own length.
    """
    if samples <= length:
        return [Window(0, max(samples, int(SHORTEST_WINDOW * length)), 0, samples)]
    fade_samples = int(fade * length)
    hops = -(-(samples - length) // int(max_hop * length))
    starts = [round(i * (samples - length) / hops) for i in range(hops + 1)]
    begins = [0] + [start + (before + length - start - fade_samples) // 2 for before, start in pairwise(starts)]
    ends = [begin + fade_samples for begin in begins[1:]] + [samples]
    fades = [0] + [fade_samples] * hops
    return [Window(start, length, *rest) for start, *rest in zip(starts, begins, ends, fades, strict=True)]


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
        yield np.pad(piece, ((0, window.input_length - len(piece)), (0, 0)))


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
