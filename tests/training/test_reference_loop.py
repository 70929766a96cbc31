"""The plain transcription of the published loop trains as `training.trainer` does, from the same crops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config
from data.dataset import AudioCache, Batch, PairedDataset, load_batches
from data.file_lists import Utterance
from models import build
from models.losses import Speech, phase
from models.published import translate_published
from models.stft import Spectra, Spectrogram
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from tests.reference.training import PlainBatch, ReferenceTrainer, new_pool, pesq_labels, phase_loss, plain_loader
from training.pesq_labels import PesqLabeler
from training.trainer import Trainer
from utils.distributed import Group

CPU = torch.device("cpu")
Both = tuple[PlainBatch, Batch]


@pytest.fixture(scope="module")
def tiny_config(small_config: Config) -> Config:
    """Crops of half a second: a quarter is the least for PESQ, and the frames must be divisible by 4."""
    return replace(small_config, data=replace(small_config.data, segment_size=8300))


def write_utterances(folder: Path) -> list[Utterance]:
    """A dozen pairs of 3 s, at 0 to 15 dB."""
    pairs = [Utterance(str(n), folder / f"{n}_clean.wav", folder / f"{n}_noisy.wav") for n in range(12)]
    for number, pair in enumerate(pairs):
        clean = speech_like(3, seed=number)
        save(pair.clean, clean)
        save(pair.noisy, with_noise(clean, snr_db=5 * (number % 4), seed=12 + number))
    return pairs


@pytest.fixture(scope="module")
def batches(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[Both]:
    """The first two batches, as both loaders give them."""
    pairs = write_utterances(tmp_path_factory.mktemp("utterances"))
    seed, size = tiny_config.train.seed, tiny_config.train.batch_size
    source = PairedDataset(pairs, AudioCache(16_000, keep=True), tiny_config.data, seed)
    with closing(load_batches(source, seed, 0, 0, batch_size=size, rank=0, ranks=1, workers=1)) as loaded:
        ours = [next(loaded), next(loaded)]
    order = [int(index) for batch in ours for index in batch.indices]
    return list(zip(plain_loader(pairs, tiny_config, order, CPU), ours, strict=True))


@pytest.fixture
def trainers(tiny_config: Config) -> Iterator[tuple[ReferenceTrainer, Trainer]]:
    """Both with the same weights and the same dropout.

    In evaluation mode the discriminator's spectral normalisation keeps its vectors. In training they move each time
    it is called, which the plain loop does three times a step, and ours twice.
    """
    plain = ReferenceTrainer(tiny_config, CPU)
    network = build(tiny_config)
    network.load_state_dict(translate_published(plain.network.state_dict()))
    with PesqLabeler(jobs=1) as labels:
        ours = Trainer(tiny_config, Group(0, 1, CPU), labels)
        ours.load_weights(network)
        assert ours.discriminator
        ours.discriminator.load_state_dict(plain.discriminator.state_dict())
        for discriminator in (plain.discriminator, ours.discriminator):
            discriminator.eval()
        plain.dropout = ours._dropout
        yield plain, ours


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def joined(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """All values of some tensors, one after another."""
    return torch.cat([tensors[name].flatten() for name in names])


def distance(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def test_both_loaders_give_the_same_crops(tiny_config: Config, batches: list[Both]) -> None:
    spectrogram = Spectrogram(tiny_config.stft)
    for (wav, *spectra), batch in batches:
        assert np.array_equal(wav.numpy(), batch.clean)
        expected = *spectrogram(torch.from_numpy(batch.clean)), *spectrogram(torch.from_numpy(batch.noisy))
        for part, other in zip(spectra, expected, strict=True):
            torch.testing.assert_close(part, other, rtol=0, atol=1e-5)


def test_difference_matrices_give_our_phase_loss(tiny_config: Config) -> None:
    clean, enhanced = torch.empty(2, 2, 256, 84).uniform_(-4, 4, generator=torch.Generator().manual_seed(0))
    speech = [Speech(torch.empty(0), Spectra(torch.empty(0), pha)) for pha in (clean, enhanced)]
    torch.testing.assert_close(phase_loss(clean, enhanced), phase(speech[0], speech[1], Spectrogram(tiny_config.stft)))


def test_steps_have_our_losses_gradients_and_weights(
    trainers: tuple[ReferenceTrainer, Trainer], batches: list[Both]
) -> None:
    plain, ours = trainers
    names = [name for name, _ in ours.network.named_parameters()]
    first = joined(ours.network.state_dict(), names)
    for number, (plain_batch, batch) in enumerate(batches):
        expected = {name: float(value) for name, value in plain.step(plain_batch).items()}
        figures = ours.step(batch, epoch=0)
        terms = {name: figures[name] for name in expected}
        assert terms == pytest.approx(expected, rel=1e-5 if number == 0 else 1e-3)
        if number == 0:
            gradients = joined(gradients_of(ours.network), names)
            assert distance(gradients, joined(translate_published(gradients_of(plain.network)), names)) < 0.01
        # AdamW's first steps go by a gradient's sign: where it is all but 0, rounding decides.
        change = joined(ours.network.state_dict(), names) - first
        assert distance(change, joined(translate_published(plain.network.state_dict()), names) - first) < 0.1
    assert ours.labels
    assert ours.labels.failed == 0
    assert ours.discriminator
    for weight, other in zip(ours.discriminator.parameters(), plain.discriminator.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-4)


def test_one_crop_without_pesq_costs_the_batch_its_labels() -> None:
    speech = np.random.default_rng(0).standard_normal((2, 16_000))
    with new_pool(2) as pool:
        labels = pesq_labels(pool, speech, speech)
        assert labels is not None
        assert labels.shape == (2,)
        speech[1] = 0
        assert pesq_labels(pool, speech, speech) is None
