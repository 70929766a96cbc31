"""The ablation command: trains variants in this process and compares them file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import load_config
from data.file_lists import pair_folders
from metrics.score import METRICS, score_pairs
from metrics.stats import paired_test
from models import build
from models.checkpoint import save_checkpoint
from tests.fixtures.commands import ROOT, Result, call_main
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import load, save
from tests.fixtures.training import write_pairs
from tools.ablation import __main__ as ablation

SMALL_BASE = {
    "base": str(ROOT / "configs/imse.json"),
    "model": {"channels": 8},
    "stft": {"n_fft": 254, "win_size": 254, "hop_size": 127},
    "data": {"segment_size": 4800},
    "loss": {"metric": 0.0},
}
OPTIONS = (
    *("--output_dir", "out", "--base", "base.json", "--variants", "no_gate.json", "--quiet"),
    *("--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--files", "3"),
)
FOR_TRAIN = ("--", "--input_training_file", "training.txt", "--device", "cpu")


@pytest.fixture(autouse=True)
def _in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_in_one_process(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Speech, a small base configuration and a variant."""
    write_pairs(tmp_path, seconds=0.6)
    (tmp_path / "base.json").write_text(json.dumps(SMALL_BASE))
    change = {"base": "elsewhere.json", "model": {"name": "imse_ablation", "attention": "without_gate"}}
    (tmp_path / "no_gate.json").write_text(json.dumps(change))
    return tmp_path


@pytest.fixture
def done(folder: Path) -> Path:
    """The folder after the command, without training; the variant amplifies noise a little."""

    def train(argv: list[str]) -> int:
        config = load_config(Path(argv[argv.index("--config") + 1]))
        run = Path(argv[argv.index("--checkpoint_path") + 1])
        save_checkpoint(run / "latest.safetensors", build(config), config)
        (run / "latest.pt").touch()
        return 0

    def enhance(jobs: list[tuple[Path, Path]], *_: object, **__: object) -> None:
        for noisy, enhanced in jobs:
            hiss = np.random.default_rng(0).standard_normal(len(samples := load(noisy)))
            gain = 0.1 if "no_gate" in str(enhanced) else 0.0
            save(enhanced, samples + gain * 0.1 * hiss[:, None])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation.train, "main", train)
        patch.setattr(ablation, "enhance_files", enhance)
        ended = call_ablation(folder, "--steps", "1", *FOR_TRAIN)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (folder / "out/ablation.md").read_text()
    return folder


def call_ablation(folder: Path, *options: str) -> Result:
    return call_main(ablation.main, *OPTIONS, *options, cwd=folder)


def figures_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/ablation.json").read_text())


def test_results(done: Path) -> None:
    figures = figures_of(done)
    assert (figures["steps"], figures["files"], list(figures["variants"])) == (1, 3, ["base", "no_gate"])
    base, variant = figures["variants"].values()
    assert base["parameters"] == sum(each.numel() for each in build(load_config(done / "base.json")).parameters())
    # Gates of 4 blocks in stages of 8 (four), 16 (two) and 24 channels.
    assert base["parameters"] - variant["parameters"] == 4 * (4 * 72 + 2 * 272 + 600)
    scores = {}
    for name in ("base", "no_gate"):
        pairs = pair_folders(done / "clean", done / "out" / name / "enhanced").pairs
        assert [pair.id for pair in pairs] == ["s_0", "s_4", "s_8"]  # of nine
        scores[name] = score_pairs(pairs, "published", 1)
    for metric in METRICS:
        values = {name: [pair.values[metric] for pair in results] for name, results in scores.items()}
        assert variant["metrics"][metric]["mean"] == pytest.approx(sum(values["no_gate"]) / 3)
        test = paired_test(values["base"], values["no_gate"])
        assert variant["differences"][metric]["mean"] == pytest.approx(test.mean)
        assert variant["differences"][metric]["ci95"] == pytest.approx(test.ci95)
        assert base["differences"][metric]["mean"] == 0


