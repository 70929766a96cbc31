"""Interpolated checkpoints: weights by hand, other networks, wrong shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import Config
from models import build
from models.checkpoint import load_checkpoint, save_checkpoint
from scripts import interpolate
from tests.fixtures.commands import call_main
from tests.fixtures.networks import random_network


@pytest.fixture
def checkpoints(tmp_path: Path, small_config: Config) -> tuple[Path, Path]:
    """Two networks with constant weights, 1 and 3."""
    paths = tmp_path / "one.safetensors", tmp_path / "three.safetensors"
    for path, value in zip(paths, (1.0, 3.0), strict=True):
        network = build(small_config)
        for weight in network.parameters():
            torch.nn.init.constant_(weight, value)
        save_checkpoint(path, network, small_config)
    return paths


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights(checkpoints: tuple[Path, Path], tmp_path: Path, share: float, small_config: Config) -> None:
    output = tmp_path / "between.safetensors"
    done = call_main(interpolate.main, *checkpoints, "--share", share, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    network, config = load_checkpoint(output)
    assert config == small_config
    assert {value.item() for weight in network.parameters() for value in weight.unique()} == {1 + 2 * share}


def test_statistics_of_batch_norms(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    networks: list[torch.nn.Module] = []
    for path in paths:
        network, config = random_network("dpcrn")
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
        save_checkpoint(path, network, config)
        networks.append(network)
    done = call_main(interpolate.main, *paths, "--share", 0.25, "--output", tmp_path / "between")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, between = (each.state_dict() for each in (*networks, load_checkpoint(tmp_path / "between")[0]))
    assert any("running_var" in name for name in between)
    for name, value in between.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name])


def test_another_network(checkpoints: tuple[Path, Path], tmp_path: Path, small_config: Config) -> None:
    other = replace(small_config, stft=replace(small_config.stft, hop_size=50))
    save_checkpoint(tmp_path / "other.safetensors", build(other), other)
    done = call_main(interpolate.main, checkpoints[0], tmp_path / "other.safetensors", "--output", tmp_path / "x")
    assert done.returncode == 2
    assert "other.safetensors" in done.stderr
    assert not (tmp_path / "x").exists()
    done = call_main(interpolate.main, *checkpoints, "--share", 1.5, "--output", tmp_path / "x")
    assert done.returncode == 2
    assert "--share" in done.stderr
