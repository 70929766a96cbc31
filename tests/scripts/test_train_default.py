"""The script that trains the embedded checkpoint, run as a user runs it, on a little synthetic speech and noise."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from config import ImseConfig
from data.audio import AudioFormat, write_audio
from models.checkpoint import load_checkpoint
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like

TINY = {
    "model.channels": "8",
    "data.segment_size": "8000",
    "mix.validation_mixes": "1",
    "train.compile": "false",
    "train.bf16": "false",
}


@pytest.mark.skipif(not (ROOT / ".venv").is_dir(), reason="needs the environment that scripts/setup.sh makes")
def test_a_folder_of_speech_and_one_of_noise_become_a_checkpoint(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("anna_1", "ben_1", "carl_1"):
        save(tmp_path / "speech" / f"{name}.wav", speech_like(1.5, seed=len(name) + ord(name[0])))
    for name in ("rain", "wind"):
        save(tmp_path / "noise" / f"{name}.wav", 0.1 * random.standard_normal(32_000))
    output = tmp_path / "out" / "trained.safetensors"
    output.parent.mkdir()
    command = ["bash", str(ROOT / "scripts" / "train_default.sh"), "speech", "noise", "--device", "cpu", "--quiet"]
    settings = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    environment = os.environ | {"RUN": str(tmp_path / "run"), "OUTPUT": str(output), "OMP_NUM_THREADS": "1"}
    for steps in ("2", "3"):  # the second call goes on with the run
        result = subprocess.run(
            [*command, *settings, "--max_steps", steps],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert f"step {steps}: " in result.stdout
    network, config = load_checkpoint(output)
    assert isinstance(config.model, ImseConfig)
    assert config.model.channels == 8
    assert sum(weight.numel() for weight in network.parameters()) > 0


def save(path: Path, signal: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    write_audio(path, signal[:, None], AudioFormat(16_000, 1))


def test_without_folders_it_says_how_it_is_called() -> None:
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / "train_default.sh")], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("usage: bash scripts/train_default.sh SPEECH NOISE")
