"""PESQ labels of batches; tests/utils/test_processes.py has crashes and hangs.

`score` stands in for PESQ: a crop's first sample is its label, or says what happens.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metrics.pesq import wideband_pesq
from metrics.signals import ScoreError
from training.pesq_labels import PesqLabeler
from utils.processes import LostProcessError

LOST, BUG, NO_SCORE = 100.0, 200.0, 300.0


def score(clean: np.ndarray, enhanced: np.ndarray) -> float:
    label = float(clean[0])
    assert np.array_equal(enhanced, -clean)
    if label == LOST:
        raise LostProcessError("its process died")
    if label == BUG:
        raise ValueError("a bug")
    if label == NO_SCORE:
        raise ScoreError("no PESQ")
    return 1 + 3.5 * label


def batch(*labels: float) -> tuple[np.ndarray, torch.Tensor]:
    clean = np.repeat(np.array(labels, dtype=np.float32)[:, None], 8, axis=1)
    return clean, torch.from_numpy(-clean)


def test_labels_are_normalized_pesq_and_the_arrays_may_change() -> None:
    from tests.fixtures.signals import speech_like, with_noise  # here, because SciPy would slow the processes' start

    clean = np.stack([speech_like(1, seed=seed) for seed in range(4)]).astype(np.float32)
    enhanced = np.stack([with_noise(crop, 10) for crop in clean]).astype(np.float32)
    clean[3] = 0
    expected = [np.float32((wideband_pesq(clean[row], enhanced[row]) - 1) / 3.5) for row in range(3)]
    with PesqLabeler(workers=2) as labeler:
        pending = labeler.submit(clean, torch.from_numpy(enhanced))
        clean[:], enhanced[:] = 0, 0
        labels = labeler.collect(pending)
    assert labels.dtype == np.float32
    assert labels[:3].tolist() == expected and len(set(expected)) == 3
    assert np.isnan(labels[3])


def test_a_lost_process_costs_one_label(capsys: pytest.CaptureFixture[str]) -> None:
    with PesqLabeler(workers=1, score=score) as labeler:
        pending = [labeler.submit(*batch(1, LOST, 2)), labeler.submit(*batch(5))]
        assert labeler.collect(pending[1]).tolist() == [5]
        np.testing.assert_array_equal(labeler.collect(pending[0]), [1, math.nan, 2])
    (line,) = capsys.readouterr().err.splitlines()
    assert "no label" in line and "died" in line


def test_missing_score_is_silent_and_a_bug_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with PesqLabeler(workers=1, score=score) as labeler:
        np.testing.assert_array_equal(labeler.collect(labeler.submit(*batch(NO_SCORE, 1))), [math.nan, 1])
        assert capsys.readouterr().err == ""
        with pytest.raises(ValueError, match="a bug"):
            labeler.collect(labeler.submit(*batch(BUG)))
