"""Scores of file pairs: rates, channels, lengths, unusable files; and their summary as table, CSV and JSON."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from data.file_lists import Utterance
from metrics import score as module
from metrics.score import METRICS, PairScores, score_pair, score_pairs, score_signals
from metrics.summary import format_table
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from utils.processes import LostProcessError

CLEAN = speech_like(2)
NOISY = with_noise(CLEAN, 25)


def pair(folder: Path, clean: np.ndarray = CLEAN, noisy: np.ndarray = NOISY, rate: int = 16_000) -> Utterance:
    save(folder / "clean.wav", clean, rate)
    save(folder / "noisy.wav", noisy, rate)
    return Utterance("a", folder / "clean.wav", folder / "noisy.wav")


def undefined(result: PairScores) -> set[str]:
    return {name for name, value in result.values.items() if math.isnan(value)}


def test_a_pair_has_every_score(tmp_path: Path) -> None:
    result = score_pair(pair(tmp_path), "published")
    assert (result.id, result.reason) == ("a", None)
    assert list(result.values) == list(METRICS)
    clean, noisy = (np.rint(signal * 32768) / 32768 for signal in (CLEAN, NOISY))
    expected, reasons = score_signals(clean, noisy, "published")
    assert reasons == []
    assert result.values == pytest.approx(expected, abs=1e-6)


def test_other_rates_are_resampled_before_the_lengths_are_compared(tmp_path: Path) -> None:
    clean = speech_like(1, rate=48_000)
    result = score_pair(pair(tmp_path, clean, with_noise(clean, 25)[:-1500], 48_000), "published")
    assert result.reason is None
    # Two thirds of white noise at 48 kHz lie above 8 kHz and are removed.
    assert result.values["si_sdr"] == pytest.approx(25 + 10 * math.log10(3), abs=0.5)


def test_scores_are_averaged_over_channels(tmp_path: Path) -> None:
    channels = [score_pair(pair(tmp_path, CLEAN, noisy), "published") for noisy in (NOISY, with_noise(CLEAN, 10))]
    stereo = pair(tmp_path, np.stack([CLEAN, CLEAN], axis=1), np.stack([NOISY, with_noise(CLEAN, 10)], axis=1))
    expected = {name: (channels[0].values[name] + channels[1].values[name]) / 2 for name in METRICS}
    assert score_pair(stereo, "published").values == pytest.approx(expected)


def test_length_differences_up_to_a_frame_are_cut(tmp_path: Path) -> None:
    expected = score_pair(pair(tmp_path, CLEAN[:-512], NOISY[:-512]), "published")
    for clean, noisy in ((CLEAN, NOISY[:-512]), (CLEAN[:-512], NOISY)):
        result = score_pair(pair(tmp_path, clean, noisy), "published")
        assert result.reason is None
        assert result.values == pytest.approx(expected.values)


def test_a_metric_that_fails_leaves_the_others(tmp_path: Path) -> None:
    short = score_pair(pair(tmp_path, CLEAN[:5000], NOISY[:5000]), "published")
    assert str(short.reason).startswith("no STOI")
    assert undefined(short) == {"stoi", "estoi"}
    long = score_pair(pair(tmp_path, np.tile(CLEAN, 21), np.tile(NOISY, 21)), "published")
    assert str(long.reason).startswith("no PESQ: 42.0 s")
    assert undefined(long) == {"pesq", "csig", "cbak", "covl"}


def test_long_files_are_rejected_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 1)
    assert f"{tmp_path / 'clean.wav'}: longer than 1 s" in str(score_pair(pair(tmp_path), "published").reason)


def test_results_are_in_order_and_lost_processes_are_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [(2, LostProcessError("the process died")), (0, MemoryError("no\nroom")), (1, scores("b", 1.0))]
    monkeypatch.setattr(module, "run_in_processes", lambda *_: iter(outcomes))
    results = score_pairs([Utterance(name, tmp_path, tmp_path) for name in "abc"], "published", jobs=1)
    reasons = [(result.id, result.reason) for result in results]
    assert reasons == [("a", "MemoryError: no room"), ("b", None), ("c", "the process died")]
    assert undefined(results[0]) == undefined(results[2]) == set(METRICS)


def scores(name: str, value: float, reason: str | None = None) -> PairScores:
    return PairScores(name, dict.fromkeys(METRICS, value), reason)


def test_the_table_names_the_variant_and_counts_the_files() -> None:
    results = [scores("a", 1.0), scores("b", 2.0), scores("c", math.nan, "silent"), scores("d", 3.0)]
    lines = format_table(results, "loizou").splitlines()
    assert lines[0].startswith("4 files, 1 failed; composite measures 'loizou'")
    assert lines[2].split() == ["PESQ", "2.0000", "±", "2.4841", "3"]
    without = format_table([scores("a", math.nan, "silent")], "published").splitlines()
    assert without[2].split() == ["PESQ", "-", "-", "0"]
