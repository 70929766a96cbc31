"""The training step: losses, weights, skipped steps, labels, learning rate, averaging, state."""

from __future__ import annotations

import copy
import io
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from config import Config, ImseConfig, ImseLiveConfig, LossConfig, StftConfig, UNetConfig, load_config
from data.dataset import Batch
from enhance.enhancer import Enhancer
from models.discriminator import HIDDEN, MetricDiscriminator
from models.losses import TERMS, Speech, loss_terms
from models.stft import Spectrogram
from tests.fixtures.commands import ROOT
from tests.fixtures.steps import ALONE, BATCHES, LABELS, SEGMENT, GivenLabels
from tests.fixtures.training import Tiny
from training.trainer import Trainer, learning_rate
from utils.distributed import Group

NAN_LABELS = (math.nan, math.nan)
_NAN = np.full_like(BATCHES[0].clean, math.nan)
NAN_BATCH = Batch(np.arange(2), _NAN, _NAN, BATCHES[0].dry)

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="module")
def step_config(small_config: Config) -> Config:
    return replace(
        small_config,
        model=UNetConfig("tiny", channels=8, beta=2.0),
        stft=StftConfig(n_fft=126, hop_size=60, win_size=126, compress_factor=0.3),
        data=replace(small_config.data, segment_size=SEGMENT),
    )


@pytest.fixture(scope="module")
def comb_config() -> Config:
    """DPCRN with the comb filter: batch norms, and a loss term of its own."""
    changes = f"data.segment_size={SEGMENT}", "optim.schedule=exponential"
    return load_config(ROOT / "configs/dpcrn_cf.json", changes)


@pytest.fixture
def make(step_config: Config) -> MakeTrainer:
    """A function that makes a trainer with given labels and changed settings of the sections `optim` and `train`."""

    def make_trainer(
        labels: list[tuple[float, ...]] | None = None, teacher: nn.Module | None = None, **settings: Any
    ) -> Trainer:
        sections = {
            name: replace(section, **{key: value for key, value in settings.items() if hasattr(section, key)})
            for name, section in (("optim", step_config.optim), ("train", step_config.train))
        }
        config = replace(step_config, **sections)
        return Trainer(config, ALONE, GivenLabels(*(labels or LABELS)), teacher and Enhancer(teacher, config))

    return make_trainer


