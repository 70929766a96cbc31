"""`train.py` with unusable input: an exit code, one clear message before any work, and no file half written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

import train
from config import load_config
from data.splits import hold_out_speakers
from models.checkpoint import load_checkpoint
from tests.fixtures.commands import ROOT, Result, run_python
from tests.fixtures.recordings import NOISE, files_below, files_limited_to, load, save
from tests.fixtures.training import (
    MIX,
    ONE_THREAD,
    PAPER,
    RUN_FILES,
    SMALL,
    TINY,
    curves_of,
    settings,
    state_of,
    train_here,
    write_list,
    write_noises,
    write_pairs,
)

GOOD = [f"s_{index}" for index in range(3)]
OPTIONS = [*TINY, "--quiet", "--checkpoint_path=run"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def refused(folder: Path, *arguments: object) -> list[str]:
    """Run a command that must exit with code 2 and change nothing; return the lines on standard error."""
    before = contents(folder)
    ended = train_here(folder, *OPTIONS, *arguments)
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert contents(folder) == before
    lines = ended.stderr.splitlines()
    assert 1 <= len(lines) <= 11
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs, `training.txt` and noises; tests may add files."""
    folder = tmp_path_factory.mktemp("errors")
    write_pairs(folder, len(GOOD))
    write_noises(folder / "noise")
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step in a copy of that folder; read-only."""
    copy = tmp_path_factory.mktemp("finished") / "copy"
    shutil.copytree(folder, copy)
    assert train_here(copy, *OPTIONS, "--max_steps=1").returncode == 0
    return copy / "run"


@pytest.fixture
def holding(finished: Path, tmp_path: Path) -> Path:
    """A folder with the pairs and a copy of that run in `run`."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    return tmp_path / "copy"


def missing_files(_: Path) -> list[str]:
    return [*GOOD, *(f"missing_{index}" for index in range(6))]


def silent(folder: Path) -> list[str]:
    for name in ("s_silent_0", "s_silent_1"):
        save(folder / f"clean/{name}.wav", np.zeros(24_000))
        save(folder / f"noisy/{name}.wav", load(folder / "noisy/s_0.wav"))
    return ["s_silent_0", "s_silent_1"]


def no_sound(folder: Path) -> list[str]:
    (folder / "clean/s_text.wav").write_text("Dear diary,\n")
    save(folder / "noisy/s_text.wav", load(folder / "noisy/s_0.wav"))
    return [*GOOD, "s_text"]


def damaged(folder: Path) -> list[str]:
    """Add a file with a valid header that cannot be decoded."""
    save(folder / "clean/s_cut.flac", NOISE, container="FLAC")
    content = bytearray((folder / "clean/s_cut.flac").read_bytes())
    content[30_000:50_000] = bytes(20_000)
    (folder / "clean/s_cut.wav").write_bytes(content)
    (folder / "clean/s_cut.flac").unlink()
    save(folder / "noisy/s_cut.wav", NOISE)
    return [*GOOD, "s_cut"]


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (missing_files, ["12 of 18 files", "clean/missing_0.wav", "noisy/missing_0.wav"]),
        (no_sound, ["1 of 4 pairs", "clean/s_text.wav"]),
        (damaged, ["1 of 8 files", "clean/s_cut.wav"]),
        (silent, ["silent"]),
        (lambda _: [], ["list.txt"]),
        (lambda _: GOOD[:1], ["too few"]),
    ],
    ids=["missing", "no sound", "damaged", "silent", "empty", "one"],
)
def test_unusable_lists(folder: Path, listed: Callable[[Path], list[str]], words: list[str]) -> None:
    """tests/data/test_dataset.py has more of them."""
    write_list(folder / "list.txt", listed(folder))
    options = ["--input_training_file=list.txt"]
    if listed in (missing_files, no_sound):  # a list that is scored at the end is checked at the start
        options.append("--input_validation_file=list.txt")
    for option in options:
        lines = refused(folder, option)
        assert len(lines) == (11 if listed is missing_files else len(words))
        assert all(word in line for line, word in zip(lines, words, strict=False)), lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_training_file=none.txt"], ["none.txt"]),
        (["--input_clean_wavs_dir=none"], ["none"]),
        (["--input_noise_dir=noise"], ["--input_noise_dir", "mix"]),
        (["--fine_tune=training.txt"], ["training.txt"]),
        (settings(train_distillation=0.5), ["train.distillation", "--teacher"]),
        (["--teacher=training.txt"], ["train.distillation", "--teacher"]),
        ([*settings(train_distillation=0.5), "--teacher=training.txt"], ["training.txt"]),
        (["--resume"], ["run/latest.pt", "--resume"]),
        (settings(train_batch_size=3), ["imse.json", "train.batch_size"]),
        (settings(data_sampling_rate=8000), ["imse.json", "data.sampling_rate"]),
        (["--training_epochs=0"], ["imse.json", "train.epochs"]),
        (["--validation_interval=-1"], ["imse.json", "train.validation_interval"]),
        (["--max_steps=0"], ["--max_steps"]),
        (["--device=meta"], ["--device", "meta"]),
        (["--select_on=test"], ["--select_on", "--input_validation_file"]),
        (["--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["--resume", "--teacher=training.txt"], ["--resume", "--teacher"]),
        (["--checkpoint_path=training.txt"], ["training.txt"]),
        (["--checkpoint_path=/proc/run"], ["/proc/run"]),
    ],
    ids=str,
)
def test_wrong_command_lines(folder: Path, arguments: list[str], words: list[str]) -> None:
    (line,) = refused(folder, *arguments)
    assert all(word in line for word in words), line


