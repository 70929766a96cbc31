"""Trainers for the tests of the training step: a small network with small spectra, and labels that are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from config import Config, StftConfig
from models.discriminator import HIDDEN
from tests.fixtures.steps import ALONE, LABELS, SEGMENT, GivenLabels, Make
from training import trainer as steps
from training.trainer import Trainer


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
