"""The folder of a run: no run is overwritten by mistake, no other state is loaded, its curves have no gap."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from config import Config
from tests.fixtures.commands import error_line
from tests.fixtures.recordings import files_below
from tests.fixtures.training import read_curves
from training.logger import TensorBoardLogger
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


@pytest.mark.parametrize("left", ["latest.pt", "best.safetensors"])
def test_folder_of_another_run_is_refused(tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch()
    message = error_line(lambda: RunDir(tmp_path))
    assert str(tmp_path) in message and left in message and "--overwrite" in message
    assert ("--resume" in message) == (left == "latest.pt")  # without the state there is nothing to resume
    assert RunDir(tmp_path, overwrite=True).path == tmp_path
    assert files_below(tmp_path) == {left}


def test_nothing_to_resume(tmp_path: Path, run: RunDir) -> None:
    assert "leave out --resume" in error_line(lambda: RunDir(tmp_path / "none", resume=True))
    run.state.unlink()
    assert "--overwrite" in error_line(lambda: RunDir(run.path, resume=True))


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
        message = error_line(lambda: run.load_state(config))
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
    assert "not a training state" in error_line(lambda: run.load_state(config))
    assert not Path("executed").exists()


def test_resumed_curves_have_no_gap_and_no_overlap(tmp_path: Path) -> None:
    killed = TensorBoardLogger(tmp_path, 0)
    for step in range(1, 16):
        killed.scalars("training", {"loss": 1, "rate": step}, step)
    killed.flush()  # killed after step 15, last saved after step 10
    assert len(read_curves(tmp_path)["training/loss"]) == 15
    time.sleep(1.1)  # files are read in the order of the second in which they were created
    resumed = TensorBoardLogger(tmp_path, 10)
    for step in range(11, 21):
        resumed.scalars("training", {"loss": 3, "rate": step}, step)
    resumed.close()
    assert read_curves(tmp_path) == {
        "training/loss": [(step, 1 if step <= 10 else 3) for step in range(1, 21)],
        "training/rate": [(step, step) for step in range(1, 21)],
    }
