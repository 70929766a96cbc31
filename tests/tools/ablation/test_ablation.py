"""The ablation command: all variants alike, through the project's own commands, and compared file by file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tools.ablation.__main__ as ablate
from config import load_config
from data.file_lists import pair_folders
from metrics.paired import paired_test
from metrics.score import METRICS, score_pairs
from models import build
from tests.fixtures.commands import ROOT, run_module, run_script
from tests.fixtures.training import SMALL, train_here, write_pairs

SMALL_BASE = {
    "base": str(ROOT / "configs/imse.json"),
    "model": {"channels": 8},
    "stft": {"n_fft": 254, "win_size": 254, "hop_size": 127},
    "data": {"segment_size": 4800},
    "loss": {"metric": 0.0},
}
OPTIONS = (
    *("--output_dir", "out", "--base", "base.json", "--ablations", "no_gate.json", "--quiet", "--jobs", "2"),
    *("--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--files", "3"),
)
FOR_TRAIN = ("--", "--input_training_file", "training.txt", "--device", "cpu", "--set", "optim.learning_rate=0.003")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command has been run, as a user does."""
    folder = tmp_path_factory.mktemp("ablation")
    write_pairs(folder)
    (folder / "base.json").write_text(json.dumps(SMALL_BASE))
    delta = {"base": "elsewhere.json", "model": {"name": "imse_ablation", "attention": "without_gate"}}
    (folder / "no_gate.json").write_text(json.dumps(delta))
    ended = run_module("tools.ablation.__main__", *OPTIONS, "--steps", "2", *FOR_TRAIN, cwd=folder, minutes=5)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (folder / "out/ablation.md").read_text()
    return folder


