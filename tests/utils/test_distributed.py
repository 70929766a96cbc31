"""Two processes with half of the batch each compute what one process does with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.commands import ROOT
from tests.training.step_in_double import STEPS


def saved_by(out: Path, processes: int) -> dict[str, Any]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, "-m", "tests.training.step_in_double", str(out), str(2 // processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert result.returncode == 0, result.stderr
    return torch.load(out, weights_only=True)


def test_two_processes_have_the_weights_and_logs_of_one(tmp_path: Path) -> None:
    alone, together = saved_by(tmp_path / "1.pt", 1), saved_by(tmp_path / "2.pt", 2)
    assert alone["global_step"] == together["global_step"] == STEPS
    assert (alone["second_is_there"], together["second_is_there"]) == (False, True)
    for part in ("network", "discriminator"):
        for name, weight in alone[part].items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(together[part][name], weight, rtol=0, atol=1e-8, msg=f"{part} {name}")
    for one, both in zip(alone["logs"], together["logs"], strict=True):
        assert {"loss", "metric", "discriminator", "gradient_norm", "learning_rate"} < one.keys()
        assert both == pytest.approx(one, rel=1e-6)
