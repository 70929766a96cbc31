"""Trainers for tests of the training step: the network `tiny` of tests.fixtures.training, given labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.fixtures.training  # noqa: F401 (registers the network `tiny`)
from config import Config, StftConfig, UNetConfig, load_config
from enhance.enhancer import Enhancer
from models.discriminator import HIDDEN
from tests.fixtures.commands import ROOT
from tests.fixtures.steps import ALONE, LABELS, SEGMENT, GivenLabels, MakeTrainer
from training import trainer
from training.trainer import Trainer


@pytest.fixture(scope="session")
def step_config(small_config: Config) -> Config:
    return replace(
        small_config,
        model=UNetConfig("tiny", channels=8, beta=2.0),
        stft=StftConfig(n_fft=126, hop_size=60, win_size=126, compress_factor=0.3),
        data=replace(small_config.data, segment_size=SEGMENT),
    )


@pytest.fixture(scope="session")
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

    monkeypatch.setattr(trainer, "dropout_factors", keep_all)
    return seeds
