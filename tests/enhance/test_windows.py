"""The protocols: their windows, and that joining unchanged windows gives back the signal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from enhance.windows import PROTOCOLS, Window, cut, join, plan_paper, repeated_length, spread_windows

SEGMENT = 1000


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
    # At most 600 apart: 1900 − 1000 = 900 = 2 · 450. They overlap by 550, of which 450 are cross-faded, so that at most
    # two windows contribute to a sample.
    assert spread_windows(1900, 1000, 0.6) == [
        Window(0, 1000, 0, 950, 0),
        Window(450, 1000, 500, 1400, 450),
        Window(900, 1000, 950, 1900, 450),
    ]
    assert spread_windows(1300, 1000, 0.6) == [Window(0, 1000, 0, 1000), Window(300, 1000, 300, 1300, 700)]
    assert spread_windows(700, 1000, 0.6) == [Window(0, 1000, 0, 700, mirrored=True)]
    assert PROTOCOLS["averaged"](3000, 1000) == [
        Window(0, 1500, 0, 1500, 0),
        Window(750, 1500, 750, 2250, 750),
        Window(1500, 1500, 1500, 3000, 750),
    ]
    assert PROTOCOLS["overlap"](4000, 1000) == [
        Window(0, 1500, 0, 1500, 0),
        Window(1250, 1500, 1250, 2750, 250),
        Window(2500, 1500, 2500, 4000, 250),
    ]


@pytest.mark.parametrize(
    ("protocol", "length", "max_hop", "passes"), [("overlap", 1500, 1275, 1.2), ("averaged", 1500, 750, 2.01)]
)
def test_overlapping_windows_of_all_lengths(protocol: str, length: int, max_hop: int, passes: float) -> None:
    for samples in range(length + 1, 4500, 61):
        windows = PROTOCOLS[protocol](samples, SEGMENT)
        for before, after in pairwise(windows):
            assert before.output_end == after.output_start + after.fade
            assert max_hop / 2 <= after.input_start - before.input_start <= max_hop or len(windows) == 2
            assert before.output_start + before.fade <= after.output_start
        assert (windows[0].output_start, windows[-1].output_end) == (0, samples)
        assert all(
            window.input_start <= window.output_start and window.output_end <= window.input_start + window.input_length
            for window in windows
        )
    assert len(PROTOCOLS[protocol](100_000, SEGMENT)) * length <= passes * 100_000


def test_whole_signals_have_a_limit() -> None:
    assert PROTOCOLS["whole"](4_800_000, SEGMENT) == [Window(0, 4_800_000, 0, 4_800_000)]
    with pytest.raises(MemoryError, match="4800001 samples"):
        PROTOCOLS["whole"](4_800_001, SEGMENT)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("samples", [1, 2, 999, 1000, 1001, 1499, 1760, 2000, 2001, 5003])
def test_joined_windows_give_back_the_signal(protocol: str, samples: int) -> None:
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, 2)).astype(np.float32)
    windows = PROTOCOLS[protocol](samples, SEGMENT)
    pieces = list(cut(blocks(signal), windows))
    assert {len(piece) for piece in pieces} == {repeated_length(protocol, SEGMENT) or samples}
    joined = np.concatenate(list(join(pieces, windows)))
    assert joined.shape == signal.shape
    assert np.abs(joined - signal).max() < 1e-6


def test_cross_fade_is_linear() -> None:
    windows = [Window(0, 6, 0, 6), Window(2, 6, 2, 8, fade=4)]
    joined = np.concatenate(list(join([np.zeros((6, 1)), np.ones((6, 1))], windows)))[:, 0]
    assert np.allclose(joined, [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_short_signals_are_continued() -> None:
    signal = np.array([[1.0], [2], [3]], np.float32)
    (zeros,) = cut([signal], [Window(0, 5, 0, 3)])
    (mirrored,) = cut([signal], [Window(0, 8, 0, 3, mirrored=True)])
    assert zeros[:, 0].tolist() == [1, 2, 3, 0, 0]
    assert mirrored[:, 0].tolist() == [1, 2, 3, 3, 2, 1, 1, 2]


def test_cut_holds_at_most_a_window_and_a_block() -> None:
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for block in blocks(np.zeros((50_000, 1), np.float32), 100):
            taken += len(block)
            yield block

    windows = PROTOCOLS["overlap"](50_000, SEGMENT)
    for piece, window in zip(cut(source(), windows), windows, strict=True):
        assert len(piece) == window.input_length
        assert taken <= window.input_start + window.input_length + 100