@pytest.fixture
def no_dropout(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keep all units of the discriminator; returns the list of seeds that dropout was asked for."""
    seeds: list[int] = []

    def keep_all(rows: int, seed: int) -> Tensor:
        seeds.append(seed)
        return torch.ones(rows, HIDDEN)

    monkeypatch.setattr("training.trainer.dropout_factors", keep_all)
    return seeds


def weights(module: nn.Module | None) -> Tensor:
    assert module is not None
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def enhance_batch(network: nn.Module, trainer: Trainer, batch: Batch) -> tuple[Speech, Speech]:
    """Return clean and enhanced speech of a batch."""
    spectrogram = Spectrogram(trainer.config.stft)
    with torch.no_grad():
        clean_wav = torch.from_numpy(batch.clean)
        spectra = network(spectrogram(torch.from_numpy(batch.noisy)))
        wav = spectrogram.inverse(spectra, SEGMENT)
    return Speech(clean_wav, spectrogram(clean_wav)), Speech(wav, spectra)


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(one == other)


def floats(logs: Mapping[str, Tensor]) -> dict[str, float]:
    assert all(value.shape == () and not value.requires_grad for value in logs.values())
    return {name: value.item() for name, value in logs.items()}


def copied_discriminator(trainer: Trainer) -> MetricDiscriminator:
    """Copy the discriminator as this step will use it: each training forward does one power iteration."""
    discriminator = copy.deepcopy(trainer.discriminator)
    assert discriminator is not None
    with torch.no_grad():
        discriminator(torch.rand(1, 64, 17), torch.rand(1, 64, 17))
    return discriminator.eval()


def squared_errors(discriminator: MetricDiscriminator, clean: Speech, other: Speech, target: Any) -> Tensor:
    return (discriminator(clean.spectra.mag, other.spectra.mag) - torch.tensor(target)).square()


def test_the_labels_are_those_of_the_crops(make: MakeTrainer) -> None:
    """tests/training/test_reference_loop.py compares losses, gradients and weights of a step."""
    trainer = make()
    _, enhanced = enhance_batch(trainer.network, trainer, BATCHES[0])
    trainer.step(BATCHES[0], 0)
    assert isinstance(trainer.labeler, GivenLabels)
    ((clean_wav, enhanced_wav),) = trainer.labeler.crops
    assert np.array_equal(clean_wav, BATCHES[0].clean)
    assert np.allclose(enhanced_wav, enhanced.wav.numpy(), atol=1e-4)


def test_distillation_teaches_dry_crops_the_output_of_the_teacher(make: MakeTrainer) -> None:
    """The teacher's output follows the level, which is that of inference: a mean power of 1."""
    trainer = make()
    _, taught = enhance_batch(trainer.network, trainer, BATCHES[0])
    teacher = copy.deepcopy(trainer.network)
    trainer.step(BATCHES[1], 0)
    louder = replace(BATCHES[0], clean=2 * BATCHES[0].clean, noisy=2 * BATCHES[0].noisy)
    clean, enhanced = enhance_batch(trainer.network, trainer, louder)
    for share, dry in ((1.0, [True, True]), (0.25, [True, True]), (0.25, [True, False]), (1.0, [False, False])):
        moved = share * torch.tensor(dry)[:, None]
        wav = (1 - moved) * clean.wav + moved * 2 * taught.wav
        target = Speech(wav, trainer.spectrogram(wav))
        expected = floats(loss_terms(trainer.config.loss, target, enhanced, trainer.spectrogram))
        distilling = make(teacher=teacher, distillation=share)
        distilling.load_weights(trainer.network)
        logs = floats(distilling.step(replace(louder, dry=np.array(dry)), 0))
        assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_teacher_is_asked_about_dry_crops_only(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(teacher=make().network, distillation=0.5)
    monkeypatch.setattr(trainer.teacher, "enhance_batch", lambda _: pytest.fail("asked"))
    trainer.step(replace(BATCHES[0], dry=np.array([False, False])), 0)


def test_the_teacher_keeps_its_weights(make: MakeTrainer) -> None:
    teacher = make().network
    before = weights(teacher)
    trainer = make(teacher=teacher, distillation=0.5)
    for batch in BATCHES[:2]:
        trainer.step(batch, 0)
    assert torch.equal(weights(teacher), before)
    assert not torch.equal(weights(trainer.network), before)


def test_accumulated_gradients_are_those_of_the_whole_batch(step_config: Config) -> None:
    """In float64. Without the discriminator, which learns from each part."""
    logs, gradients = [], []
    for accumulation in (1, 2):
        train = replace(step_config.train, accumulation=accumulation)
        trainer = Trainer(replace(step_config, train=train, loss=replace(step_config.loss, metric=0.0)), ALONE, None)
        trainer.network.double()
        trainer.spectrogram.double()
        logs.append(
            floats(
                trainer.step(
                    replace(BATCHES[0], clean=BATCHES[0].clean.astype(float), noisy=BATCHES[0].noisy.astype(float)), 0
                )
            )
        )
        gradients.append(
            torch.cat([weight.grad.flatten() for weight in trainer.network.parameters() if weight.grad is not None])
        )
    assert logs[0] == pytest.approx(logs[1], rel=1e-9)
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-9 * float(gradients[0].abs().max()))


def test_the_discriminator_takes_a_step_for_each_part(make: MakeTrainer, no_dropout: list[int]) -> None:
    trainer = make([(0.2,), (0.7,), (0.9,), (0.4,)], accumulation=2)
    assert trainer.discriminator_optimizer and isinstance(trainer.labeler, GivenLabels)
    for batch in BATCHES[:2]:
        trainer.step(batch, 0)
    assert [clean[0, 0] for clean, _ in trainer.labeler.crops] == [*BATCHES[0].clean[:, 0], *BATCHES[1].clean[:, 0]]
    for optimizer, steps in ((trainer.optimizer, 2.0), (trainer.discriminator_optimizer, 4.0)):
        assert {float(state["step"]) for state in optimizer.state.values()} == {steps}
    assert len(no_dropout) == len(set(no_dropout)) == 12


@pytest.mark.parametrize(("network", "lag", "steps"), [("tiny", 0, 3), ("tiny", 1, 3), ("dpcrn_cf", 0, 1)])
def test_step_runs_without_data(
    step_config: Config, comb_config: Config, monkeypatch: pytest.MonkeyPatch, network: str, lag: int, steps: int
) -> None:
    """On the meta device, which has no data: reading a value, which waits for a GPU, or a CPU tensor would raise."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cuda", "meta"])
    with_metric = network == "tiny"
    config = step_config if with_metric else comb_config
    optim = replace(config.optim, ema_decay=0.5, grad_clip=1.0, warmup_steps=2, schedule="cosine")
    weights = dict.fromkeys([*TERMS, *config.model.own_terms, *["metric"] * with_metric], 0.1)  # all terms
    train = replace(config.train, metric_lag=lag, distillation=0.5, accumulation=1 + lag)
    config = replace(config, optim=optim, loss=LossConfig(**weights), train=train)
    meta = Group(0, 1, torch.device("meta"))
    teacher = Enhancer(models.build(step_config), step_config)
    labels = [label[part::parts] for label in LABELS for parts in [1 + lag] for part in range(parts)]
    trainer = Trainer(config, meta, GivenLabels(*labels) if with_metric else None, teacher)
    for batch in BATCHES[:steps]:
        logs = trainer.step(batch, 0, last_step=3)
        assert len(logs) == len(weights) + (5 if with_metric else 3)
        with pytest.raises(RuntimeError):
            logs["loss"].item()
    assert all(part.device.type == "meta" for part in trainer.network.parameters())


@pytest.mark.parametrize("lag", [0, 1])
def test_nonfinite_gradient_changes_nothing_and_is_counted(make: MakeTrainer, lag: int) -> None:
    trainer = make([LABELS[0], NAN_LABELS, NAN_LABELS, *LABELS], ema_decay=0.5, metric_lag=lag, grad_clip=1.0)
    trainer.step(BATCHES[3], 0)
    discriminator, discriminator_optimizer = trainer.discriminator, trainer.discriminator_optimizer
    assert discriminator and discriminator_optimizer

    def learned() -> list[Any]:
        parts = [trainer.network.state_dict(), trainer.eval_model.state_dict(), trainer.optimizer.state_dict()["state"]]
        if not lag:  # with a lag the discriminator learns the last good batch now
            parts.append(discriminator_optimizer.state_dict()["state"])
            parts.append(dict(discriminator.named_parameters()))
        return copy.deepcopy(parts)

    before = learned()
    for count in (1, 2):
        logs = trainer.step(NAN_BATCH, 0)
        assert not logs["gradient_norm"].isfinite()
        assert (trainer.skipped_steps, trainer.skipped_in_a_row, trainer.global_step) == (count, count, count + 1)
    assert same_state(learned(), before)
    assert weights(trainer.discriminator).isfinite().all()
    assert trainer.unlabeled_crops == 2 * (2 - lag)
    trainer.step(BATCHES[0], 0)
    # With a lag the discriminator meets the last bad batch now.
    assert (trainer.skipped_steps, trainer.skipped_in_a_row) == ((3, 3) if lag else (2, 0))
    assert not same_state(trainer.network.state_dict(), before[0])
    trainer.step(BATCHES[1], 0)
    assert (trainer.skipped_steps, trainer.skipped_in_a_row) == (2 + lag, 0)
    assert {float(state["step"]) for state in trainer.optimizer.state.values()} == {3.0}
    assert trainer.unlabeled_crops == 4
    for module in (trainer.network, trainer.discriminator, trainer.eval_model):
        assert weights(module).isfinite().all()


def test_a_networks_own_term_is_trained_but_not_part_of_the_logged_loss(comb_config: Config) -> None:
    """The validation cannot compute the term, and its loss must be comparable."""
    trainer, heavier = (
        Trainer(replace(comb_config, loss=replace(comb_config.loss, f0=weight)), ALONE, None) for weight in (0.5, 5.0)
    )
    before = copy.deepcopy(trainer.network.state_dict())
    logs, heavier_logs = floats(trainer.step(BATCHES[0], 0)), floats(heavier.step(BATCHES[0], 0))
    names = "compressed_magnitude", "compressed_complex", "si_sdr"
    assert logs.keys() == {*names, "f0", "loss", "gradient_norm", "learning_rate"}
    assert logs["f0"] == pytest.approx(math.log(226), rel=0.1)  # all classes are about as probable
    assert logs["loss"] == pytest.approx(sum(getattr(comb_config.loss, name) * logs[name] for name in names), rel=1e-5)
    assert (logs["f0"], logs["loss"]) == (heavier_logs["f0"], heavier_logs["loss"])
    assert logs["gradient_norm"] != heavier_logs["gradient_norm"]
    changed = [name for name, tensor in trainer.network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {"f0_head.logits.weight", "f0_head.conv.0.weight", "encoder.0.conv.weight"} <= {*changed}


def test_learning_rate_warms_up_and_decays_per_epoch(config: Config) -> None:
    optim = replace(config.optim, learning_rate=0.008, lr_decay=0.5)
    assert [learning_rate(optim, epoch, 1000, 0) for epoch in range(4)] == [0.008, 0.004, 0.002, 0.001]
    assert learning_rate(optim, 0, 0, 0) == 0.008
    warm = replace(optim, warmup_steps=4)
    assert [learning_rate(warm, 0, step, 0) for step in range(6)] == [0.002, 0.004, 0.006, 0.008, 0.008, 0.008]
    assert learning_rate(warm, 1, 1, 0) == 0.002


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.004, 0.008, 0.008, 0.006, 0.004, 0.002]),
        ("cosine", [0.004, 0.008, 0.008, 0.00683, 0.004, 0.00117]),
    ],
)
def test_learning_rate_falls_to_zero_at_the_end(config: Config, schedule: Any, expected: list[float]) -> None:
    optim = replace(config.optim, learning_rate=0.008, lr_decay=0.5, schedule=schedule, warmup_steps=2)
    rates = [learning_rate(optim, epoch=step, step=step, last_step=6) for step in range(6)]
    assert rates == pytest.approx(expected, abs=1e-5)
    assert [learning_rate(optim, 0, step, 6) for step in (6, 9)] == pytest.approx([0, 0])


def test_the_discriminator_begins_at_its_step(make: MakeTrainer) -> None:
    trainer = make(metric_start=1)
    assert trainer.discriminator
    before = weights(trainer.discriminator)
    logs = trainer.step(BATCHES[0], 0)
    assert "metric" not in logs
    assert torch.equal(weights(trainer.discriminator), before)
    assert "metric" in trainer.step(BATCHES[1], 0)
    assert not torch.equal(weights(trainer.discriminator), before)


def test_both_optimizers_use_learning_rate_and_weight_decay(make: MakeTrainer) -> None:
    decaying, plain = make(weight_decay=2.0, warmup_steps=10), make(weight_decay=0.0, warmup_steps=10)
    before = weights(plain.network), weights(plain.discriminator)
    for trainer in (decaying, plain):
        assert trainer.step(BATCHES[0], 0)["learning_rate"].item() == pytest.approx(0.00005)
    for part, old in zip((plain.network, plain.discriminator), before, strict=True):
        assert (weights(part) - old).abs().max().item() == pytest.approx(0.00005, rel=0.05)
    decay = 0.00005 * 2
    decayed = weights(plain.discriminator) - weights(decaying.discriminator)
    assert torch.allclose(decayed, decay * before[1], atol=1e-6)
    # The other discriminator flips the first step of a few weights whose gradient is nearly zero.
    decayed = weights(plain.network) - weights(decaying.network)
    assert torch.isclose(decayed, decay * before[0], atol=1e-6).float().mean() > 0.9


def test_logged_norm_is_that_before_clipping(make: MakeTrainer) -> None:
    free, clipped = make(), make(grad_clip=0.01)
    logs = [floats(trainer.step(BATCHES[0], 0)) for trainer in (free, clipped)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    gradients = [[weight.grad for weight in trainer.network.parameters()] for trainer in (free, clipped)]
    norms = [torch.cat([gradient.flatten() for gradient in part if gradient is not None]).norm() for part in gradients]
    assert [norm.item() for norm in norms] == [
        pytest.approx(logs[0]["gradient_norm"], rel=1e-4),
        pytest.approx(0.01, rel=1e-3),
    ]
    assert logs[0]["gradient_norm"] > 0.1


def test_averaged_weights_by_hand(make: MakeTrainer) -> None:
    assert make().eval_model is not make(ema_decay=0.75).network
    trainer = make([NAN_LABELS, *LABELS], ema_decay=0.75)
    initial = weights(trainer.network)
    trainer.step(NAN_BATCH, 0)
    assert torch.equal(weights(trainer.eval_model), initial)
    trainer.step(BATCHES[0], 0)
    first = weights(trainer.network)
    assert torch.equal(weights(trainer.eval_model), first)  # the initial weights have no share
    trainer.step(BATCHES[1], 0)
    second = weights(trainer.network)
    assert torch.allclose(weights(trainer.eval_model), (3 * first + second) / 4, atol=1e-7)
    trainer.step(BATCHES[2], 0)
    expected = (9 * first + 3 * second) / 16 + weights(trainer.network) / 4
    assert torch.allclose(weights(trainer.eval_model), expected, atol=1e-7)
    plain = make()
    assert plain.eval_model is plain.network


class Normed(Tiny):
    """`Tiny` with a batch norm, whose running statistics are buffers."""

    def __init__(self, config: UNetConfig, bins: int) -> None:
        super().__init__(config, bins)
        self.layers.insert(1, nn.BatchNorm2d(config.channels))


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_batch_norm_statistics(step_config: Config, monkeypatch: pytest.MonkeyPatch, decay: float) -> None:
    """They follow the batches, except in a skipped step; those of the averaged network are equal."""
    monkeypatch.setitem(models.NETWORKS, "tiny", Normed)
    trainer = Trainer(
        replace(step_config, optim=replace(step_config.optim, ema_decay=decay)), ALONE, GivenLabels(*LABELS)
    )
    seen: list[Tensor] = []
    trainer.network.get_submodule("layers.0").register_forward_hook(lambda *call: seen.append(call[2].detach()))

    def running_mean() -> Tensor:
        kept, averaged = (each.get_buffer("layers.1.running_mean") for each in (trainer.network, trainer.eval_model))
        assert torch.equal(kept, averaged)
        return kept.clone()

    trainer.step(BATCHES[0], 0)
    expected = 0.1 * seen[0].mean(dim=(0, 2, 3))
    assert torch.allclose(running_mean(), expected, atol=1e-6) and expected.abs().max() > 1e-3
    before = running_mean()
    trainer.step(NAN_BATCH, 0)
    assert trainer.skipped_steps == 1 and not seen[1].isfinite().all()
    assert torch.equal(running_mean(), before)
    assert trainer.network.get_buffer("layers.1.num_batches_tracked") == 1


@pytest.mark.parametrize(("lag", "decay", "accumulation"), [(0, 0.0, 1), (1, 0.5, 1), (1, 0.5, 2)])
def test_resume_is_bit_exact(make: MakeTrainer, lag: int, decay: float, accumulation: int) -> None:
    settings = {"metric_lag": lag, "ema_decay": decay, "warmup_steps": 5, "accumulation": accumulation}
    labels = [part for batch in (NAN_LABELS, *LABELS) for part in np.split(np.array(batch), accumulation)]
    through = make(labels, **settings)
    through.step(NAN_BATCH, 0)
    through.step(BATCHES[0], 0)
    assert through.skipped_steps > 0
    file = io.BytesIO()
    torch.save(through.state_dict(), file)
    resumed = make(labels[2 * accumulation :], **settings)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same_state(resumed.state_dict(), through.state_dict())
    for batch, epoch in ((BATCHES[1], 0), (BATCHES[2], 1)):
        assert same_state(resumed.step(batch, epoch), through.step(batch, epoch))
    assert same_state(resumed.state_dict(), through.state_dict())


def test_without_metric_there_is_no_discriminator(step_config: Config) -> None:
    config = replace(step_config, loss=replace(step_config.loss, metric=0.0, time=0.5))
    trainer, resumed = Trainer(config, ALONE, None), Trainer(config, ALONE, None)
    before = weights(trainer.network)
    logs = trainer.step(BATCHES[0], 0)
    assert trainer.discriminator is None
    assert logs.keys() == {"magnitude", "phase", "complex", "time", "loss", "gradient_norm", "learning_rate"}
    assert not torch.equal(weights(trainer.network), before)
    state = trainer.state_dict()
    assert not any("discriminator" in name for name in state)
    resumed.load_state_dict(state)
    assert same_state(resumed.step(BATCHES[1], 0), trainer.step(BATCHES[1], 0))


def test_initial_weights_depend_on_the_seed_alone(make: MakeTrainer) -> None:
    before = torch.get_rng_state()
    one = make()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    other = make()
    assert torch.equal(weights(one.network), weights(other.network))
    assert torch.equal(weights(one.discriminator), weights(other.discriminator))
    assert not torch.equal(weights(one.network), weights(make(seed=1).network))


@pytest.mark.parametrize("model", [ImseConfig("imse", 16, 2.0), ImseLiveConfig("imse_live", 16, 2.0)])
def test_bfloat16_has_about_the_same_loss(
    step_config: Config, monkeypatch: pytest.MonkeyPatch, model: UNetConfig
) -> None:
    """On CPUs without AVX-512, for which it is slow, it is not used."""
    # At 16 channels: oneDNN's bfloat16 convolutions read past their memory at odd multiples of 8.
    wide = replace(step_config, model=model)
    torch.manual_seed(0)
    teacher = Enhancer(models.build(wide), wide)
    logs = []
    for bf16, capability in ((False, "AVX512"), (True, "AVX2"), (True, "AVX512")):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        train = replace(wide.train, bf16=bf16, distillation=0.5)
        trainer = Trainer(replace(wide, train=train), ALONE, GivenLabels(*LABELS), teacher)
        logs.append(floats(trainer.step(BATCHES[0], 0)))
        assert trainer.skipped_steps == 0
        assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())
    assert logs[0] == logs[1] != logs[2]
    for name in ("loss", "magnitude", "phase", "complex", "discriminator"):
        assert logs[2][name] == pytest.approx(logs[0][name], rel=0.05), name


@pytest.mark.usefixtures("no_dropout")
@pytest.mark.parametrize("labels", [(0.3, math.nan), NAN_LABELS])
def test_discriminator_loss(make: MakeTrainer, labels: tuple[float, ...]) -> None:
    trainer = make([labels])
    clean, enhanced = enhance_batch(trainer.network, trainer, BATCHES[0])
    discriminator = copied_discriminator(trainer)
    before = weights(trainer.discriminator)
    logs = floats(trainer.step(BATCHES[0], 0))
    # The mean is over both crops, also if one has no label. A crop without a label gives no gradient.
    expected = squared_errors(discriminator, clean, clean, 1.0).mean()
    labeled = ~np.isnan(labels)
    errors = squared_errors(discriminator, clean, enhanced, np.nan_to_num(labels))
    expected = expected + errors[torch.from_numpy(labeled)].sum() / 2
    assert logs["discriminator"] == pytest.approx(expected.item(), rel=1e-4)
    gradients = torch.autograd.grad(expected, list(discriminator.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert logs["discriminator_gradient_norm"] == pytest.approx(norm, rel=1e-3)
    assert trainer.unlabeled_crops == 2 - labeled.sum()
    after = weights(trainer.discriminator)
    assert after.isfinite().all() and not torch.equal(after, before)
    # The generator is scored by the updated discriminator.
    updated = copy.deepcopy(trainer.discriminator)
    assert updated and trainer.discriminator
    metric = squared_errors(updated.eval(), clean, enhanced, 1.0).mean()
    assert logs["metric"] == pytest.approx(metric.item(), rel=1e-4)
    assert all(parameter.requires_grad for parameter in trainer.discriminator.parameters())


@pytest.mark.usefixtures("no_dropout")
def test_discriminator_can_see_the_magnitude_of_the_waveform(make: MakeTrainer) -> None:
    trainer = make(metric_reanalysed=True)
    clean, enhanced = enhance_batch(trainer.network, trainer, BATCHES[0])
    reanalysed = enhanced._replace(spectra=trainer.spectrogram(enhanced.wav))
    discriminator = copied_discriminator(trainer)
    logs = floats(trainer.step(BATCHES[0], 0))
    of_clean, *others = (
        squared_errors(discriminator, clean, speech, target).mean().item()
        for speech, target in ((clean, 1.0), (reanalysed, LABELS[0]), (enhanced, LABELS[0]))
    )
    assert logs["discriminator"] == pytest.approx(of_clean + others[0], rel=1e-5)
    assert logs["discriminator"] != pytest.approx(of_clean + others[1], rel=1e-4)
    updated = copy.deepcopy(trainer.discriminator)
    assert updated
    metric = squared_errors(updated.eval(), clean, reanalysed, 1.0).mean()
    assert logs["metric"] == pytest.approx(metric.item(), rel=1e-4)


@pytest.mark.usefixtures("no_dropout")
def test_metric_lag_uses_the_labels_of_the_previous_batch(make: MakeTrainer) -> None:
    trainer = make(metric_lag=1)
    first = enhance_batch(trainer.network, trainer, BATCHES[0])
    discriminator = copied_discriminator(trainer)
    logs = floats(trainer.step(BATCHES[0], 0))
    expected = squared_errors(discriminator, first[0], first[0], 1.0).mean()
    assert logs["discriminator"] == pytest.approx(expected.item(), rel=1e-4)
    second = enhance_batch(trainer.network, trainer, BATCHES[1])
    discriminator = copied_discriminator(trainer)
    logs = floats(trainer.step(BATCHES[1], 0))
    expected = squared_errors(discriminator, second[0], second[0], 1.0).mean()
    expected += squared_errors(discriminator, *first, LABELS[0]).mean()
    assert logs["discriminator"] == pytest.approx(expected.item(), rel=1e-3)


def test_each_use_of_the_discriminator_has_its_own_dropout(make: MakeTrainer, no_dropout: list[int]) -> None:
    trainer = make()
    for batch in BATCHES[:2]:
        trainer.step(batch, 0)
    assert len(no_dropout) == len(set(no_dropout)) == 6
