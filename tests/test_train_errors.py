"""`train.py` with what it cannot use: one plain message before any work is done, and nothing half written."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.splits import hold_out_speakers
from models.checkpoint import load_checkpoint
from tests.fixtures.commands import run_script
from tests.fixtures.recordings import NOISE, files_below, load, save
from tests.fixtures.training import (
    MIX,
    ONE_THREAD,
    PAPER,
    SMALL,
    Ended,
    curves_of,
    settings,
    state_of,
    train_here,
    write_list,
    write_noises,
    write_pairs,
)

GOOD = [f"s_{index}" for index in range(3)]
OPTIONS = [f"--config={PAPER}", *SMALL, "--quiet", "--num_workers=1", "--checkpoint_path=run"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def refused(folder: Path, *arguments: object) -> list[str]:
    """The lines that a command says before it leaves with code 2, having changed nothing."""
    before = contents(folder)
    ended = train_here(folder, *OPTIONS, *arguments)
    assert (ended.code, ended.output) == (2, ""), ended
    assert contents(folder) == before
    lines = ended.errors.splitlines()
    assert 1 <= len(lines) <= 11
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs, `training.txt` and noises; a test may add to it, and a refused run does not."""
    folder = tmp_path_factory.mktemp("errors")
    write_pairs(folder, len(GOOD))
    write_noises(folder / "noise")
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `run` of a run of one step in another copy of that folder; not to be changed."""
    copy = tmp_path_factory.mktemp("finished") / "copy"
    shutil.copytree(folder, copy)
    assert train_here(copy, *OPTIONS, "--max_steps=1").code == 0
    return copy / "run"


@pytest.fixture
def holding(finished: Path, tmp_path: Path) -> Path:
    """A folder with the pairs and a copy of that run."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    return tmp_path / "copy"


def missing_files(_: Path) -> list[str]:
    return [*GOOD, *(f"missing_{index}" for index in range(6))]


def other_length(folder: Path) -> list[str]:
    save(folder / "clean/s_longer.wav", load(folder / "clean/s_0.wav"))
    save(folder / "noisy/s_longer.wav", load(folder / "noisy/s_0.wav")[:-1])
    return [*GOOD, "s_longer"]


def other_rate(folder: Path) -> list[str]:
    save(folder / "clean/s_slower.wav", load(folder / "clean/s_0.wav"))
    save(folder / "noisy/s_slower.wav", load(folder / "noisy/s_0.wav"), 8000)
    return [*GOOD, "s_slower"]


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
    """Its header is whole: what is wrong shows when it is decoded."""
    save(folder / "clean/s_cut.flac", NOISE, container="FLAC")
    content = bytearray((folder / "clean/s_cut.flac").read_bytes())
    content[30_000:50_000] = bytes(20_000)
    (folder / "clean/s_cut.wav").write_bytes(content)
    (folder / "clean/s_cut.flac").unlink()
    save(folder / "noisy/s_cut.wav", NOISE)
    return [*GOOD, "s_cut"]


# What is wrong with these shows before anything is decoded.
HEADERS_TELL = (missing_files, other_length, other_rate, no_sound)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (missing_files, ["12 of 18 files are missing:", "  clean/missing_0.wav", "  noisy/missing_0.wav"]),
        (
            other_length,
            ["1 of 4 pairs cannot be used:", "  s_longer: clean and noisy differ in length: 24000"],
        ),
        (other_rate, ["1 of 4 pairs cannot be used:", "  s_slower: clean and noisy differ in rate: 16000 and 8000 Hz"]),
        (no_sound, ["1 of 4 pairs cannot be used:", "  clean/s_text.wav: not an audio file that can be decoded"]),
        (damaged, ["1 of 8 files cannot be used:", "  clean/s_cut.wav: broken or cut short"]),
        (silent, ["every crop is silent: the 1 clean files hold nothing but zeros"]),
        (lambda _: [], ["list.txt: holds no utterances"]),
        (lambda _: GOOD[:1], ["1 utterances are too few: one is held out for validation, the rest trained on"]),
    ],
    ids=["missing", "length", "rate", "no sound", "damaged", "silent", "empty", "one"],
)
def test_lists_that_cannot_be_used(folder: Path, listed: Callable[[Path], list[str]], words: list[str]) -> None:
    write_list(folder / "list.txt", listed(folder))
    # A list to be scored at the end is looked at before the work, not after it.
    for option in ("--input_training_file=list.txt", "--input_validation_file=list.txt"):
        lines = refused(folder, option)
        assert len(lines) == (11 if listed is missing_files else len(words))
        for line, start in zip(lines, words, strict=False):
            assert line.startswith(start)
        if listed not in HEADERS_TELL:
            break


