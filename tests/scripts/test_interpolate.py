"""Interpolated checkpoints: weights and statistics by hand, other networks, wrong shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.checkpoint import load_checkpoint, save_checkpoint
from scripts import interpolate
from tests.fixtures.commands import call_main
from tests.fixtures.networks import random_network


@pytest.fixture
def networks(tmp_path: Path) -> list[nn.Module]:
    """Two networks with batch norms, whose checkpoints are 0 and 1."""
    made: list[nn.Module] = []
    for number in range(2):
        network, config = random_network("dpcrn")
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, number + 0.5, number + 1.5)
        save_checkpoint(tmp_path / str(number), network, config)
        made.append(network)
    return made


def test_weights_and_statistics(networks: list[nn.Module], tmp_path: Path) -> None:
    done = call_main(interpolate.main, tmp_path / "0", tmp_path / "1", "--share", 0.25, "--output", tmp_path / "x")
    assert (done.returncode, done.stderr) == (0, "")
    between, config = load_checkpoint(tmp_path / "x")
    assert config == load_checkpoint(tmp_path / "0")[1]
    first, second = (network.state_dict() for network in networks)
    assert any("running_var" in name for name in first)
    for name, value in between.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name])


@pytest.mark.parametrize(("other", "share", "words"), [("other", 0.5, "other: another"), ("1", 1.5, "--share")])
def test_another_stft_and_a_wrong_share(
    networks: list[nn.Module], tmp_path: Path, other: str, share: float, words: str
) -> None:
    _, config = load_checkpoint(tmp_path / "0")
    save_checkpoint(tmp_path / "other", networks[0], replace(config, stft=replace(config.stft, hop_size=128)))
    options = "--share", share, "--output", tmp_path / "x"
    done = call_main(interpolate.main, tmp_path / "0", tmp_path / other, *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "x").exists()
