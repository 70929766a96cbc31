"""Validation, mostly with a network that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from config import Config
from data.dataset import Batch, EvalPair
from metrics.pesq import wideband_pesq
from metrics.stoi import stoi
from tests.fixtures.signals import speech_like, with_noise
from tests.fixtures.steps import ALONE
from training import scores, validation
from training.trainer import Trainer
from training.validation import Validated, Validation
from utils.distributed import Group


def pair(name: str, seconds: float, snr_db: float, seed: int) -> EvalPair:
    clean = speech_like(seconds, seed=seed)
    return EvalPair(name, clean.astype(np.float32), with_noise(clean, snr_db, seed).astype(np.float32))


PAIRS = [pair("short", 1.3, 10, 1), pair("long", 2.7, 0, 2)]
SILENT = PAIRS[0]._replace(clean=np.zeros_like(PAIRS[0].clean))  # has neither PESQ nor STOI


def validate(pairs: Sequence[EvalPair], config: Config, network: nn.Module, group: Group = ALONE) -> Validated:
    return Validation(pairs, config, "overlap", group).run(network)


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make the PESQ of a pair its index, without the work; returns the list of scored pairs."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def score_all(given: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, float]]:
        pairs.extend(given)
        return [{"pesq": float(number), "stoi": math.nan} for number in range(len(given))]

    monkeypatch.setattr(validation, "score_all", score_all)
    return pairs


def test_scores_of_an_identity_are_those_of_the_noisy_speech(config: Config) -> None:
    pairs = [PAIRS[0], SILENT, PAIRS[1]]
    validated = validate(pairs, config, nn.Identity())
    for name, measure in (("pesq", wideband_pesq), ("stoi", stoi)):
        expected = np.mean([measure(each.clean, each.noisy) for each in PAIRS])
        assert validated.scores[name] == pytest.approx(expected, abs=1e-3)
    assert validated.unscored == 1
    assert validated.scores.keys() == {"magnitude", "phase", "complex", "loss", "pesq", "stoi"}
    assert all(math.isfinite(score) for score in validated.scores.values())
    for each, enhanced in zip(pairs, validated.enhanced, strict=True):
        assert np.allclose(enhanced, each.noisy, atol=1e-4)


@pytest.mark.usefixtures("numbered")
def test_losses_are_those_of_a_training_step_on_the_same_crop(small_config: Config) -> None:
    """The crop is the middle of the utterance, at a mean power of 1 of the whole noisy utterance."""
    segment = 8000
    config = replace(
        small_config,
        data=replace(small_config.data, segment_size=segment),
        loss=replace(small_config.loss, metric=0.0, time=0.3),
    )
    trainer = Trainer(config, ALONE, None)
    start = (len(PAIRS[0].noisy) - segment) // 2
    gain = np.mean(PAIRS[0].noisy.astype(np.float64) ** 2) ** -0.5
    clean, noisy = ((signal[start : start + segment] * gain).astype(np.float32)[None] for signal in PAIRS[0][1:])
    scores = validate(PAIRS[:1], config, trainer.network).scores
    logs = trainer.step(Batch(np.arange(1), clean, noisy, np.array([True])), 0)
    for name in ("magnitude", "phase", "complex", "time", "loss"):
        assert scores[name] == pytest.approx(logs[name].item(), rel=1e-3), name


@pytest.mark.usefixtures("numbered")
def test_network_is_in_evaluation_mode_and_left_as_it_was(config: Config) -> None:
    class Watched(nn.Identity):
        modes: list[bool]

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.modes.append(self.training or torch.is_grad_enabled())
            return input

    network = Watched().train()
    network.modes = []
    validate(PAIRS[:1], config, network)
    assert network.modes and not any(network.modes)
    assert network.training


def test_processes_share_the_utterances(
    config: Config, numbered: list[tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "gather", lambda _, rows: [rows, [row | {"pesq": 8.0} for row in rows]])
    validated = validate([*PAIRS, SILENT], config, nn.Identity(), Group(1, 2, torch.device("cpu")))
    assert [len(clean) for clean, _ in numbered] == [len(PAIRS[1].clean)]
    assert len(validated.enhanced) == 1
    assert validated.scores["pesq"] == (0 + 8) / 2  # the mean over both processes
    assert math.isnan(validated.scores["stoi"])


def test_utterance_whose_scoring_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> Iterator[tuple[int, object]]:
        yield 1, ImportError("no module named pesq")
        yield 0, {"pesq": 2.5, "stoi": 0.9}

    monkeypatch.setattr(scores, "run_in_processes", run)
    first, second = scores.score_all([(each.clean, each.noisy) for each in PAIRS])
    assert first == {"pesq": 2.5, "stoi": 0.9}
    assert math.isnan(second["pesq"]) and math.isnan(second["stoi"])
    error = capsys.readouterr().err
    assert "utterance 1" in error and "no module named pesq" in error