def test_a_gpu_for_all_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    (line,) = refused(folder, "--device=cuda:0")
    assert "cuda:0" in line and "torchrun" in line


def test_missing_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: None if name == "tensorboard" else name)
    (line,) = refused(folder)
    assert "TensorBoard" in line and "pip install" in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--input_clean_wavs_dir=speech"], "--input_noise_dir"),
        (["--input_clean_wavs_dir=speech", "--input_noise_dir=quiet"], "silent"),
        (
            ["--input_clean_wavs_dir=speech", "--input_noise_dir=quiet", "--input_noisy_wavs_dir=speech"],
            "noisy_wavs_dir",
        ),
    ],
)
def test_impossible_mixes(folder: Path, arguments: list[str], word: str) -> None:
    for index in range(2):
        save(folder / f"quiet/{index}.wav", np.zeros(4000))
        save(folder / f"speech/{index}.wav", NOISE)
    off = settings(train_compile="false", train_bf16="false")
    (line,) = refused(folder, f"--config={MIX}", *off, *arguments)
    assert word in line


def test_without_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    ended = train_here(folder, *OPTIONS, *settings(train_compile="true"), "--checkpoint_path=uncompiled")
    assert ended.returncode == 1
    assert "train.compile" in ended.stderr.splitlines()[-1] and "no C++ compiler" in ended.stderr.splitlines()[-1]


def test_folder_of_another_run(holding: Path) -> None:
    (line,) = refused(holding)
    assert all(word in line for word in ("latest.pt", "--resume", "--overwrite"))
    (holding / "run/tensorboard/notes.txt").touch()
    changed = settings(train_seed=7)
    assert train_here(holding, *OPTIONS, *changed, "--max_steps=2", "--overwrite").returncode == 0
    assert state_of(holding / "run")["/global_step"] == 2
    assert load_config(holding / "run/config.json").train.seed == 7
    (events,) = files_below(holding / "run") - RUN_FILES - {"tensorboard/notes.txt"}
    assert events.startswith("tensorboard/events.")
    assert [step for step, _ in curves_of(holding / "run")["validation/pesq"]] == [2]


def test_fine_tuning_another_network(folder: Path, small_checkpoint: Path, finished: Path) -> None:
    wider = settings(model_channels=16)
    for path, change, setting in (
        (small_checkpoint, [], "stft.n_fft="),
        (finished / "best.safetensors", wider, "model.channels=8"),
    ):
        (line,) = refused(folder, f"--fine_tune={path}", *change)
        assert str(path) in line and str(PAPER) in line and setting in line


