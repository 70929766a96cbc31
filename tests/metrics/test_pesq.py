"""PESQ, STOI and ESTOI: anchors, agreement with `pystoi`, and each way to have no score."""

from __future__ import annotations

import numpy as np
import pystoi
import pytest

from metrics import stoi as intelligibility
from metrics.pesq import MAX_PESQ_SECONDS, wideband_pesq
from metrics.signals import ScoreError
from metrics.stoi import estoi, stoi
from tests.fixtures.signals import speech_like, with_noise

MEASURES = (wideband_pesq, stoi, estoi)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return speech_like(3)


def test_clean_against_itself(clean: np.ndarray) -> None:
    assert wideband_pesq(clean, clean) == pytest.approx(4.644, abs=5e-4)
    assert stoi(clean, clean) == pytest.approx(1)
    assert estoi(clean, clean) == pytest.approx(1)


@pytest.mark.parametrize("measure", MEASURES)
def test_less_noise_scores_higher(measure, clean: np.ndarray) -> None:
    scores = [measure(clean, with_noise(clean, snr_db)) for snr_db in (0, 15, 30, 45)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1] - 0.1


@pytest.mark.parametrize("measure", MEASURES)
def test_single_precision_scores_the_same(measure, clean: np.ndarray) -> None:
    degraded = with_noise(clean, 20)
    single = measure(clean.astype(np.float32), degraded.astype(np.float32))
    assert single == pytest.approx(measure(clean, degraded), abs=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("degraded", "reason"),
    [
        (np.zeros(48_000), "the other signal is silent"),
        (np.full(48_000, 0.5), "the other signal is silent"),
        (np.full(48_000, np.nan), "the other signal holds NaN or infinite samples"),
        (np.ones(47_999), "not two mono signals of one length"),
    ],
)
def test_what_cannot_be_scored_says_why(measure, degraded: np.ndarray, reason: str, clean: np.ndarray) -> None:
    with pytest.raises(ScoreError, match=reason):
        measure(clean, degraded)


@pytest.mark.parametrize("measure", MEASURES)
def test_under_a_quarter_of_a_second_is_too_short(measure, clean: np.ndarray) -> None:
    with pytest.raises(ScoreError, match=r"shorter than 1/4 s \(3999 samples"):
        measure(clean[:3999], with_noise(clean, 20)[:3999])


@pytest.mark.parametrize(
    ("result", "reason"), [(-7, "no utterance found in it"), (-6, "shorter than 1/4 s"), (-1, "result -1.0")]
)
def test_a_negative_pesq_is_no_score(
    result: int, reason: str, clean: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.pesq.pesq.pesq", lambda *_, **__: result)
    with pytest.raises(ScoreError, match=f"no PESQ: {reason}"):
        wideband_pesq(clean, clean)


def test_pesq_of_a_click_at_the_end_is_not_a_number_and_no_score() -> None:
    click = np.zeros(4000)
    click[3960] = 1.0
    with pytest.raises(ScoreError, match="no PESQ: result nan"):
        wideband_pesq(click, click)


def test_pesq_refuses_more_than_its_program_can_hold() -> None:
    long = np.tile(speech_like(3), 14)[: (MAX_PESQ_SECONDS + 1) * 16_000]
    with pytest.raises(ScoreError, match=r"no PESQ: 41\.0 s long, P\.862 is for at most 40 s"):
        wideband_pesq(long, long)


@pytest.mark.parametrize("measure", [stoi, estoi])
def test_stoi_of_too_little_speech_is_no_score(measure) -> None:
    blip = np.zeros(16_000)
    blip[4000:8000] = speech_like(0.25)
    with pytest.raises(ScoreError, match="less than one analysis segment"):
        measure(blip, with_noise(blip, 20))


@pytest.mark.parametrize("seed", range(4))
def test_stoi_is_close_to_pystoi_and_estoi_is_pystoi(seed: int) -> None:
    clean = speech_like(2.3, seed=seed)
    degraded = with_noise(clean, 5, seed=seed)
    # A frame at the threshold of silence may be judged otherwise: see the module's docstring.
    assert stoi(clean, degraded) == pytest.approx(pystoi.stoi(clean, degraded, 16_000), abs=0.02)
    assert estoi(clean, degraded) == pytest.approx(pystoi.stoi(clean, degraded, 16_000, extended=True), abs=1e-9)


def test_stoi_equals_pystoi_where_no_frame_is_silent() -> None:
    clean = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    degraded = with_noise(clean, 0)
    assert stoi(clean, degraded) == pytest.approx(pystoi.stoi(clean, degraded, 16_000), abs=5e-4)


def test_blocks_of_segments_do_not_change_stoi(clean: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    degraded = with_noise(clean, 5)
    whole = stoi(clean, degraded)
    monkeypatch.setattr(intelligibility, "SEGMENTS_AT_A_TIME", 7)
    assert stoi(clean, degraded) == pytest.approx(whole, rel=1e-12)


def test_estoi_repeats_exactly_and_leaves_the_random_numbers_alone(clean: np.ndarray) -> None:
    degraded = with_noise(clean, 5)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    scores = {estoi(clean, degraded) for _ in range(3)}
    assert len(scores) == 1
    assert np.random.random() == expected
