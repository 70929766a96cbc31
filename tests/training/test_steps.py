"""The training step: what it changes, what it teaches the discriminator, and that it goes on where it was left.

The labels are given, not computed; the network is small, and so are its spectra. Longer than other files, since all
of it needs the same given labels and made-up batches.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config, OptimConfig, StftConfig
from data.crops import Batch
from models import build
from models.discriminator import HIDDEN, MetricDiscriminator
from models.losses import Speech, loss_terms, weighted_sum
from models.spectrogram import Spectra, Spectrogram
from tests.fixtures.signals import speech_like, with_noise
from training import steps
from training.distribution import Group
from training.labels import Pending, PesqLabels
from training.steps import Trainer, learning_rate

ALONE = Group(0, 1, torch.device("cpu"))
SEGMENT = 1000
LABELS = [(0.2, 0.7), (0.9, 0.4), (0.1, 0.5), (0.6, 0.3)]
"""Of four steps' crops."""

Make = Callable[..., Trainer]


class GivenLabels(PesqLabels):
    """Labels of one batch after the other, whatever its crops; keeps what it was given."""

    def __init__(self, *labels: tuple[float, ...]) -> None:
        self.labels = iter(labels)
        self.crops: list[tuple[np.ndarray, np.ndarray]] = []

    def submit(self, clean: np.ndarray, enhanced: np.ndarray) -> Pending:
        self.crops.append((clean, enhanced))
        futures: list[Future[float]] = []
        for label in next(self.labels):
            futures.append(Future())
            futures[-1].set_result(label)
        assert len(futures) == len(clean)
        return Pending(tuple(futures))


def batch(seed: int) -> Batch:
    """Two crops from the midst of syllables, level-normalised."""
    clean = np.stack([speech_like(0.5, seed=10 * seed + row)[1200:][:SEGMENT] for row in range(2)])
    noisy = np.stack([with_noise(crop, 5, seed=10 * seed + row) for row, crop in enumerate(clean)])
    factors = np.mean(noisy**2, axis=1, keepdims=True) ** -0.5
    return Batch(np.arange(2), (clean * factors).astype(np.float32), (noisy * factors).astype(np.float32))


BATCHES = [batch(seed) for seed in range(4)]
NOTHING = np.full_like(BATCHES[0].clean, math.nan)
NOT_FINITE = Batch(np.arange(2), NOTHING, NOTHING)


@pytest.fixture(scope="session")
def step_config(small_config: Config) -> Config:
    return replace(
        small_config,
        stft=StftConfig(n_fft=126, hop_size=60, win_size=126, compress_factor=0.3),
        data=replace(small_config.data, segment_size=SEGMENT),
    )


@pytest.fixture
def make(step_config: Config) -> Make:
    """Builds a trainer: other settings of the sections `optim` and `train` by name, and the labels of its steps."""

    def made(labels: list[tuple[float, ...]] | None = None, **settings: Any) -> Trainer:
        sections = {
            name: replace(section, **{key: value for key, value in settings.items() if hasattr(section, key)})
            for name, section in (("optim", step_config.optim), ("train", step_config.train))
        }
        return Trainer(replace(step_config, **sections), ALONE, GivenLabels(*(labels or LABELS)))

    return made


@pytest.fixture
def no_dropout(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keeps all of the discriminator's units; the seeds that dropout would have had."""
    seeds: list[int] = []

    def all_kept(rows: int, seed: int) -> Tensor:
        seeds.append(seed)
        return torch.ones(rows, HIDDEN)

    monkeypatch.setattr(steps, "dropout_factors", all_kept)
    return seeds


def weights(module: nn.Module | None) -> Tensor:
    assert module is not None
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def enhanced_by(network: nn.Module, trainer: Trainer, crops: Batch) -> tuple[Speech, Speech]:
    """Clean and enhanced speech of a batch."""
    spectrogram = Spectrogram(trainer.config.stft)
    with torch.no_grad():
        clean_wav = torch.from_numpy(crops.clean)
        spectra: Spectra = network(spectrogram(torch.from_numpy(crops.noisy)))
        wav = spectrogram.inverse(spectra, SEGMENT)
    return Speech(clean_wav, spectrogram(clean_wav)), Speech(wav, spectra)


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
    assert trainer.steps_done == 1


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


@pytest.mark.parametrize("lag", [0, 1])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(make: Make, lag: int) -> None:
    trainer = make([(math.nan, math.nan)] * 2 + LABELS, ema_decay=0.5, metric_lag=lag)

    def all_weights() -> Tensor:
        return torch.cat([weights(trainer.network), weights(trainer.discriminator), weights(trainer.best_network)])

    before = all_weights()
    for count in (1, 2):
        figures = trainer.step(NOT_FINITE, 0)
        assert not math.isfinite(figures["gradient_norm"])
        assert (trainer.skipped, trainer.skipped_in_a_row, trainer.steps_done) == (count, count, count)
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
    trainer = make(ema_decay=0.5)
    assert torch.equal(weights(trainer.best_network), weights(trainer.network))
    trainer.step(BATCHES[0], 0)
    first = weights(trainer.network)
    assert torch.equal(weights(trainer.best_network), first)  # there is nothing before it to average with
    trainer.step(BATCHES[1], 0)
    second = weights(trainer.network)
    assert torch.allclose(weights(trainer.best_network), (first + second) / 2, atol=1e-7)
    trainer.step(BATCHES[2], 0)
    expected = (first + second) / 4 + weights(trainer.network) / 2
    assert torch.allclose(weights(trainer.best_network), expected, atol=1e-7)
    assert trainer.best_network.state_dict().keys() == trainer.network.state_dict().keys()


def test_without_averaging_the_best_network_is_the_last(make: Make) -> None:
    trainer = make()
    assert trainer.best_network is trainer.network


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
    for count in ("steps_done", "skipped", "skipped_in_a_row", "unlabelled"):
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
    with pytest.raises(RuntimeError):
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
    trainer.begin_with(other.network)
    assert torch.equal(weights(trainer.network), weights(other.network))
    assert torch.equal(weights(trainer.best_network), weights(other.network))
    with pytest.raises(RuntimeError):
        trainer.begin_with(build(config))


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
