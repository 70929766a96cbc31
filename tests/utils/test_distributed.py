"""Two processes with half of the batch each compute what one process does with all of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fixtures.commands import ROOT
from tests.training import step_in_double


def test_two_processes_have_the_weights_and_logs_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun does, but its own start takes seconds; tests/test_train.py uses it.
    group = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.training.step_in_double", str(tmp_path / "2.pt"), "1"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(180) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    torch.set_default_dtype(torch.float64)
    try:
        step_in_double.main(tmp_path / "1.pt", 2)
    finally:
        torch.set_default_dtype(torch.float32)
    alone, together = (torch.load(tmp_path / name, weights_only=True) for name in ("1.pt", "2.pt"))
    assert alone["global_step"] == together["global_step"] == step_in_double.STEPS
    assert (alone["second_is_there"], together["second_is_there"]) == (False, True)
    for part in ("network", "discriminator"):
        for name, weight in alone[part].items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(together[part][name], weight, rtol=0, atol=1e-8, msg=f"{part} {name}")
    for one, both in zip(alone["logs"], together["logs"], strict=True):
        assert {"loss", "metric", "discriminator", "gradient_norm", "learning_rate"} < one.keys()
        assert both == pytest.approx(one, rel=1e-6)
