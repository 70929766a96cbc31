"""`train.py`: files of a run, resume bit for bit, validation and selection, several processes, learning."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import inference
import train
from data.dataset import Batch, load_batches
from models.checkpoint import load_checkpoint
from tests.fixtures.commands import ROOT, call_main
from tests.fixtures.recordings import files_below, load, save
from tests.fixtures.signals import speech_like, with_noise
from tests.fixtures.training import (
    MIX,
    ONE_THREAD,
    PAPER,
    SMALL,
    Ended,
    assert_equal_states,
    curves_of,
    kill_group,
    read_events,
    settings,
    start,
    state_of,
    steps_shown,
    train_here,
    write_list,
    write_noises,
    write_pairs,
)
from tests.utils.test_processes import wait_until
from training.trainer import Trainer
from training.validation import Validation
from utils.processes import available_cores

RUN_FILES = {"best.safetensors", "latest.safetensors", "latest.pt", "config.json"}
LOSSES = ("magnitude", "phase", "complex", "metric", "discriminator", "loss")

# With labels of the previous batch and averaged weights there is more to resume.
STEPS = 20
LAGGING = [
    f"--config={PAPER}",
    *SMALL,
    *settings(train_metric_lag=1, optim_ema_decay=0.9, train_save_interval=10, train_validation_interval=10),
    f"--max_steps={STEPS}",
    "--num_workers=2",
]
SHORT = [f"--config={PAPER}", *SMALL, "--quiet", "--num_workers=1", "--max_steps=3"]

# Of the overfitting test.
OVERFIT_STEPS = 250
OVERFIT_RATE = 2e-3
OVERFIT_DECAY = 0.96  # per epoch of four steps
OVERFIT_CROP = 9_600


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs to train on and `test.txt`, which lists two others; read-only."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder)
    for index in range(2):
        clean = speech_like(1.5, seed=50 + index)
        save(folder / f"clean/t_{index}.wav", clean)
        save(folder / f"noisy/t_{index}.wav", with_noise(clean, 5, seed=60 + index))
    write_list(folder / "test.txt", ["t_0", "t_1"])
    return folder


@pytest.fixture(scope="session")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """An uninterrupted run: its folder, and how it ended."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, train_here(pairs, *LAGGING, "--quiet", "--checkpoint_path", run)


def assert_curves_and_examples(run: Path, steps: list[int], validations: list[int], examples: list[str]) -> None:
    """Assert that TensorBoard has every loss term, gradient norm, score and example at its steps, all finite."""
    curves = curves_of(run)
    names = {*LOSSES, "gradient_norm", "discriminator_gradient_norm", "learning_rate"}
    names |= {"skipped_steps", "crops_without_label"}
    validated = {"magnitude", "phase", "complex", "loss", "pesq", "stoi"}
    expected = {f"training/{name}": steps for name in names} | {f"validation/{name}": validations for name in validated}
    assert {name: [step for step, _ in points] for name, points in curves.items()} == expected
    assert np.isfinite([value for points in curves.values() for _, value in points]).all()
    assert curves["training/skipped_steps"][-1][1] == 0
    # PESQ finds no utterance in some crops as short as these.
    assert curves["training/crops_without_label"][-1][1] < steps[-1]
    for value in (value for _, value in curves["validation/pesq"]):
        assert 1 < value < 4.65
    events = read_events(run / "tensorboard")
    sounds = {f"{example}/{version}" for example in examples for version in ("noisy", "enhanced", "clean")}
    images = {f"{example}/spectrograms" for example in examples}
    for kind, read, tags in (("images", events.Images, images), ("audio", events.Audio, sounds)):
        assert set(events.Tags()[kind]) == tags
        for tag in tags:
            assert [event.step for event in read(tag)] == validations


