"""Fixtures for all tests: configurations, small checkpoints, the reference data."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from config import Config, load_config
from enhance.enhancer import Enhancer
from tests.fixtures.commands import ROOT
from tests.fixtures.networks import save_random


def pytest_configure() -> None:
    """Restore SIGINT: in background jobs shells ignore it, which processes started by tests would inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restored_thread_count() -> Iterator[None]:
    """Restore PyTorch's number of threads, which commands called in-process change."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the networks that OpenVINO compiles, the same for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def config() -> Config:
    """The configuration of the paper."""
    return load_config(ROOT / "configs" / "imse.json")


@pytest.fixture(scope="session")
def small_config(config: Config) -> Config:
    """The configuration of the paper with 8 channels instead of 16."""
    return replace(config, model=replace(config.model, channels=8))


@pytest.fixture(scope="session")
def quick_config(small_config: Config) -> Config:
    """That with segments of a quarter of a second, so that short files have several windows."""
    return replace(small_config, data=replace(small_config.data, segment_size=4000))


@pytest.fixture(scope="session")
def small_checkpoint(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `small_config` with seeded random weights; read-only."""
    return save_random(tmp_path_factory.mktemp("checkpoint") / "small.safetensors", small_config)


@pytest.fixture(scope="session")
def lite_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Lite-RTSE, the fastest network, which runs live, with seeded random weights; read-only."""
    config = load_config(ROOT / "configs" / "lite_rtse.json")
    return save_random(tmp_path_factory.mktemp("checkpoint") / "lite.safetensors", config)


@pytest.fixture
def identity(config: Config) -> Enhancer:
    """An enhancer whose network returns its input."""
    return Enhancer(nn.Identity(), config)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Released checkpoints with recorded inputs and outputs; skips the test if they are not in ../shared."""
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("no reference data in ../shared/reference")
    return folder
