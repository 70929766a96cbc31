"""The folder of a run: never another run's by mistake, and whole files at any moment."""

from __future__ import annotations

import errno
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


def test_a_new_run_has_its_configuration(tmp_path: Path, config: Config) -> None:
    folder = RunDir(tmp_path / "deep" / "run")
    folder.begin(config)
    assert files_below(tmp_path) == {"deep/run/config.json"}
    assert load_config(folder.path / "config.json") == config


def test_what_is_saved_is_loaded(run: RunDir, config: Config) -> None:
    state = RunDir(run.path, resume=True).load_state(config)
    assert state["global_step"] == 7
    assert torch.equal(state["weights"], STATE["weights"])
    assert files_below(run.path) == {"config.json", "latest.pt", "latest.safetensors"}
    assert run.latest.stat().st_size > 0


@pytest.mark.parametrize("left", ["latest.pt", "latest.safetensors", "best.safetensors"])
def test_another_run_s_folder_is_refused(tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch()
    message = message_of(lambda: RunDir(tmp_path))
    assert str(tmp_path) in message and left in message
    assert "--overwrite" in message
    assert ("--resume" in message) == (left == "latest.pt")  # without the state there is nothing to go on from
    assert RunDir(tmp_path, overwrite=True).path == tmp_path
    assert files_below(tmp_path) == {left}


def test_a_folder_with_other_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    RunDir(tmp_path)


def test_there_must_be_something_to_resume(tmp_path: Path, run: RunDir) -> None:
    message = message_of(lambda: RunDir(tmp_path / "none", resume=True))
    assert message.endswith("nothing to resume; leave --resume out")
    run.state.unlink()
    message = message_of(lambda: RunDir(run.path, resume=True))
    assert message.endswith("nothing to resume; begin anew with --overwrite")


def test_what_a_killed_process_left_goes_with_the_next_save(run: RunDir, config: Config) -> None:
    for name in (".0123456789abcdef.part", ".notes.part"):
        (run.path / name).touch()
    run.save(NETWORK, config, STATE)
    assert files_below(run.path) == {"config.json", "latest.pt", "latest.safetensors", ".notes.part"}


def test_an_overwritten_run_leaves_nothing(run: RunDir, config: Config) -> None:
    run.best.touch()
    run.tensorboard.mkdir()
    for name in ("events.out.tfevents.1", "events.out.tfevents.2", "notes.txt"):
        (run.tensorboard / name).touch()
    changed = replace(config, train=replace(config.train, seed=7))
    RunDir(run.path, overwrite=True).begin(changed)
    assert files_below(run.path) == {"config.json", "tensorboard/notes.txt"}
    assert load_config(run.path / "config.json") == changed


def test_a_folder_that_cannot_be_made(tmp_path: Path, config: Config) -> None:
    (tmp_path / "file").touch()
    message = message_of(lambda: RunDir(tmp_path / "file" / "run").begin(config))
    assert "cannot be written: Not a directory" in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9, 0.99])
def test_a_state_cut_short(run: RunDir, config: Config, share: float) -> None:
    content = run.state.read_bytes()
    run.state.write_bytes(content[: int(len(content) * share)])
    message = message_of(lambda: run.load_state(config))
    assert "cut short" in message and str(run.state) in message


@pytest.mark.parametrize("content", [b"these are no weights\n" * 100, b"PK\x03\x04" + bytes(500), bytes(1000)])
def test_garbage_for_a_state(run: RunDir, config: Config, content: bytes) -> None:
    run.state.write_bytes(content)
    assert "not a training state" in message_of(lambda: run.load_state(config))


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_nothing_in_a_state_is_executed(run: RunDir, config: Config) -> None:
    marker = run.path / "executed"
    torch.save({"config": Hostile(marker)}, run.state)
    assert "not a training state" in message_of(lambda: run.load_state(config))
    assert not marker.exists()


@pytest.mark.parametrize("content", [{"generator": {}}, [1, 2], torch.zeros(3)])
def test_a_file_of_another_kind(run: RunDir, config: Config, content: object) -> None:
    torch.save(content, run.state)
    assert "not a training state" in message_of(lambda: run.load_state(config))


def test_a_state_of_another_configuration_is_refused_by_the_names_that_differ(run: RunDir, config: Config) -> None:
    other = replace(
        config,
        model=replace(config.model, channels=8),
        optim=replace(config.optim, learning_rate=1e-4),
        train=replace(config.train, epochs=1, seed=5),
    )
    message = message_of(lambda: run.load_state(other))
    assert "differs in model.channels, optim.learning_rate, train.seed;" in message
    assert str(run.path / "config.json") in message


def test_a_section_that_is_only_in_one_configuration_differs(run: RunDir, config: Config) -> None:
    mix = load_config(Path(__file__).parents[2] / "configs" / "imse_mix.json").mix
    assert "mix.snr_low" in message_of(lambda: run.load_state(replace(config, mix=mix)))


def test_how_long_a_run_is_may_change(run: RunDir, config: Config) -> None:
    longer = replace(config.train, epochs=1000, validation_interval=7, save_interval=9)
    assert run.load_state(replace(config, train=longer))["global_step"] == 7


@pytest.mark.parametrize("written", [0, 1])
def test_a_disk_that_fills_up_leaves_the_files_before(
    run: RunDir, config: Config, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Of the two files, the first or the second does not fit any more."""
    before = {path: path.read_bytes() for path in (run.latest, run.state)}
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("utils.atomic.os.fsync", fsync)
    message = message_of(lambda: run.save(nn.Linear(2, 2), config, STATE | {"global_step": 8}))
    assert "cannot be written: No space left on device" in message
    assert {path: path.read_bytes() for path in before} == before
    assert files_below(run.path) == {"config.json", "latest.pt", "latest.safetensors"}
    monkeypatch.undo()
    run.save(nn.Linear(2, 2), config, STATE | {"global_step": 8})
    assert run.load_state(config)["global_step"] == 8
    assert run.latest.read_bytes() != before[run.latest]
