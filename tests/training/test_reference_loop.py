"""`Trainer` against the plain transcription of the published loop, on the same crops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config, StftConfig
from data.dataset import AudioCache, Batch, PairedDataset, load_batches
from data.file_lists import Utterance
from models import build
from models.published import translate_published
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from tests.fixtures.steps import ALONE, GivenLabels
from tests.reference import training as reference
from tests.reference.training import ReferenceTrainer, plain_loader, waveform
from tests.reference.training import spectra as reference_spectra
from training.trainer import Trainer

LABELS = [(0.2, 0.7), (0.9, 0.4)]


@pytest.fixture(scope="module")
def tiny_config(small_config: Config) -> Config:
    """Crops of 20 frames: the reference network needs a multiple of 4."""
    return replace(
        small_config,
        stft=StftConfig(n_fft=126, hop_size=40, win_size=126, compress_factor=0.3),
        data=replace(small_config.data, segment_size=760),
    )


def batches_of_both(folder: Path, config: Config) -> list[tuple[reference.PlainBatch, Batch]]:
    """Return the first two batches of 1 s utterances, from both loaders."""
    pairs = [Utterance(str(n), folder / f"{n}_clean.wav", folder / f"{n}_noisy.wav") for n in range(6)]
    for number, pair in enumerate(pairs):
        clean = speech_like(1, seed=number)
        save(pair.clean, clean)
        save(pair.noisy, with_noise(clean, snr_db=5 * (number % 4), seed=12 + number))
    seed, size = config.train.seed, config.train.batch_size
    crops = PairedDataset(pairs, AudioCache(16_000, keep=True), config.data, seed)
    with closing(load_batches(crops, seed, 0, 0, batch_size=size, rank=0, ranks=1, workers=1)) as loaded:
        ours = [next(loaded), next(loaded)]
    order = [int(index) for batch in ours for index in batch.indices]
    return list(zip(plain_loader(pairs, config, order, torch.device("cpu")), ours, strict=True))


@pytest.fixture
def double() -> Iterator[None]:
    """Use double precision: in single precision rounding decides on the sign of AdamW's first steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def joined(tensors: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in names])


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def distance(x: Tensor, expected: Tensor) -> float:
    return float((x - expected).norm() / expected.norm())


@pytest.mark.usefixtures("double")
def test_steps_have_the_reference_losses_gradients_and_weights(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config
    given = iter(LABELS)
    monkeypatch.setattr(reference, "pesq_labels", lambda *_: torch.tensor(next(given), dtype=torch.float32))
    expected = ReferenceTrainer(config, torch.device("cpu"))
    network = build(config)
    network.load_state_dict(translate_published(expected.network.state_dict()))
    trainer = Trainer(config, ALONE, GivenLabels(*LABELS))
    trainer.load_weights(network)
    assert trainer.discriminator
    trainer.discriminator.load_state_dict(expected.discriminator.state_dict())
    # In training, spectral normalization does a power iteration per call: three per step here, two in `Trainer`.
    for discriminator in (trainer.discriminator, expected.discriminator):
        discriminator.eval()
    expected.dropout = trainer.dropout

    names = [name for name, _ in trainer.network.named_parameters()]
    first = joined(trainer.network.state_dict(), names)
    for _, batch in batches_of_both(tmp_path, config):
        crops = Batch(batch.indices, batch.clean.astype(np.float64), batch.noisy.astype(np.float64), batch.dry)
        clean, noisy = torch.from_numpy(crops.clean), torch.from_numpy(crops.noisy)
        plain_batch = (clean, *reference_spectra(clean, config.stft), *reference_spectra(noisy, config.stft))
        losses = {name: value.item() for name, value in expected.step(plain_batch).items()}
        logs = trainer.step(crops, epoch=0)
        assert {name: logs[name].item() for name in losses} == pytest.approx(losses, rel=1e-6)
        gradients = joined(gradients_of(trainer.network), names)
        assert distance(gradients, joined(translate_published(gradients_of(expected.network)), names)) < 1e-5
        change = joined(trainer.network.state_dict(), names) - first
        assert distance(change, joined(translate_published(expected.network.state_dict()), names) - first) < 1e-4
    for weight, other in zip(trainer.discriminator.parameters(), expected.discriminator.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-6)


def test_both_loaders_give_the_same_crops(tiny_config: Config, tmp_path: Path) -> None:
    # Compare waveforms: compression amplifies the rounding errors of small magnitudes.
    stft = tiny_config.stft
    for (wav, clean_mag, clean_pha, noisy_mag, noisy_pha), batch in batches_of_both(tmp_path, tiny_config):
        assert np.array_equal(wav.numpy(), batch.clean)
        np.testing.assert_allclose(waveform(clean_mag, clean_pha, stft), batch.clean, rtol=0, atol=1e-4)
        np.testing.assert_allclose(waveform(noisy_mag, noisy_pha, stft), batch.noisy, rtol=0, atol=1e-4)
