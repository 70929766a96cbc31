"""One pair of files to its scores: rates, channels, lengths, and every kind of file that has none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import AudioFormat, write_audio
from data.file_lists import Utterance
from metrics import score as module
from metrics.score import METRICS, score_pair, score_pairs, score_signals
from tests.fixtures.signals import speech_like, with_noise
from utils.processes import LostProcessError

CLEAN = speech_like(2)
NOISY = with_noise(CLEAN, 25)


def write(path: Path, *channels: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    write_audio(path, np.stack(channels, axis=1), AudioFormat(rate, len(channels), "WAV", subtype))
    return path


def pair(tmp_path: Path, clean: np.ndarray = CLEAN, noisy: np.ndarray = NOISY) -> Utterance:
    return Utterance("a", write(tmp_path / "clean.wav", clean), write(tmp_path / "noisy.wav", noisy))


def test_a_pair_has_every_score(tmp_path: Path) -> None:
    result = score_pair(pair(tmp_path), "published")
    assert result.id == "a"
    assert result.reason is None
    assert list(result.values) == list(METRICS)
    clean, noisy = (np.rint(signal * 32768) / 32768 for signal in (CLEAN, NOISY))
    expected, reasons = score_signals(clean, noisy, "published")
    assert reasons == []
    for name in METRICS:
        assert result.values[name] == pytest.approx(expected[name], abs=1e-6)


def test_the_versions_differ_in_the_composite_alone() -> None:
    published, _ = score_signals(CLEAN, NOISY, "published")
    loizou, _ = score_signals(CLEAN, NOISY, "loizou")
    assert {name for name in METRICS if published[name] != loizou[name]} == {"csig", "cbak", "covl"}
    assert all(published[name] > loizou[name] for name in ("csig", "cbak", "covl"))


def test_another_rate_is_resampled(tmp_path: Path) -> None:
    clean = speech_like(2, rate=48_000)
    noisy = with_noise(clean, 25)
    files = Utterance(
        "a",
        write(tmp_path / "clean.wav", clean, rate=48_000),
        write(tmp_path / "noisy.wav", noisy, rate=48_000),
    )
    result = score_pair(files, "published")
    assert result.reason is None
    # White noise at 48 kHz: two thirds of it lie above 8 kHz and are gone at 16 kHz.
    assert result.values["si_sdr"] == pytest.approx(25 + 10 * math.log10(3), abs=0.5)


def test_several_channels_are_averaged(tmp_path: Path) -> None:
    louder = with_noise(CLEAN, 10)
    stereo = Utterance("a", write(tmp_path / "clean.wav", CLEAN, CLEAN), write(tmp_path / "noisy.wav", NOISY, louder))
    result = score_pair(stereo, "published")
    (tmp_path / "mono").mkdir()
    first = score_pair(pair(tmp_path / "mono", CLEAN, NOISY), "published")
    second = score_pair(pair(tmp_path / "mono", CLEAN, louder), "published")
    for name in METRICS:
        assert result.values[name] == pytest.approx((first.values[name] + second.values[name]) / 2)


@pytest.mark.parametrize("missing", [1, 512])
def test_up_to_a_frame_of_difference_is_cut(tmp_path: Path, missing: int) -> None:
    expected = score_pair(pair(tmp_path, CLEAN[:-missing], NOISY[:-missing]), "published")
    for clean, noisy in ((CLEAN, NOISY[:-missing]), (CLEAN[:-missing], NOISY)):
        assert score_pair(pair(tmp_path, clean, noisy), "published") == expected
    assert expected.reason is None


def test_a_larger_difference_names_both_lengths(tmp_path: Path) -> None:
    result = score_pair(pair(tmp_path, CLEAN, NOISY[:-513]), "published")
    assert result.reason == "the lengths differ: clean 32000, other 31487 samples at 16 kHz"
    assert all(math.isnan(value) for value in result.values.values())


def test_a_length_that_differs_at_a_higher_rate_is_counted_at_16_khz(tmp_path: Path) -> None:
    clean = speech_like(2, rate=48_000)
    files = Utterance(
        "a",
        write(tmp_path / "clean.wav", clean, rate=48_000),
        write(tmp_path / "noisy.wav", with_noise(clean, 25)[:-1500], rate=48_000),
    )
    assert score_pair(files, "published").reason is None


@pytest.mark.parametrize(
    ("clean", "noisy", "reason"),
    [
        (CLEAN, np.zeros_like(CLEAN), "the other signal is silent"),
        (np.zeros_like(CLEAN), NOISY, "the clean signal is silent"),
        (CLEAN[:3999], NOISY[:3999], "shorter than 1/4 s (3999 samples at 16 kHz)"),
    ],
)
def test_signals_without_a_score(tmp_path: Path, clean: np.ndarray, noisy: np.ndarray, reason: str) -> None:
    result = score_pair(pair(tmp_path, clean, noisy), "published")
    assert result.reason == reason
    assert all(math.isnan(value) for value in result.values.values())


def test_files_of_different_rates_or_channels(tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.wav", CLEAN)
    fast = write(tmp_path / "fast.wav", NOISY, rate=48_000)
    stereo = write(tmp_path / "stereo.wav", NOISY, NOISY)
    assert score_pair(Utterance("a", clean, fast), "published").reason == (
        "the rates differ: clean 16000 Hz, other 48000 Hz"
    )
    assert score_pair(Utterance("a", clean, stereo), "published").reason == (
        "the channels differ: clean has 1, other 2"
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.wav", CLEAN)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(clean.read_bytes()[:20_000])
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.where(np.arange(32_000) == 77, np.nan, NOISY), 16_000, subtype="FLOAT")
    text = tmp_path / "text.wav"
    text.write_text("not audio\n", encoding="utf-8")
    for path, words in (
        (cut, "cut short"),
        (nan, "holds NaN or infinite samples (the first at sample 77)"),
        (text, "not an audio file"),
        (tmp_path / "none.wav", "cannot be read: No such file"),
    ):
        reason = score_pair(Utterance("a", clean, path), "published").reason
        assert reason is not None
        assert str(path) in reason
        assert words in reason
        assert "\n" not in reason


def test_a_measure_that_fails_alone_leaves_the_others(tmp_path: Path) -> None:
    short = score_pair(pair(tmp_path, CLEAN[:5000], NOISY[:5000]), "published")
    assert short.reason == "no STOI: less than one analysis segment (0.4 s) of speech"
    assert {name for name in METRICS if math.isnan(short.values[name])} == {"stoi", "estoi"}
    long = score_pair(pair(tmp_path, np.tile(CLEAN, 21), np.tile(NOISY, 21)), "published")
    assert long.reason == "no PESQ: 42.0 s long, P.862 is for at most 40 s; split it"
    assert {name for name in METRICS if math.isnan(long.values[name])} == {"pesq", "csig", "cbak", "covl"}


def test_memory_is_not_filled_with_an_endless_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 1)
    reason = score_pair(pair(tmp_path), "published").reason
    assert reason == f"{tmp_path / 'clean.wav'}: longer than 1 s; split it"


def test_a_lost_process_and_an_unforeseen_error_are_reasons_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [(1, LostProcessError("the process that worked on it died")), (0, MemoryError("no\nroom"))]
    monkeypatch.setattr(module, "run_in_processes", lambda *_: iter(outcomes))
    results = score_pairs([Utterance(name, tmp_path, tmp_path) for name in "ab"], "published", jobs=1)
    assert [(result.id, result.reason) for result in results] == [
        ("a", "MemoryError: no room"),
        ("b", "the process that worked on it died"),
    ]
    assert all(math.isnan(value) for result in results for value in result.values.values())


def test_many_pairs_keep_their_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = pair(tmp_path)
    missing = Utterance("missing", good.clean, tmp_path / "none.wav")
    results = score_pairs([good, missing, good], "loizou", jobs=2)
    assert [result.id for result in results] == ["a", "missing", "a"]
    assert results[0] == results[2]
    assert results[0].values == pytest.approx(score_pair(good, "loizou").values)
    assert results[1].reason is not None
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