def test_run_writes_networks_state_and_curves(whole: tuple[Path, Ended], pairs: Path, tmp_path: Path) -> None:
    run, ended = whole
    assert ended.code == 0
    lines = ended.output.splitlines()
    assert len(lines) == STEPS // 10
    for line, step in zip(lines, (10, 20), strict=True):
        assert re.fullmatch(rf"step {step}: .*, loss \d\.\d+, pesq \d\.\d+, stoi 0\.\d+( \(best\))?", line)
    assert "8 pairs" in ended.errors and "1 held out" in ended.errors
    files = files_below(run)
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    assert files == RUN_FILES | events
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == {"name": "imse", "channels": 8, "beta": 2.0}
    assert config["train"]["metric_lag"] == 1
    held_out = {path.stem for path in (pairs / "clean").glob("s_*")} & {
        tag.split("/")[0] for tag in read_events(run / "tensorboard").Tags()["audio"]
    }
    assert len(held_out) == 1
    assert_curves_and_examples(run, [10, 20], [10, 20], list(held_out))

    for name in ("best", "latest"):
        assert load_checkpoint(run / f"{name}.safetensors")[1].to_dict() == config
    state = torch.load(run / "latest.pt", weights_only=True)
    # The networks are saved with the averaged weights.
    latest = load_checkpoint(run / "latest.safetensors")[0].state_dict()
    assert all(torch.equal(state["ema_model"][name], tensor) for name, tensor in latest.items())
    assert not all(torch.equal(state["network"][name], tensor) for name, tensor in latest.items())

    arguments = [f"--input_noisy_wavs_dir={pairs / 'noisy/t_0.wav'}", f"--output_dir={tmp_path}", "--device=cpu"]
    assert call_main(inference.main, *arguments, f"--checkpoint_file={run / 'best.safetensors'}").returncode == 0
    enhanced, noisy = load(tmp_path / "t_0.wav"), load(pairs / "noisy/t_0.wav")
    assert len(enhanced) == len(noisy)
    assert np.abs(enhanced).max() > 1e-3
    assert np.abs(enhanced - noisy).max() > 1e-2


def test_mixing_speech_and_noise(pairs: Path, tmp_path: Path) -> None:
    write_noises(tmp_path / "noise")
    fewer = settings(train_compile="false", train_bf16="false", mix_validation_mixes=2, mix_reverb_share=0.5)
    ended = train_here(
        tmp_path, f"--config={MIX}", *SMALL, *fewer, "--max_steps=10", "--num_workers=1", "--quiet",
        f"--input_clean_wavs_dir={pairs / 'clean'}", "--input_noise_dir=noise",
    )  # fmt: skip
    assert ended.code == 0
    # One of the two speakers and one of the three noises are held out.
    assert re.search(r"2 noise files, .* and 1 held out", ended.errors)
    assert re.fullmatch(r"step 10: .*, pesq \d\.\d+, stoi 0\.\d+ \(best\)\n", ended.output)
    run = tmp_path / "runs/imse_mix"
    assert files_below(run) >= RUN_FILES
    examples = {tag.split("/")[0] for tag in read_events(run / "tensorboard").Tags()["audio"]}
    assert sorted(example.split("_")[0] for example in examples) == ["0", "1"]
    assert_curves_and_examples(run, [10], [10], sorted(examples))


def interrupted(folder: Path, options: list[str], step: int, end: Callable[[subprocess.Popen[str]], object]) -> int:
    """Start a run, call `end` on it after `step` steps, and return its exit code."""
    with start(folder, *options) as process:
        wait_until(lambda: process.poll() is not None or steps_shown(folder) >= step, 60)
        assert process.poll() is None, (folder / "errors").read_text()
        end(process)
        return process.wait(60)


def interrupt_and_resume(
    folder: Path, options: list[str], whole: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch, *interrupts: int
) -> None:
    """Resume a run with Ctrl-C after each of the steps `interrupts`, then to its end; compare it with `whole`."""
    step_of = Trainer.step
    resume = [*options, "--quiet", "--resume"]
    for last in interrupts:

        def step(trainer: Trainer, batch: Batch, epoch: int, last: int = last) -> dict[str, Tensor]:
            if trainer.global_step == last - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return step_of(trainer, batch, epoch)

        go_on = resume if (folder / "run/latest.pt").exists() else [*options, "--quiet"]
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", step)
            ended = train_here(folder, *go_on)
        assert ended.code == 130
        assert f"after step {last};" in ended.errors.splitlines()[-1]
    ended = train_here(folder, *resume)
    assert (ended.code, ended.output) == (0, whole[1].output.splitlines(keepends=True)[-1])
    assert_equal_states(folder / "run", whole[0])
    assert curves_of(folder / "run") == curves_of(whole[0])
    # Resumed once more, there is nothing left to do.
    assert train_here(folder, *resume).output == ""
    assert curves_of(folder / "run") == curves_of(whole[0])