@pytest.fixture
def here(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which the test runs."""
    shutil.copytree(done, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call_main(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ablate.py", *OPTIONS, *options])
    return ablate.main()


def figures_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/ablation.json").read_text())


def test_the_table_says_what_each_variant_costs_and_gives(done: Path) -> None:
    figures = figures_of(done)
    assert (figures["budget"], figures["files"], list(figures["variants"])) == ("2 steps", 3, ["base", "no_gate"])
    base, variant = figures["variants"].values()
    parameters = sum(each.numel() for each in build(load_config(done / "base.json")).parameters())
    # Gates of 4 blocks in stages of 8 (four), 16 (two) and 24 channels.
    assert base["parameters"] == parameters
    assert base["parameters"] - variant["parameters"] == 4 * (4 * 72 + 2 * 272 + 600)
    assert base["gmacs_per_second"] > variant["gmacs_per_second"] > 0
    assert (base["steps"], variant["steps"]) == (2, 2)
    # s_0, s_4 and s_8 of the nine, scored as everywhere.
    scores = {}
    for name in ("base", "no_gate"):
        pairs = pair_folders(done / "clean", done / "out" / name / "enhanced").pairs
        assert [pair.id for pair in pairs] == ["s_0", "s_4", "s_8"]
        scores[name] = score_pairs(pairs, "published", 1)
    for metric in METRICS:
        values = {name: [result.values[metric] for result in results] for name, results in scores.items()}
        assert variant["metrics"][metric]["mean"] == pytest.approx(sum(values["no_gate"]) / 3)
        test = paired_test(values["base"], values["no_gate"])
        assert variant["differences"][metric]["mean"] == pytest.approx(test.mean)
        assert variant["differences"][metric]["ci95"] == pytest.approx(test.ci95)
        assert base["differences"][metric]["mean"] == 0


def test_the_table_is_readable(done: Path) -> None:
    about, _, head, _, base, variant = (done / "out/ablation.md").read_text().splitlines()
    assert about == (
        "2 steps each, 3 test files: means of `base`, below it differences to them with their 95 % intervals."
    )
    assert len({line.count("|") for line in (head, base, variant)}) == 1
    means, differences = (figures_of(done)["variants"][name] for name in ("base", "no_gate"))
    assert f"| {means['metrics']['pesq']['mean']:.3f} |" in base
    assert base.startswith("| `base` | 2 |") and "±" not in base
    pesq = differences["differences"]["pesq"]
    assert variant.startswith("| `no_gate` | 2 |")
    assert f" | {pesq['mean']:+.3f} ± {pesq['ci95']:.3f} | " in variant


def test_the_page_has_the_table_of_its_figures() -> None:
    figures = json.loads((ROOT / "docs/ablations/ablation.json").read_text(encoding="utf-8"))
    _, table = ablate.as_markdown(figures).split("\n\n")
    assert f"\n\n{table}\n" in (ROOT / "docs/ABLATIONS.md").read_text(encoding="utf-8")


def recorded(monkeypatch: pytest.MonkeyPatch, fail: str = "") -> list[tuple[str, list[str]]]:
    """Replaces what calls the scripts; returns the list that their calls go to: the variant, and the command."""
    calls: list[tuple[str, list[str]]] = []

    def call(folder: Path, *parts: object) -> None:
        *_, command = parts[:3], [str(part) for part in parts[3:]]
        calls.append((folder.name, command))
        if folder.name == fail and command[0] == "train.py":
            raise ablate.AblationError(f"{fail}: train.py ended with code 1: the reason")

    monkeypatch.setattr(ablate, "call", call)
    return calls


def test_what_is_done_is_not_trained_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = figures_of(here)["variants"]["no_gate"]["metrics"]
    calls = recorded(monkeypatch)
    assert call_main(monkeypatch, "--steps", "2", *FOR_TRAIN) == 0
    assert sorted((name, command[0]) for name, command in calls) == [
        ("base", "inference.py"), ("no_gate", "inference.py"),
    ]  # fmt: skip
    assert all("--resume" in command for _, command in calls)
    assert figures_of(here)["variants"]["no_gate"]["metrics"] == before


def test_with_more_steps_training_is_resumed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = recorded(monkeypatch)
    # The files that are not there, as nothing was called, are named.
    assert call_main(monkeypatch, "--steps", "3", *FOR_TRAIN) == 1
    assert "no_gate: s_4: " in capsys.readouterr().err
    for name in ("base", "no_gate"):
        train, enhance = (command for variant, command in calls if variant == name)
        files = "--config", f"out/{name}/config.json", "--checkpoint_path", f"out/{name}/run"
        assert train == ["train.py", *files, *FOR_TRAIN[1:], "--max_steps", "3", "--resume"]
        assert enhance[0] == "inference.py"
        assert not (here / "out" / name / "enhanced").exists()  # what the network of fewer steps gave


@pytest.mark.slow
def test_with_more_steps_training_goes_on_as_if_never_interrupted(here: Path) -> None:
    ended = run_module("tools.ablation.__main__", *OPTIONS, "--steps", "3", *FOR_TRAIN, cwd=here, minutes=5)
    assert ended.returncode == 0, ended.stderr
    assert [line["steps"] for line in figures_of(here)["variants"].values()] == [3, 3]
    arguments = ["--config", "out/no_gate/config.json", "--max_steps", "3", "--checkpoint_path", "at_once", "--quiet"]
    assert train_here(here, *arguments, *FOR_TRAIN[1:]).code == 0
    one, other = (here / run / "latest.safetensors" for run in ("out/no_gate/run", "at_once"))
    assert one.read_bytes() == other.read_bytes()


def test_a_variant_that_fails_is_named_and_the_others_are_compared(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("no_gate.json", "broken.json")
    recorded(monkeypatch, fail="broken")
    assert call_main(monkeypatch, "--ablations", "broken.json", "no_gate.json", "--steps", "2", *FOR_TRAIN) == 1
    assert "broken: train.py ended with code 1: the reason" in capsys.readouterr().err.splitlines()
    assert list(figures_of(here)["variants"]) == ["base", "no_gate"]


def test_why_a_script_failed_is_its_last_line(here: Path) -> None:
    stop = ablate.Stop()
    with pytest.raises(ablate.AblationError, match=r"^out: train.py ended with code 2: none.json: cannot be read"):
        ablate.call(here / "out", stop, 1, float("inf"), "train.py", "--config", "none.json")


def test_a_script_is_asked_to_leave_at_the_deadline_and_at_a_stop(here: Path) -> None:
    command = ["train.py", "--config", "base.json", "--checkpoint_path", "long", *FOR_TRAIN[1:]]
    ablate.call(here / "out", ablate.Stop(), 1, 0.0, *command)  # a deadline long gone: no error
    with pytest.raises(ablate.AblationError, match=r"^out: stopped$"):
        ablate.call(here / "out", ablate.Stop(code=143), 1, float("inf"), *command)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a budget, --steps or --minutes"),
        (["--steps", "2", "--minutes", "1"], "give a budget, --steps or --minutes"),
        (["--steps", "0"], "--steps, --minutes, --files: must be above 0"),
        (["--steps", "2", "--base", "none.json"], "none.json: cannot be read: No such file or directory"),
        (["--steps", "2", "--ablations", "list.json"], "list.json: expected an object with the sections"),
        (["--steps", "2", "--ablations", "noisy.json"], "base.json: the name noisy is taken"),
        (["--steps", "2", "--ablations", "odd.json"], "odd.json over base.json: model.channels: must be a multiple"),
        (["--steps", "2", "--noisy_wav_dir", "empty"], "empty: "),
    ],
)
def test_what_is_wrong_with_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (here / "list.json").write_text("[]")
    (here / "noisy.json").write_text("{}")
    (here / "odd.json").write_text('{"model": {"channels": 9}}')
    (here / "empty").mkdir()
    before = (here / "out/ablation.json").read_bytes()
    code: Callable[[], int] = lambda: call_main(monkeypatch, *options, *FOR_TRAIN)  # noqa: E731
    try:
        assert code() == 2
    except SystemExit as end:
        assert end.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (here / "out/ablation.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "configs/ablation").glob("*.json")), ids=lambda path: path.stem)
def test_each_ablation_trains_and_enhances_through_the_same_commands(path: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    small = [option for option in SMALL if "channels" not in option]
    ended = train_here(tmp_path, "--config", path, *small, "--checkpoint_path=run", "--max_steps=2", "--quiet")
    assert ended.code == 0, ended.errors
    checkpoint = tmp_path / "run/best.safetensors"
    folders = ("--input_noisy_wavs_dir", "noisy", "--output_dir", "enhanced", "--input_clean_wavs_dir", "clean")
    enhanced = run_script("inference.py", *folders, "--checkpoint_file", checkpoint, "--quiet", cwd=tmp_path)
    assert (enhanced.returncode, enhanced.stderr) == (0, "")
    assert len(list((tmp_path / "enhanced").glob("*.wav"))) == 9
