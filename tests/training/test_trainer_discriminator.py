"""The discriminator's part of a training step: the labels that it learns, its opinion, and its dropout."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.discriminator import HIDDEN, MetricDiscriminator
from models.losses import Speech
from tests.fixtures.steps import BATCHES, LABELS, GivenLabels, Make, enhanced_by, weights
from training import trainer as steps
from training.trainer import Trainer
from utils.distributed import Group


def discriminator_before(trainer: Trainer) -> MetricDiscriminator:
    """A copy as it will see this step's spectra: each forward pass in training takes the norms one step further."""
    ours = copy.deepcopy(trainer.discriminator)
    assert ours is not None
    with torch.no_grad():
        ours(torch.rand(1, 64, 17), torch.rand(1, 64, 17))
    return ours.eval()


def squared_errors(discriminator: MetricDiscriminator, clean: Speech, other: Speech, target: Any) -> Tensor:
    with torch.no_grad():
        return (discriminator(clean.spectra.mag, other.spectra.mag) - torch.tensor(target)).square()


def test_what_is_labelled_are_the_normalised_waveforms(make: Make) -> None:
    trainer = make()
    _, enhanced = enhanced_by(trainer.network, trainer, BATCHES[0])
    trainer.step(BATCHES[0], 0)
    assert isinstance(trainer.labels, GivenLabels)
    ((clean_wav, enhanced_wav),) = trainer.labels.crops
    assert np.array_equal(clean_wav, BATCHES[0].clean)
    assert np.allclose(enhanced_wav, enhanced.wav.numpy(), atol=1e-5)


@pytest.mark.usefixtures("no_dropout")
@pytest.mark.parametrize("labels", [(0.2, 0.7), (0.3, math.nan), (math.nan, math.nan)])
def test_the_discriminator_learns_the_labels_that_there_are(make: Make, labels: tuple[float, ...]) -> None:
    trainer = make([labels])
    clean, enhanced = enhanced_by(trainer.network, trainer, BATCHES[0])
    discriminator = discriminator_before(trainer)
    before = weights(trainer.discriminator)
    figures = trainer.step(BATCHES[0], 0)
    # The mean is over both crops, also where one has no error for want of a label.
    expected = squared_errors(discriminator, clean, clean, 1.0).mean()
    expected += squared_errors(discriminator, clean, enhanced, labels).nansum() / 2
    assert figures["discriminator"] == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.unlabelled == sum(map(math.isnan, labels))
    after = weights(trainer.discriminator)
    assert after.isfinite().all()
    assert not torch.equal(after, before)


@pytest.mark.usefixtures("no_dropout")
def test_a_missing_label_gives_no_gradient(make: Make) -> None:
    """The step is the one that a label gives which the discriminator foretold."""
    trainers = make([(0.3, math.nan)]), make([(0.3, 0.0)])
    clean, enhanced = enhanced_by(trainers[1].network, trainers[1], BATCHES[0])
    with torch.no_grad():
        foretold = discriminator_before(trainers[1])(clean.spectra.mag, enhanced.spectra.mag)[1].item()
    trainers[1].labels = GivenLabels((0.3, foretold))
    norms = [trainer.step(BATCHES[0], 0)["discriminator_gradient_norm"] for trainer in trainers]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.usefixtures("no_dropout")
def test_the_generator_is_judged_by_the_discriminator_that_has_just_learned(make: Make) -> None:
    trainer = make()
    clean, enhanced = enhanced_by(trainer.network, trainer, BATCHES[0])
    figures = trainer.step(BATCHES[0], 0)
    assert trainer.discriminator
    learned = copy.deepcopy(trainer.discriminator).eval()
    assert figures["metric"] == pytest.approx(squared_errors(learned, clean, enhanced, 1.0).mean().item(), rel=1e-5)
    assert all(parameter.requires_grad for parameter in trainer.discriminator.parameters())


def test_the_metric_moves_the_generator_and_its_loss_alone_the_discriminator(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another opinion of the same discriminator, the generator's gradient is another; not so the other's."""
    norms: list[tuple[float, float]] = []
    for weight in (0.05, 5.0):
        trainer = make()
        changed = replace(trainer.config, loss=replace(trainer.config.loss, metric=weight))
        monkeypatch.setattr(trainer, "config", changed)
        figures = trainer.step(BATCHES[0], 0)
        norms.append((figures["gradient_norm"], figures["discriminator_gradient_norm"]))
    assert norms[0][0] != norms[1][0]
    assert norms[0][1] == norms[1][1]


@pytest.mark.usefixtures("no_dropout")
def test_labels_may_be_those_of_the_step_before(make: Make) -> None:
    trainer = make(metric_lag=1)
    first = enhanced_by(trainer.network, trainer, BATCHES[0])
    discriminator = discriminator_before(trainer)
    figures = trainer.step(BATCHES[0], 0)
    clean = first[0]
    assert figures["discriminator"] == pytest.approx(squared_errors(discriminator, clean, clean, 1.0).mean().item())
    second = enhanced_by(trainer.network, trainer, BATCHES[1])
    discriminator = discriminator_before(trainer)
    figures = trainer.step(BATCHES[1], 0)
    expected = squared_errors(discriminator, second[0], second[0], 1.0).mean()
    expected += squared_errors(discriminator, *first, LABELS[0]).mean()
    assert figures["discriminator"] == pytest.approx(expected.item(), rel=1e-4)


def test_each_use_of_the_discriminator_has_its_own_dropout(make: Make, no_dropout: list[int]) -> None:
    trainer = make()
    trainer.step(BATCHES[0], 0)
    trainer.step(BATCHES[1], 0)
    assert len(no_dropout) == len(set(no_dropout)) == 6


def test_dropout_reaches_the_discriminator(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = make().step(BATCHES[0], 0)
    monkeypatch.setattr(steps, "dropout_factors", lambda rows, _: torch.ones(rows, HIDDEN))
    whole = make().step(BATCHES[0], 0)
    assert dropped["discriminator"] != whole["discriminator"]
    assert dropped["metric"] != whole["metric"]


def test_crops_have_the_same_dropout_in_however_many_processes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    together = trainer._dropout(1, 4)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(trainer, "group", Group(rank, 2, torch.device("cpu")))
        parts.append(trainer._dropout(1, 2))
    assert torch.equal(torch.cat(parts), together)