ONE_LINE = [
    (["--input_training_file=none.txt"], "none.txt: cannot be read: No such file or directory"),
    (["--input_validation_file=none.txt"], "none.txt: cannot be read: No such file or directory"),
    (["--input_clean_wavs_dir=none"], "none: no such folder"),
    (["--input_noise_dir=noise"], f"{PAPER}: has no section mix, which --input_noise_dir needs"),
    (["--config=none.json"], "none.json: cannot be read: No such file or directory"),
    (["--fine_tune=none"], "none: the checkpoint cannot be read: No such file or directory"),
    (["--fine_tune=training.txt"], "training.txt: not a checkpoint, or cut short"),
    (["--resume"], "run/latest.pt: no such file, so there is nothing to resume; leave --resume out"),
    (settings(data_segment_size=200), f"{PAPER}: data.segment_size: must be at least stft.n_fft, 254"),
    (settings(train_batch_size=3), f"{PAPER}: train.batch_size: 3 in total, but there are 2 crops"),
    (settings(optim_learning_rat=1), f"{PAPER}: optim.learning_rat: unknown key (did you mean 'learning_rate'?)"),
    (settings(optim_learning_rate="fast"), f'{PAPER}: optim.learning_rate: expected float, found "fast"'),
    (settings(data_sampling_rate=8000), f"{PAPER}: data.sampling_rate: PESQ and STOI need 16000 Hz"),
    (["--set=train.epochs"], "--set train.epochs: expected section.key=value, such as optim.learning_rate=1e-4"),
    (["--training_epochs=0"], f"{PAPER}: train.epochs: must be above 0"),
    (["--validation_interval=-1"], f"{PAPER}: train.validation_interval: must not be negative"),
    (["--max_steps=0"], "train.py: --max_steps, --num_workers: must be 1 or more"),
    (["--num_workers=0"], "train.py: --max_steps, --num_workers: must be 1 or more"),
    (["--device=tpu"], "train.py: --device tpu: cannot be used"),
    (["--protocol=paper"], "train.py: --protocol paper: needs --input_validation_file"),
    (["--resume", "--overwrite"], "train.py: --resume: not with --overwrite or --fine_tune"),
    (["--checkpoint_path=training.txt"], "training.txt: cannot be written: "),
    (["--checkpoint_path=/proc/run"], "/proc/run: cannot be written: No such file or directory"),
]


@pytest.mark.parametrize(("arguments", "words"), ONE_LINE, ids=[" ".join(case[0])[-40:] for case in ONE_LINE])
def test_wrong_command_lines(folder: Path, arguments: list[str], words: str) -> None:
    (line,) = refused(folder, *arguments)
    assert line.startswith(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_clean_wavs_dir=speech"], f"{MIX}: mixes: give --input_clean_wavs_dir and --input_noise_dir"),
        (["--input_clean_wavs_dir=speech", "--input_noise_dir=none"], "none: no such folder"),
        (["--input_clean_wavs_dir=speech", "--input_noise_dir=quiet"], "every noise file is silent: "),
        (["--input_clean_wavs_dir=speech", "--input_noise_dir=one"], "1 noise files are too few: one is held out"),
    ],
)
def test_mixes_that_cannot_be_made(folder: Path, arguments: list[str], words: str) -> None:
    write_noises(folder / "one", 1)
    for index in range(2):
        save(folder / f"quiet/{index}.wav", np.zeros(4000))
        save(folder / f"speech/{index}.wav", NOISE)
    off = settings(train_compile="false", train_bf16="false")
    (line,) = refused(folder, f"--config={MIX}", *off, *arguments)
    assert line.startswith(words)


def test_a_folder_that_holds_another_run(holding: Path) -> None:
    (line,) = refused(holding)
    assert line.startswith("run: holds another run (latest.pt); go on with --resume, replace it with --overwrite")
    for name in ("latest.pt", "latest.safetensors"):
        (holding / "run" / name).unlink()
    (line,) = refused(holding, "--fine_tune=run/best.safetensors")
    assert line.startswith("run: holds another run (best.safetensors)")
    ended = train_here(holding, *OPTIONS, "--max_steps=2", "--overwrite")
    assert ended.code == 0
    assert state_of(holding / "run")["/global_step"] == 2
    assert len(files_below(holding / "run")) == 5
    assert [step for step, _ in curves_of(holding / "run")["validation/pesq"]] == [2]


def test_networks_that_do_not_fit(folder: Path, small_checkpoint: Path, finished: Path) -> None:
    for path, change in ((small_checkpoint, []), (finished / "best.safetensors", settings(model_channels=16))):
        (line,) = refused(folder, f"--fine_tune={path}", *change)
        assert line.startswith(f"{path}: another network or STFT than {PAPER} describes")


