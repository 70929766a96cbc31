"""A run of `train.py` that is killed many times, at random moments, gives the weights of an uninterrupted run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.training import (
    PAPER,
    SMALL,
    assert_equal_states,
    kill_group,
    settings,
    start,
    steps_shown,
    train_here,
    write_pairs,
)
from tests.utils.test_processes import wait_until

KILLS = 20
STEPS = 80
OPTIONS = [
    f"--config={PAPER}",
    *SMALL,
    *settings(train_metric_lag=1, optim_ema_decay=0.9, train_save_interval=1, train_validation_interval=20),
    f"--max_steps={STEPS}",
    "--num_workers=1",
    "--checkpoint_path=run",
]


def await_moment(process: subprocess.Popen[str], folder: Path, number: int, random: np.random.Generator) -> None:
    """Wait for a random moment, perhaps before the first step, or in a step, or while the run saves."""
    if number % 4 == 0:
        time.sleep(random.uniform(0, 6))
        return
    wait_until(lambda: process.poll() is not None or steps_shown(folder) >= 2 * number, 120)
    time.sleep(random.uniform(0, 0.2))
    if number % 4 > 1:
        wait_until(lambda: process.poll() is not None or any((folder / "run").glob(".*.part")), 120)


@pytest.mark.slow
def test_run_killed_twenty_times_has_the_same_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        write_pairs(folder)
    assert train_here(whole, *OPTIONS, "--quiet").code == 0
    half_written: set[Path] = set()
    for number in range(KILLS):
        # Before the first save there is nothing to resume.
        go_on = "--resume" if (killed / "run/latest.pt").exists() else "--overwrite"
        with start(killed, *OPTIONS, go_on) as process:
            await_moment(process, killed, number, random)
            assert process.poll() is None, (killed / "errors").read_text()
            kill_group(process)
        half_written |= set((killed / "run").glob(".*.part"))
    assert len(half_written) > KILLS // 5  # it was killed while it saved
    assert train_here(killed, *OPTIONS, "--quiet", "--resume").code == 0
    assert not list((killed / "run").glob(".*.part"))
    assert_equal_states(killed / "run", whole / "run")
    for name in ("latest", "best"):
        file = f"run/{name}.safetensors"
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