def test_table() -> None:
    def row(parameters: int, **values: float | None) -> dict[str, Any]:
        result = dict.fromkeys(METRICS, values)
        return {"parameters": parameters, "metrics": result, "differences": result}

    rows = {"base": row(12345, mean=2.0), "x": row(678, mean=-0.25, ci95=0.5), "y": row(9, mean=None)}
    figures = {"steps": 7, "files": 3, "variants": rows}
    about, _, head, _, base, variant, missing = ablation.as_markdown(figures).splitlines()
    assert about.startswith("7 steps each, 3 test files")
    assert {line.count("|") for line in (head, base, variant)} == {len(METRICS) + 3}
    assert base.startswith("| `base` | 12 345 | 2.000 |")
    assert variant.startswith("| `x` | 678 | -0.250 ± 0.500 |")
    assert missing.startswith("| `y` | 9 | - |")


def test_more_steps_resume_and_enhance_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(ablation.train, "main", lambda argv: calls.append(argv) or 0)
    monkeypatch.setattr(ablation, "enhance_files", lambda *_, **__: {})
    ended = call_ablation(done, "--steps", "2", *FOR_TRAIN, "--fine_tune", "start", "--teacher=other")
    assert ended.returncode == 1  # nothing was enhanced
    assert "no_gate: s_4" in ended.stderr
    for name, training in zip(("base", "no_gate"), calls, strict=True):
        paths = ["--config", f"out/{name}/config.json", "--checkpoint_path", f"out/{name}/run"]
        assert training == [*paths, "--max_steps", "2", *FOR_TRAIN[1:], "--resume", "--quiet"]
        assert not (done / "out" / name / "enhanced").exists()


@pytest.mark.parametrize(
    ("codes", "code", "calls"),
    [
        ({"base": 2}, 1, ["base"]),  # nothing to compare with
        ({"no_gate": 1}, 1, ["base", "no_gate"]),
        ({"base": 143}, 143, ["base"]),  # stopped
    ],
)
def test_failures(
    done: Path, monkeypatch: pytest.MonkeyPatch, codes: dict[str, int], code: int, calls: list[str]
) -> None:
    called: list[str] = []

    def end(argv: list[str]) -> int:
        called.append(argv[1].split("/")[1])
        return codes.get(called[-1], 0)

    monkeypatch.setattr(ablation.train, "main", end)
    monkeypatch.setattr(ablation, "enhance_files", lambda *_, **__: {})
    monkeypatch.setattr(ablation, "score_pairs", lambda *_, **__: [])
    ended = call_ablation(done, "--steps", "2", *FOR_TRAIN)
    assert (ended.returncode, called) == (code, calls)
    assert code == 143 or f"{calls[-1]}: train.py ended" in ended.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--steps"),
        (["--steps", "2", "--base", "none.json"], "none.json"),
        (["--steps", "2", "--variants", "list.json"], "list.json"),
        (["--steps", "2", "--variants", "base.json"], "base.json: the name base is taken"),
        (["--steps", "2", "--variants", "odd.json"], "odd/config.json: model.channels"),
        (["--steps", "2", "--noisy_wav_dir", "empty"], "empty"),
    ],
)
def test_wrong_command_line(folder: Path, options: list[str], words: str) -> None:
    (folder / "list.json").write_text("[]")
    (folder / "odd.json").write_text('{"model": {"channels": 9}}')
    (folder / "empty").mkdir(exist_ok=True)
    ended = call_ablation(folder, *options, *FOR_TRAIN)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_training_for_real(folder: Path) -> None:
    ended = call_ablation(folder, "--steps", "1", *FOR_TRAIN)
    assert (ended.returncode, ended.stdout) == (0, (folder / "out/ablation.md").read_text())
    assert (folder / "out/no_gate/run/latest.pt").exists()
    assert len(list((folder / "out/no_gate/enhanced").iterdir())) == 3


@pytest.mark.parametrize("script", ["train", "inference"])
def test_commands_for_a_single_variant(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(getattr(ablation, script), "main", lambda argv: print(*argv) or 3)
    assert call_main(ablation.main, script, "--config", "a.json") == (3, "--config a.json\n", "")
