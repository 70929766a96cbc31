"""What tests share: the paper's configuration, and a small network's checkpoint that needs no download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from config import Config, load_config
from enhance.enhancer import Enhancer
from models import build
from models.checkpoint import save_checkpoint
from tests.fixtures.commands import ROOT


@pytest.fixture(autouse=True)
def _thread_count_of_its_own() -> Iterator[None]:
    """A command that runs within a test sets PyTorch's threads for that test alone."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def config() -> Config:
    """The paper's configuration."""
    return load_config(ROOT / "configs" / "imse.json")


@pytest.fixture(scope="session")
def small_config(config: Config) -> Config:
    """The paper's configuration at half of its width."""
    return replace(config, model=replace(config.model, channels=8))


@pytest.fixture(scope="session")
def small_checkpoint(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file with seeded random weights; not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(small_config)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, network, small_config)
    return path


@pytest.fixture
def identity(config: Config) -> Enhancer:
    """All of the enhancement but a network."""
    return Enhancer(nn.Identity(), config)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Released checkpoints with known inputs and outputs, which stand beside the project where they are at hand."""
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the reference data is not beside the project")
    return folder
