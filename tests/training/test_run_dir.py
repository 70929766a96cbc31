"""The folder of a run: no run is overwritten by mistake, and no other state is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cli import UserError
from config import Config, load_config
from tests.fixtures.recordings import files_below
from tests.fixtures.training import MIX
from training.run_dir import RunDir

NETWORK = nn.Linear(2, 2)
STATE = {"global_step": 7, "weights": torch.arange(3.0)}


@pytest.fixture
def run(tmp_path: Path, config: Config) -> RunDir:
    """A run that has saved once."""
    folder = RunDir(tmp_path / "run")
    folder.begin(config)
    folder.save(NETWORK, config, STATE)
    return folder


def message_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_begin_writes_the_configuration(tmp_path: Path, config: Config) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").touch()
    RunDir(tmp_path / "run").begin(config)
    assert files_below(tmp_path) == {"run/config.json", "run/notes.txt"}
    assert load_config(tmp_path / "run/config.json") == config
    assert "Not a directory" in message_of(lambda: RunDir(tmp_path / "run/notes.txt/run").begin(config))


@pytest.mark.parametrize("left", ["latest.pt", "best.safetensors"])
def test_folder_of_another_run_is_refused(tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch()
    message = message_of(lambda: RunDir(tmp_path))
    assert str(tmp_path) in message and left in message and "--overwrite" in message
    assert ("--resume" in message) == (left == "latest.pt")  # without the state there is nothing to resume
    assert RunDir(tmp_path, overwrite=True).path == tmp_path
    assert files_below(tmp_path) == {left}


def test_nothing_to_resume(tmp_path: Path, run: RunDir) -> None:
    assert "leave out --resume" in message_of(lambda: RunDir(tmp_path / "none", resume=True))
    run.state.unlink()
    assert "--overwrite" in message_of(lambda: RunDir(run.path, resume=True))


class Hostile:
    """Run a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_damaged_state(run: RunDir, config: Config) -> None:
    content = run.state.read_bytes()
    flipped = content.replace(STATE["weights"].numpy().tobytes(), (STATE["weights"] + 1).numpy().tobytes())
    assert flipped != content
    for damaged in (flipped, *(content[: int(len(content) * share)] for share in (0, 0.001, 0.5, 0.99))):
        run.state.write_bytes(damaged)
        message = message_of(lambda: run.load_state(config))
        assert "damaged" in message and str(run.state) in message


@pytest.mark.parametrize(
    "content", [b"no weights\n" * 100, {"generator": {}}, [1, 2], torch.zeros(3), Hostile(Path("executed"))]
)
def test_other_file_for_a_state(
    run: RunDir, config: Config, content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        run.state.write_bytes(content)
    else:
        torch.save({"config": content} if isinstance(content, Hostile) else content, run.state)
    assert "not a training state" in message_of(lambda: run.load_state(config))
    assert not Path("executed").exists()


def test_state_of_another_configuration(run: RunDir, config: Config) -> None:
    other = replace(
        config,
        model=replace(config.model, channels=8),
        optim=replace(config.optim, learning_rate=1e-4),
        train=replace(config.train, epochs=1, seed=5),
        mix=load_config(MIX).mix,
    )
    message = message_of(lambda: run.load_state(other))
    for name in ("model.channels", "optim.learning_rate", "train.seed", "mix.snr_low", str(run.path / "config.json")):
        assert name in message
    assert "epochs" not in message