def test_unusable_states(holding: Path) -> None:
    """tests/training/test_run_dir.py has damaged files."""
    (line,) = refused(holding, "--resume", *settings(model_channels=16, optim_lr_decay=0.5, train_epochs=7))
    assert "model.channels, optim.lr_decay; resume" in line
    write_list(holding / "others.txt", ["s_2", "s_1", "s_0"])
    (line,) = refused(holding, "--resume", "--input_training_file=others.txt")
    assert "data" in line
    path = holding / "run/latest.pt"
    state = torch.load(path, weights_only=True)
    schedule = settings(optim_schedule="cosine")
    config = state["config"] | {"optim": state["config"]["optim"] | {"schedule": "cosine"}}
    torch.save(state | {"config": config}, path)
    (line,) = refused(holding, "--resume", *schedule, "--max_steps=17")
    assert "run/latest.pt" in line and "17" in line and "--max_steps" in line
    for change, word in (({"total_batch": 8}, "batch"), ({"network": {}}, "does not fit"), ({"optimizer": {}}, "fit")):
        torch.save(state | change, path)
        (line,) = refused(holding, "--resume")
        assert "run/latest.pt" in line and word in line


def failed(ended: Result) -> str:
    """Return the one line on standard error, after the two about the data, of a run that failed."""
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()[2:]
    return line


def test_diverging_run_stops(folder: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--max_steps=40", *settings(optim_learning_rate=1e9, train_save_interval=2)]
    line = failed(train_here(folder, *options, "--checkpoint_path", tmp_path))
    match = re.match(r"step (\d+): .* not finite (\d+) times", line)
    assert match and str(tmp_path) in line
    last, skipped = map(int, match.groups())
    assert skipped >= train.MAX_NONFINITE_STEPS and last % train.LOG_INTERVAL == 0
    state = state_of(tmp_path)
    assert all(tensor.isfinite().all() for name, tensor in state.items() if name.startswith(("/network", "/disc")))
    assert state["/global_step"] == last - 2
    load_checkpoint(tmp_path / "latest.safetensors")
    assert dict(curves_of(tmp_path)["training/skipped_steps"])[last] >= skipped


@pytest.mark.parametrize("seed", [1, 1234], ids=["training", "held out"])
def test_file_that_fails_during_the_run(folder: Path, tmp_path: Path, seed: int) -> None:
    names = damaged(folder)
    assert (names.index("s_cut") in hold_out_speakers(names, seed)[1]) == (seed == 1234)
    write_list(folder / "list.txt", names)
    options = [*OPTIONS, "--no_cache", "--input_training_file=list.txt", "--max_steps=3"]
    options += settings(train_batch_size=1, train_seed=seed)
    line = failed(train_here(folder, *options, "--checkpoint_path", tmp_path))
    assert "clean/s_cut.wav" in line


@pytest.mark.parametrize(("limit", "code", "name"), [(1_000_000, 1, "run/latest.pt"), (10, 2, "run/tensorboard")])
# TensorBoard's thread raises its error again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_keeps_the_earlier_state(holding: Path, limit: int, code: int, name: str) -> None:
    before = contents(holding / "run")
    options = [*OPTIONS, "--resume", "--max_steps=9", "--validation_interval=9", *settings(train_save_interval=2)]
    with files_limited_to(limit):
        ended = train_here(holding, *options)
    line = ended.stderr.splitlines()[-1]
    assert ended.returncode == code
    assert line.startswith(name) and "File too large" in line
    after = contents(holding / "run")
    for name in ("latest.pt", "latest.safetensors"):
        assert after[name] == before[name]
    assert not [name for name in after if name.endswith(".part")]
    # With room on the disk the run continues.
    assert train_here(holding, *OPTIONS, "--resume", "--max_steps=2").returncode == 0


def test_command_as_a_subprocess(folder: Path, tmp_path: Path) -> None:
    options = [f"--config={PAPER}", *SMALL, *settings(loss_metric=0), "--quiet", "--max_steps=1"]
    result = run_python(
        ROOT / "train.py", *options, f"--checkpoint_path={tmp_path}", cwd=folder, environment=ONE_THREAD
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("step 1: ")