def test_interrupted_run_is_resumed_bit_for_bit(
    tmp_path: Path, whole: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second interrupt comes before the last validation."""
    write_pairs(tmp_path)
    interrupt_and_resume(tmp_path, [*LAGGING, "--checkpoint_path=run"], whole, monkeypatch, 13, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("paper", [False, True])
def test_killed_run_is_resumed_bit_for_bit(
    pairs: Path, tmp_path: Path, whole: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch, paper: bool
) -> None:
    options = LAGGING
    if paper:
        options = [*LAGGING, *settings(train_metric_lag=0, optim_ema_decay=0)]
        whole = tmp_path / "whole", train_here(pairs, *options, "--quiet", "--checkpoint_path", tmp_path / "whole")
    write_pairs(tmp_path)
    options = [*options, "--checkpoint_path=run"]
    assert interrupted(tmp_path, options, 13, kill_group) == -signal.SIGKILL
    assert state_of(tmp_path / "run")["/global_step"] == 10
    interrupt_and_resume(tmp_path, options, whole, monkeypatch, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_stops(tmp_path: Path, whole: tuple[Path, Ended], number: int, code: int) -> None:
    """Send the signal to all processes of a run, as a terminal does on Ctrl-C, then resume it."""
    write_pairs(tmp_path)
    options = [*LAGGING, "--checkpoint_path=run"]
    assert interrupted(tmp_path, options, 2, lambda process: os.killpg(process.pid, number)) == code
    errors = (tmp_path / "errors").read_text()
    done = int(state_of(tmp_path / "run")["/global_step"])
    assert re.findall(r"stopped after step (\d+);", errors) == [str(done)]
    assert "Traceback" not in errors
    assert train_here(tmp_path, *options, "--quiet", "--resume").code == 0
    assert_equal_states(tmp_path / "run", whole[0])
    assert curves_of(tmp_path / "run") == curves_of(whole[0])


def torchrun(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run train.py in two processes."""
    script = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
    return subprocess.run(
        [sys.executable, *script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_two_processes_compute_what_one_does(pairs: Path, tmp_path: Path) -> None:
    """Steps with a discriminator are compared in tests/utils/test_distributed.py, in double precision.

    With a tiny learning rate the weights stay the same, so the first moments compare the gradients of three steps. The
    magnitude loss is smooth, so rounding cannot change its gradient much.
    """
    options = [f"--config={PAPER}", *SMALL, "--max_steps=3", "--num_workers=1", "--quiet"]
    options += settings(optim_learning_rate=1e-7, loss_phase=0, loss_complex=0, loss_metric=0)
    alone = train_here(pairs, *options, "--checkpoint_path", tmp_path / "alone")
    result = torchrun(pairs, *options, *settings(train_batch_size=1), "--checkpoint_path", tmp_path / "two")
    assert (alone.code, result.returncode) == (0, 0), result.stderr
    assert re.fullmatch(r"step 3: .*\n", result.stdout)
    assert result.stderr.count("8 pairs") == 1
    assert len(files_below(tmp_path / "two")) == len(RUN_FILES) + 1
    one, two = (state_of(tmp_path / run) for run in ("alone", "two"))
    names = [name for name in one if name.startswith("/optimizer/state/") and name.endswith("/exp_avg")]
    moments, expected = (torch.cat([state[name].flatten() for name in names]) for state in (two, one))
    assert len(names) > 100
    assert (moments - expected).norm() < 0.02 * expected.norm()


@pytest.mark.slow
def test_failing_process_ends_all(pairs: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    # The header is valid; decoding fails.
    save(tmp_path / "noisy/s_5.flac", load(pairs / "noisy/s_5.wav"), container="FLAC")
    content = bytearray((tmp_path / "noisy/s_5.flac").read_bytes())
    content[10_000:20_000] = bytes(10_000)
    (tmp_path / "noisy/s_5.flac").write_bytes(content)
    lines = (tmp_path / "training.txt").read_text().replace("noisy/s_5.wav", "noisy/s_5.flac")
    (tmp_path / "training.txt").write_text(lines)
    options = [f"--config={PAPER}", *SMALL, *settings(train_batch_size=1), "--no_cache", "--quiet", "--num_workers=1"]
    result = torchrun(tmp_path, *options, "--checkpoint_path=run")
    assert result.returncode != 0
    assert "noisy/s_5.flac" in result.stderr


def test_weights_do_not_depend_on_workers_or_cache(pairs: Path, tmp_path: Path) -> None:
    for name, *options in (("one", "--num_workers=1"), ("three", "--num_workers=3", "--no_cache")):
        assert train_here(pairs, *SHORT, *options, "--checkpoint_path", tmp_path / name).code == 0
    assert_equal_states(tmp_path / "three", tmp_path / "one")


def test_fine_tuning_starts_from_a_checkpoint(pairs: Path, tmp_path: Path, whole: tuple[Path, Ended]) -> None:
    checkpoint = whole[0] / "latest.safetensors"
    options = [*SHORT, f"--fine_tune={checkpoint}", *settings(optim_learning_rate=1e-8, optim_ema_decay=0.5)]
    assert train_here(pairs, *options, "--checkpoint_path", tmp_path / "run").code == 0
    expected = load_checkpoint(checkpoint)[0].state_dict()
    run = tmp_path / "run"
    best, latest = (load_checkpoint(run / f"{name}.safetensors")[0].state_dict() for name in ("best", "latest"))
    for key, tensor in expected.items():
        torch.testing.assert_close(best[key], tensor, rtol=0, atol=1e-6)
        assert torch.equal(best[key], latest[key])  # validated once, at the end
    assert not all(torch.equal(best[key], tensor) for key, tensor in expected.items())
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["optim"]["learning_rate"], config["optim"]["ema_decay"]) == (1e-8, 0.5)


def test_epochs_steps_and_validation_interval(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    begun, rates, step = [], [], Trainer.step  # epochs with their first steps; learning rates
    monkeypatch.setattr(train, "load_batches", lambda *a, **b: begun.append(a[2:4]) or load_batches(*a, **b))
    monkeypatch.setattr(Trainer, "step", lambda *a: rates.append((logs := step(*a))["learning_rate"].item()) or logs)
    # Two steps an epoch.
    options = [*SHORT, "--checkpoint_path", run, *settings(train_batch_size=4), "--max_steps=100"]
    ended = train_here(pairs, *options, "--training_epochs=2", "--validation_interval=0")
    assert (ended.code, re.findall(r"^step (\d+)", ended.output, re.MULTILINE)) == (0, ["2", "4"])
    settled = json.loads((run / "config.json").read_text())["train"]
    assert (settled["epochs"], settled["validation_interval"]) == (2, 0)
    # A run may be resumed for longer. The best score so far is kept.
    torch.save(torch.load(run / "latest.pt", weights_only=True) | {"best": 4.6}, run / "latest.pt")
    best = (run / "best.safetensors").read_bytes()
    ended = train_here(pairs, *options, "--training_epochs=3", "--validation_interval=5", "--resume")
    assert (ended.code, re.findall(r"^step (\d+)", ended.output, re.MULTILINE)) == (0, ["5", "6"])
    assert "(best)" not in ended.output and (run / "best.safetensors").read_bytes() == best
    assert begun == [(0, 0), (1, 0), (2, 0)]
    assert rates == pytest.approx([5e-4 * 0.99**epoch for epoch in (0, 0, 1, 1, 2, 2)], rel=1e-6)


def test_the_validation_list_selects_only_when_asked(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    # The protocol of each validation, and the network that is loaded at the end.
    monkeypatch.setattr(train, "Validation", lambda *given: used.append(given[2]) or Validation(*given))
    monkeypatch.setattr(train, "load_checkpoint", lambda path: used.append(path.name) or load_checkpoint(path))
    options = [*SHORT, "--input_validation_file=test.txt"]
    held_out = train_here(pairs, *options, "--checkpoint_path", tmp_path / "held_out")
    assert (held_out.code, used) == (0, ["overlap", "best.safetensors", "overlap"])
    assert "8 pairs" in held_out.errors and "1 held out" in held_out.errors
    step, at_end = held_out.output.splitlines()
    assert step.startswith("step 3: ")
    scores = re.fullmatch(r"test\.txt, best\.safetensors: .*, (pesq \d\.\d+, stoi 0\.\d+)", at_end)
    assert scores
    assert scores[1] not in step
    paper = train_here(pairs, *options, "--select_on=test", "--checkpoint_path", tmp_path / "paper")
    assert paper.code == 0
    assert used[3:] == ["paper"]
    assert "9 pairs" in paper.errors and "2 listed" in paper.errors and "optimistic" in paper.errors
    assert paper.output.startswith("step 3: ")
    assert len(paper.output.splitlines()) == 1
    examples = {tag.split("/")[0] for tag in read_events(tmp_path / "paper/tensorboard").Tags()["audio"]}
    assert examples == {"t_0", "t_1"}


def overfit(folder: Path, run: str, steps: int, *options: str) -> float:
    """Train on eight crops only; returns their mean PESQ with the final network."""
    ended = train_here(
        folder, f"--config={PAPER}", "--device=cpu", "--quiet", f"--checkpoint_path={run}", f"--max_steps={steps}",
        *settings(data_segment_size=OVERFIT_CROP, optim_learning_rate=OVERFIT_RATE, optim_lr_decay=OVERFIT_DECAY),
        *settings(train_epochs=steps, train_validation_interval=steps, train_batch_size=2), *options,
        # Validate on the training crops.
        "--input_validation_file=training.txt", "--select_on=test", threads=available_cores(),
    )  # fmt: skip
    assert ended.code == 0, ended.errors
    scores = re.findall(rf"^step {steps}: .*pesq ([\d.]+)", ended.output, re.MULTILINE)
    return float(scores[-1])


@pytest.mark.slow
def test_network_overfits_eight_crops(tmp_path: Path) -> None:
    """This needs correct crops, losses, labels and optimizers."""
    write_pairs(tmp_path, 8, OVERFIT_CROP / 16_000)
    paper = overfit(tmp_path, "paper", OVERFIT_STEPS)
    lagging = overfit(tmp_path, "lagging", OVERFIT_STEPS, *settings(train_metric_lag=1))
    assert paper > 3.5
    assert abs(lagging - paper) < 0.1