def test_runs_that_cannot_be_resumed(holding: Path) -> None:
    (line,) = refused(holding, "--resume", *settings(model_channels=16, optim_lr_decay=0.5))
    assert line.startswith(
        "run/latest.pt: belongs to another configuration, which differs in model.channels, optim.lr_decay; "
        "resume with run/config.json"
    )
    write_list(holding / "others.txt", ["s_2", "s_1", "s_0"])
    (line,) = refused(holding, "--resume", "--input_training_file=others.txt")
    assert line.startswith("run/latest.pt: comes from a run on other training data")
    whole = (holding / "run/latest.pt").read_bytes()
    state = torch.load(holding / "run/latest.pt", weights_only=True)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # in a weight, which reads as another
    for content, words in (
        (bytes(flipped), "damaged; start again without --resume"),
        (whole[:-1000], "not a training state, or cut short; start again without --resume"),
        (whole[:1000], "not a training state, or cut short"),
        (b"", "not a training state, or cut short"),
        ({"generator": {}}, "not a training state"),
        (state | {"total_batch": 8}, "comes from a run on a batch of 8 in total"),
        (state | {"total_batch": torch.zeros(3)}, "does not fit this run (total_batch: not int)"),
        (state | {"best": "4.6"}, "does not fit this run (best: not float)"),
        (state | {"config": {"model": {"name": torch.zeros(3)}}}, "not a training state of this version"),
        (state | {"global_step": -3}, "does not fit this run (global_step: not from 0 to 9007199254740992)"),
        ({name: state[name] for name in state if name != "optimizer"}, "does not fit this run ('optimizer')"),
    ):
        path = holding / "run/latest.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        (line,) = refused(holding, "--resume")
        assert line.startswith(f"run/latest.pt: {words}")


def failed(ended: Ended) -> str:
    """The one line that a run which had begun ended with, after the two that say what it does."""
    assert (ended.code, ended.output) == (1, "")
    line = ended.errors.splitlines()[2:]
    assert len(line) == 1, ended.errors
    return line[0]


def test_a_run_that_diverges_stops(folder: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--max_steps=40", *settings(optim_learning_rate=1e9, train_save_interval=2)]
    ended = train_here(folder, *options, "--checkpoint_path", tmp_path)
    line = failed(ended)
    assert line.startswith("step ")
    assert f"the gradient was not finite 10 times in a row; {tmp_path} keeps what was saved before" in line
    last = int(line.split()[1].rstrip(":"))
    state = state_of(tmp_path)
    assert all(tensor.isfinite().all() for name, tensor in state.items() if name.startswith(("/network", "/disc")))
    assert state["/global_step"] == (last - 1) // 2 * 2
    load_checkpoint(tmp_path / "latest.safetensors")
    # What was told shows how it came to that.
    assert dict(curves_of(tmp_path)["training/skipped_steps"])[10] > 0


@pytest.mark.parametrize("seed", [1, 1234], ids=["to train on", "held out"])
def test_a_file_that_fails_when_it_is_its_turn(folder: Path, tmp_path: Path, seed: int) -> None:
    names = damaged(folder)
    assert (names.index("s_cut") in hold_out_speakers(names, seed)[1]) == (seed == 1234)
    write_list(folder / "list.txt", names)
    options = [*OPTIONS, "--no_cache", "--input_training_file=list.txt", "--max_steps=3"]
    options += settings(train_batch_size=1, train_seed=seed)
    line = failed(train_here(folder, *options, "--checkpoint_path", tmp_path))
    assert line.startswith("clean/s_cut.wav: broken or cut short")


@pytest.mark.parametrize(
    ("limit", "code", "words"),
    [
        (1_000_000, 1, "run/latest.pt: the training state cannot be written: File too large"),
        (10, 2, "run/tensorboard: cannot be written: File too large"),
    ],
)
# TensorBoard's thread hands its error on, and tells it too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_keeps_the_state_before(holding: Path, limit: int, code: int, words: str) -> None:
    before = contents(holding / "run")
    options = [*OPTIONS, "--resume", "--max_steps=9", "--validation_interval=9", *settings(train_save_interval=2)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        ended = train_here(holding, *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (ended.code, ended.errors.splitlines()[2 if code == 1 else 0 :]) == (code, [words])
    after = contents(holding / "run")
    for name in ("latest.pt", "latest.safetensors"):
        assert after[name] == before[name]
    assert not [name for name in after if name.endswith(".part")]
    # With room again the run goes on.
    assert train_here(holding, *OPTIONS, "--resume", "--max_steps=2").code == 0


def test_as_a_user_sees_it(holding: Path) -> None:
    (holding / "run/latest.pt").write_bytes((holding / "run/latest.pt").read_bytes()[:-1000])
    before = contents(holding)
    result = run_script("train.py", *OPTIONS, "--resume", cwd=holding, environment=ONE_THREAD)
    words = "run/latest.pt: not a training state, or cut short; start again without --resume\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", words)
    assert contents(holding) == before


@pytest.mark.slow
def test_as_a_user_sees_a_run_that_diverges(folder: Path) -> None:
    options = [*OPTIONS, "--max_steps=40", *settings(optim_learning_rate=1e9), "--checkpoint_path=diverged"]
    result = run_script("train.py", *options, cwd=folder, environment=ONE_THREAD)
    failed(Ended(result.returncode, result.stdout, result.stderr))
