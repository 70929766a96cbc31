"""The training step: what it changes, how fast, what it tells, and that it goes on where it was left.

What it teaches the discriminator is in test_steps_discriminator.py.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from config import Config, OptimConfig
from models import build
from models.losses import loss_terms, weighted_sum
from tests.fixtures.steps import ALONE, BATCHES, LABELS, NOT_FINITE, GivenLabels, Make, enhanced_by, weights
from training.trainer import Trainer, learning_rate


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(one == other)


def test_a_step_changes_both_networks_and_tells_all_figures(make: Make) -> None:
    trainer = make()
    before = weights(trainer.network), weights(trainer.discriminator)
    original = copy.deepcopy(trainer.network)
    figures = trainer.step(BATCHES[0], 0)
    changed = [(weights(trainer.network) - before[0]).abs(), (weights(trainer.discriminator) - before[1]).abs()]
    # AdamW's first step is the learning rate along every gradient that is not zero, and a little decay.
    for change in changed:
        assert (change > 0).float().mean() > 0.9
        assert change.max() < 1.1 * 0.0005 + 0.0005 * 0.01 * 2
    clean, enhanced = enhanced_by(original, trainer, BATCHES[0])
    terms = loss_terms(trainer.config.loss, clean, enhanced, trainer.spectrogram)
    expected = {name: value.item() for name, value in terms.items()}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    total = weighted_sum(trainer.config.loss, terms).item() + 0.05 * figures["metric"]
    assert figures["loss"] == pytest.approx(total, rel=1e-5)
    assert figures["learning_rate"] == 0.0005
    others = {"metric", "loss", "discriminator", "discriminator_gradient_norm", "gradient_norm", "learning_rate"}
    assert figures.keys() == {"magnitude", "phase", "complex"} | others
    assert trainer.global_step == 1


@pytest.mark.parametrize("lag", [0, 1])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(make: Make, lag: int) -> None:
    trainer = make([(math.nan, math.nan)] * 2 + LABELS, ema_decay=0.5, metric_lag=lag)

    def all_weights() -> Tensor:
        return torch.cat([weights(trainer.network), weights(trainer.discriminator), weights(trainer.eval_model)])

    before = all_weights()
    for count in (1, 2):
        figures = trainer.step(NOT_FINITE, 0)
        assert not math.isfinite(figures["gradient_norm"])
        assert (trainer.skipped, trainer.skipped_in_a_row, trainer.global_step) == (count, count, count)
    assert torch.equal(all_weights(), before)
    assert trainer.unlabelled == 2 * (2 - lag)
    generator = weights(trainer.network)
    trainer.step(BATCHES[0], 0)
    # With a lag it is now that the discriminator meets the last bad batch.
    assert (trainer.skipped, trainer.skipped_in_a_row) == ((3, 3) if lag else (2, 0))
    assert not torch.equal(weights(trainer.network), generator)
    trainer.step(BATCHES[1], 0)
    assert (trainer.skipped, trainer.skipped_in_a_row) == (2 + lag, 0)
    assert trainer.unlabelled == 4
    changed = (all_weights() - before).abs()
    assert changed.isfinite().all()
    assert (changed > 0).float().mean() > 0.9


def test_learning_rate_rises_over_the_first_steps_and_falls_with_the_epochs(config: Config) -> None:
    optim = replace(config.optim, learning_rate=0.008, lr_decay=0.5)
    assert [learning_rate(optim, epoch, 1000) for epoch in range(4)] == [0.008, 0.004, 0.002, 0.001]
    assert learning_rate(optim, 0, 0) == 0.008
    rising: OptimConfig = replace(optim, warmup_steps=4)
    assert [learning_rate(rising, 0, step) for step in range(6)] == [0.002, 0.004, 0.006, 0.008, 0.008, 0.008]
    assert learning_rate(rising, 1, 1) == 0.002


def test_both_optimisers_follow_the_learning_rate(make: Make) -> None:
    trainer = make(warmup_steps=10)
    before = weights(trainer.network), weights(trainer.discriminator)
    figures = trainer.step(BATCHES[0], 0)
    assert figures["learning_rate"] == pytest.approx(0.00005)
    for part, old in zip((trainer.network, trainer.discriminator), before, strict=True):
        assert (weights(part) - old).abs().max().item() == pytest.approx(0.00005, rel=0.05)


def test_weight_decay_takes_its_share_of_every_weight(make: Make) -> None:
    decaying, plain = make(weight_decay=2.0), make(weight_decay=0.0)
    before = weights(plain.network), weights(plain.discriminator)
    for trainer in (decaying, plain):
        trainer.step(BATCHES[0], 0)
    share = 0.0005 * 2
    taken = (
        weights(plain.network) - weights(decaying.network),
        weights(plain.discriminator) - weights(decaying.discriminator),
    )
    assert torch.allclose(taken[1], share * before[1], atol=1e-6)
    # Another discriminator's opinion turns the first step of a few weights over, whose gradient is nearly zero.
    assert torch.isclose(taken[0], share * before[0], atol=1e-6).float().mean() > 0.95


def test_the_norm_that_is_told_is_that_before_clipping(make: Make) -> None:
    free, clipped = make(), make(grad_clip=0.01)
    told = [trainer.step(BATCHES[0], 0) for trainer in (free, clipped)]
    assert told[0] == told[1]
    norms = [
        torch.stack([parameter.grad.norm() for parameter in trainer.network.parameters() if parameter.grad is not None])
        .norm()
        .item()
        for trainer in (free, clipped)
    ]
    assert norms == [pytest.approx(told[0]["gradient_norm"], rel=1e-5), pytest.approx(0.01, rel=1e-3)]
    assert told[0]["gradient_norm"] > 0.1


def test_averaged_weights_by_hand(make: Make) -> None:
    trainer = make(ema_decay=0.75)
    assert torch.equal(weights(trainer.eval_model), weights(trainer.network))
    trainer.step(BATCHES[0], 0)
    first = weights(trainer.network)
    assert torch.equal(weights(trainer.eval_model), first)  # there is nothing before it to average with
    trainer.step(BATCHES[1], 0)
    second = weights(trainer.network)
    assert torch.allclose(weights(trainer.eval_model), (3 * first + second) / 4, atol=1e-7)
    average = weights(trainer.eval_model)
    trainer.step(NOT_FINITE, 0)
    assert torch.equal(weights(trainer.eval_model), average)
    trainer.step(BATCHES[2], 0)
    expected = (9 * first + 3 * second) / 16 + weights(trainer.network) / 4
    assert torch.allclose(weights(trainer.eval_model), expected, atol=1e-7)
    assert trainer.eval_model.state_dict().keys() == trainer.network.state_dict().keys()


def test_without_averaging_the_kept_network_is_the_last(make: Make) -> None:
    trainer = make()
    assert trainer.eval_model is trainer.network


@pytest.mark.parametrize("lag, decay", [(0, 0.0), (1, 0.5)])
def test_a_resumed_run_goes_on_bit_by_bit(make: Make, lag: int, decay: float) -> None:
    settings = {"metric_lag": lag, "ema_decay": decay, "warmup_steps": 5}
    through = make([(math.nan, math.nan), *LABELS], **settings)
    through.step(NOT_FINITE, 0)
    through.step(BATCHES[0], 0)
    assert through.skipped > 0
    file = io.BytesIO()
    torch.save(through.state_dict(), file)
    resumed = make(LABELS[1:], **settings)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for count in ("global_step", "skipped", "skipped_in_a_row", "unlabelled"):
        assert getattr(resumed, count) == getattr(through, count)
    for crops, epoch in ((BATCHES[1], 0), (BATCHES[2], 1)):
        assert resumed.step(crops, epoch) == through.step(crops, epoch)
    assert same_state(resumed.state_dict(), through.state_dict())


def test_taking_the_state_does_not_change_the_steps_that_follow(make: Make) -> None:
    plain, watched = make(metric_lag=1), make(metric_lag=1)
    for crops in BATCHES[:2]:
        assert plain.step(crops, 0) == watched.step(crops, 0)
        watched.state_dict()


def test_another_run_s_state_is_refused(make: Make, config: Config) -> None:
    trainer = make()
    state = trainer.state_dict()
    with pytest.raises(KeyError):
        make(ema_decay=0.5).load_state_dict(state)
    with pytest.raises(ValueError, match=r"network\..*weight: not torch.float32 of shape"):
        Trainer(config, ALONE, GivenLabels()).load_state_dict(state)


def test_without_metric_there_is_no_discriminator(step_config: Config) -> None:
    alone = replace(step_config, loss=replace(step_config.loss, metric=0.0, time=0.5))
    trainer = Trainer(alone, ALONE, None)
    before = weights(trainer.network)
    figures = trainer.step(BATCHES[0], 0)
    assert trainer.discriminator is None
    assert figures.keys() == {"magnitude", "phase", "complex", "time", "loss", "gradient_norm", "learning_rate"}
    assert not torch.equal(weights(trainer.network), before)
    state = trainer.state_dict()
    assert not any("discriminator" in name for name in state)
    resumed = Trainer(alone, ALONE, None)
    resumed.load_state_dict(state)
    assert resumed.step(BATCHES[1], 0) == trainer.step(BATCHES[1], 0)


def test_the_seed_alone_decides_the_first_weights(make: Make) -> None:
    before = torch.get_rng_state()
    one = make()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    other = make()
    assert torch.equal(weights(one.network), weights(other.network))
    assert torch.equal(weights(one.discriminator), weights(other.discriminator))
    assert not torch.equal(weights(one.network), weights(make(seed=1).network))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_run_can_begin_with_another_network(make: Make, decay: float, config: Config) -> None:
    trainer, other = make(ema_decay=decay), make(seed=1)
    trainer.load_weights(other.network)
    assert torch.equal(weights(trainer.network), weights(other.network))
    assert torch.equal(weights(trainer.eval_model), weights(other.network))
    with pytest.raises(RuntimeError):
        trainer.load_weights(build(config))


def test_a_step_in_bfloat16_has_about_the_same_loss(step_config: Config) -> None:
    # At the paper's width: oneDNN's bfloat16 convolutions read past their memory at odd multiples of 8 channels.
    wide = replace(step_config, model=replace(step_config.model, channels=16))
    told = []
    for bf16 in (False, True):
        trainer = Trainer(replace(wide, train=replace(wide.train, bf16=bf16)), ALONE, GivenLabels(*LABELS))
        told.append(trainer.step(BATCHES[0], 0))
        assert trainer.skipped == 0
        assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())
    assert told[0] != told[1]
    for name in ("loss", "magnitude", "phase", "complex", "discriminator"):
        assert told[1][name] == pytest.approx(told[0][name], rel=0.05), name
