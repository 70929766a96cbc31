"""The command that times training steps: every form trains, and every figure is there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from config import Config, load_config
from tests.fixtures.commands import ROOT, run_module
from tools.benchmark.training import Form, figures_of, our_configs, turn_lengths

FORMS = {"plain", "plain_pool_kept", "ours", "ours_lag_1", "ours_labels_off"}
FIGURES = {"seconds", "steps_per_second", "audio_seconds_per_second", "speedup", "first_loss_difference"}


def test_the_command_prints_every_figure(tmp_path: Path, small_config: Config) -> None:
    sections = small_config.to_dict()
    sections["data"]["segment_size"] = 4300
    (tmp_path / "small.json").write_text(json.dumps(sections))
    command = [
        sys.executable,
        "-m",
        "tools.benchmark.network",
        "train",
        "--config",
        tmp_path / "small.json",
        "--threads=1",
    ]
    command += ["--batch_sizes", "1", "--steps=2", "--json", tmp_path / "figures.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    (batch,) = figures["batches"]
    assert batch["batch_size"] == 1
    for name in FIGURES:
        assert set(batch[name]) == FORMS
    assert all(value > 0 for name in FIGURES - {"first_loss_difference"} for value in batch[name].values())
    assert batch["speedup"]["plain"] == 1
    assert max(batch["first_loss_difference"].values()) < 1e-4
    assert {line.split()[0] for line in table} >= FORMS


def test_our_forms_are_what_they_are_called(small_config: Config) -> None:
    assert set(our_configs(small_config, False, False)) == {name for name in FORMS if name.startswith("ours")}
    configured = replace(small_config, train=replace(small_config.train, bf16=True, compile=True, metric_lag=1))
    forms = our_configs(configured, True, True)
    settings = {name: (form.train.metric_lag, form.train.bf16, form.train.compile) for name, form in forms.items()}
    assert settings == {
        "ours": (0, False, False),
        "ours_lag_1": (1, False, False),
        "ours_lag_1_bf16": (1, True, False),
        "ours_lag_1_compiled": (1, False, True),
        "ours_lag_1_bf16_compiled": (1, True, True),
        "ours_labels_off": (0, False, False),
    }
    assert {name for name, form in forms.items() if form.loss.metric == 0} == {"ours_labels_off"}


@pytest.mark.parametrize(("steps", "turns"), [(1, [0, 1]), (2, [0, 2]), (5, [0, 2, 2, 1])])
def test_turns_hold_the_steps_that_count(steps: int, turns: list[int]) -> None:
    assert turn_lengths(steps) == turns


def test_ratios_are_those_of_medians() -> None:
    terms = {"magnitude": 2.0, "phase": 4.0}
    forms = {
        "plain": Form(dict, seconds=[4, 1, 100], first_terms=terms),
        "ours": Form(dict, seconds=[1, 2, 3], first_terms={"magnitude": 2.0, "phase": 3.0}),
    }
    figures = figures_of(forms, audio_seconds=8)
    assert figures["seconds"] == {"plain": 4, "ours": 2}
    assert figures["steps_per_second"] == {"plain": 0.25, "ours": 0.5}
    assert figures["audio_seconds_per_second"] == {"plain": 2, "ours": 4}
    assert figures["speedup"] == {"plain": 1, "ours": 2}
    assert figures["first_loss_difference"] == {"plain": 0, "ours": 0.25}
    assert figures["peak_megabytes_cuda"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--rounds=3"], "--rounds: not with train"),
        (["--steps=3"], "--steps: not with network"),
        (["--bf16"], "--bf16: not with network"),
        (["train", "--batch_sizes", "2", "0"], "--threads, --rounds, --batch_sizes, --steps: must be 1 or more"),
        (["train", "--device=nonsense"], "--device nonsense: cannot be used"),
        (["trian"], "invalid choice: 'trian'"),
    ],
)
def test_a_wrong_command_line_gets_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_module("tools.benchmark.network", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_rate_that_pesq_does_not_take_is_refused(tmp_path: Path, small_config: Config) -> None:
    sections = small_config.to_dict()
    sections["data"]["sampling_rate"] = 8000
    (tmp_path / "other.json").write_text(json.dumps(sections))
    done = run_module("tools.benchmark.network", "train", "--config", "other.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "other.json: data.sampling_rate: PESQ needs 16000 Hz\n"


def test_a_network_without_a_published_loop_is_timed_alone(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/lite_rtse.json", ["data.segment_size=4000"])
    (tmp_path / "lite.json").write_text(json.dumps(config.to_dict()))
    options = ("--config", "lite.json", "--batch_sizes", 1, "--steps", 1, "--threads", 1)
    done = run_module("tools.benchmark.network", "train", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (batch,) = json.loads(done.stdout.splitlines()[-1])["batches"]
    assert batch["speedup"] == {"ours": 1}
    assert batch["seconds"]["ours"] > 0
