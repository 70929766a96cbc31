"""The protocols: their windows, and that joining unchanged windows gives back the signal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from enhance.windows import PROTOCOLS, Window, cut, join, plan_paper, repeated_length, spread_windows

SEGMENT = 1000
WINDOW = 1500  # of protocol "overlap"


def blocks(signal: np.ndarray, size: int = 137) -> list[np.ndarray]:
    return [signal[start : start + size] for start in range(0, len(signal), size)]


def test_paper_windows() -> None:
    assert plan_paper(2300, 1000) == [
        Window(0, 1000, 0, 1000),
        Window(1000, 1000, 1000, 1300),  # only its first r = 300 samples
        Window(1300, 1000, 1300, 2300),  # the whole of the last pass
    ]
    assert plan_paper(2000, 1000) == [Window(0, 1000, 0, 1000), Window(1000, 1000, 1000, 2000)]
    assert plan_paper(700, 1000) == [Window(0, 1000, 0, 700)]
    assert plan_paper(1300, 1000) == [Window(0, 1000, 0, 300), Window(300, 1000, 300, 1300)]


def test_overlapping_windows() -> None:
    # At most 600 apart: 1900 − 1000 = 900 = 2 · 450. They overlap by 550, with fades of 200 in the middle.
    assert spread_windows(1900, 1000, 0.6, 0.2) == [
        Window(0, 1000, 0, 825, 0),
        Window(450, 1000, 625, 1275, 200),
        Window(900, 1000, 1075, 1900, 200),
    ]
    assert PROTOCOLS["overlap"](3000, 1000) == [
        Window(0, 1500, 0, 1500, 0),
        Window(750, 1500, 750, 2250, 750),
        Window(1500, 1500, 1500, 3000, 750),
    ]


def test_overlapping_windows_of_all_lengths() -> None:
    for samples in range(1501, 4500, 61):
        windows = PROTOCOLS["overlap"](samples, SEGMENT)
        for before, after in pairwise(windows):
            assert before.output_end == after.output_start + after.fade
            assert WINDOW / 4 <= after.input_start - before.input_start <= WINDOW / 2 or len(windows) == 2
            assert before.output_start < after.output_start
        assert (windows[0].output_start, windows[-1].output_end) == (0, samples)
        assert all(
            window.input_start <= window.output_start and window.output_end <= window.input_start + window.input_length
            for window in windows
        )


def test_whole_signals_have_a_limit() -> None:
    assert PROTOCOLS["whole"](4_800_000, SEGMENT) == [Window(0, 4_800_000, 0, 4_800_000)]
    with pytest.raises(MemoryError, match="4800001 samples"):
        PROTOCOLS["whole"](4_800_001, SEGMENT)


def test_repeated_length() -> None:
    assert [repeated_length(protocol, 1000) for protocol in ("paper", "overlap", "whole")] == [1000, 1500, None]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("samples", [1, 999, 1000, 1001, 1499, 1760, 2000, 2001, 5003])
def test_joined_windows_give_back_the_signal(protocol: str, samples: int) -> None:
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, 2)).astype(np.float32)
    windows = PROTOCOLS[protocol](samples, SEGMENT)
    pieces = list(cut(blocks(signal), windows))
    lengths = {"paper": SEGMENT, "overlap": min(max(samples, SEGMENT // 2), WINDOW), "whole": samples}
    assert {len(piece) for piece in pieces} == {lengths[protocol]}
    joined = np.concatenate(list(join(pieces, windows)))
    assert joined.shape == signal.shape
    assert np.abs(joined - signal).max() < 1e-6


def test_cross_fade_is_linear() -> None:
    windows = [Window(0, 6, 0, 6), Window(2, 6, 2, 8, fade=4)]
    joined = np.concatenate(list(join([np.zeros((6, 1)), np.ones((6, 1))], windows)))[:, 0]
    assert np.allclose(joined, [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_cut_holds_at_most_a_window_and_a_block() -> None:
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for block in blocks(np.zeros((50_000, 1), np.float32), 100):
            taken += len(block)
            yield block

    windows = PROTOCOLS["overlap"](50_000, SEGMENT)
    for piece, window in zip(cut(source(), windows), windows, strict=True):
        assert len(piece) == WINDOW
        assert taken <= window.input_start + WINDOW + 100
