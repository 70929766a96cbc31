"""Validation scores what a user would get; here from a network that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from config import Config
from data.dataset import EvalPair
from metrics.pesq import wideband_pesq
from metrics.stoi import stoi
from tests.fixtures.signals import speech_like, with_noise
from training import validation
from training.validation import Pair, Validated, Validation
from utils.distributed import Group

ALONE = Group(0, 1, torch.device("cpu"))


def example(name: str, seconds: float, snr_db: float, seed: int) -> EvalPair:
    clean = speech_like(seconds, seed=seed)
    return EvalPair(name, clean.astype(np.float32), with_noise(clean, snr_db, seed).astype(np.float32))


EXAMPLES = [example("short", 1.3, 10, 1), example("long", 2.7, 0, 2)]
SILENT = EXAMPLES[0]._replace(clean=np.zeros_like(EXAMPLES[0].clean))
"""Has neither PESQ nor STOI."""


def validate(examples: Sequence[EvalPair], config: Config, network: nn.Module, group: Group = ALONE) -> Validated:
    return Validation(examples, config, "overlap", group).run(network)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """Gives a pair its number as its PESQ, without the work; the pairs."""
    pairs: list[Pair] = []

    def score_all(given: Sequence[Pair]) -> list[dict[str, float]]:
        pairs.extend(given)
        return [{"pesq": float(number), "stoi": math.nan} for number in range(len(given))]

    monkeypatch.setattr(validation, "score_all", score_all)
    return pairs


def test_scores_are_those_of_the_noisy_speech_and_silence_has_none(config: Config) -> None:
    validated = validate([EXAMPLES[0], SILENT, EXAMPLES[1]], config, nn.Identity())
    for name, measure in (("pesq", wideband_pesq), ("stoi", stoi)):
        expected = np.mean([measure(each.clean, each.noisy) for each in EXAMPLES])
        assert validated.scores[name] == pytest.approx(expected, abs=1e-3)
    assert validated.unscored == 1
    assert validated.scores.keys() == {"magnitude", "phase", "complex", "loss", "pesq", "stoi"}
    assert all(math.isfinite(score) for score in validated.scores.values())
    for each, enhanced in zip([EXAMPLES[0], SILENT, EXAMPLES[1]], validated.enhanced, strict=True):
        assert np.allclose(enhanced, each.noisy, atol=1e-5)


@pytest.mark.usefixtures("counted")
def test_losses_are_zero_for_clean_speech_and_do_not_depend_on_its_level(config: Config) -> None:
    clean = [each._replace(noisy=each.clean) for each in EXAMPLES]
    scores = validate(clean, config, nn.Identity()).scores
    for name in ("magnitude", "complex", "loss"):
        assert scores[name] == pytest.approx(0, abs=1e-2), name
    soft = [each._replace(clean=each.clean / 64, noisy=each.noisy / 64) for each in EXAMPLES]
    loud, quiet = (validate(each, config, nn.Identity()).scores for each in (EXAMPLES, soft))
    assert quiet["magnitude"] == pytest.approx(loud["magnitude"], rel=1e-3)
    assert loud["magnitude"] > 0.1
    total = 0.9 * loud["magnitude"] + 0.3 * loud["phase"] + 0.1 * loud["complex"]
    assert loud["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.usefixtures("counted")
def test_the_network_is_judged_in_evaluation_mode_and_left_as_it_was(config: Config, training: bool) -> None:
    class Watched(nn.Identity):
        modes: list[bool]

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.modes.append(self.training or torch.is_grad_enabled())
            return input

    network = Watched().train(training)
    network.modes = []
    validate(EXAMPLES[:1], config, network)
    assert network.modes and not any(network.modes)
    assert network.training == training


def test_processes_share_the_utterances(config: Config, counted: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "gather", lambda _, rows: [rows, [row | {"pesq": 8.0} for row in rows]])
    validated = validate([*EXAMPLES, SILENT], config, nn.Identity(), Group(1, 2, torch.device("cpu")))
    assert [len(clean) for clean, _ in counted] == [len(EXAMPLES[1].clean)]
    assert len(validated.enhanced) == 1
    assert validated.scores["pesq"] == (0 + 8) / 2  # the mean over the rows of both
    assert math.isnan(validated.scores["stoi"])


def test_an_utterance_whose_scoring_fails_is_named_and_the_others_have_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> Iterator[tuple[int, object]]:
        yield 1, ImportError("no module named pesq")
        yield 0, {"pesq": 2.5, "stoi": 0.9}

    monkeypatch.setattr(validation, "run_in_processes", run)
    first, second = validation.score_all([(each.clean, each.noisy) for each in EXAMPLES])
    assert first == {"pesq": 2.5, "stoi": 0.9}
    assert math.isnan(second["pesq"]) and math.isnan(second["stoi"])
    assert capsys.readouterr().err == "validation: utterance 1 could not be scored: no module named pesq\n"
