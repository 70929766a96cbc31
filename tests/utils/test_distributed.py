"""Two processes with half of the batch each compute what one process does with all of it.

As a script it trains a few steps in one of the processes:

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.utils.test_distributed OUT BATCH_SIZE

In double precision: in single precision the order of summation, which differs between one process and two, decides on
the sign of some of AdamW's first steps. The labels are given, since PESQ amplifies rounding.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from config import load_config
from data.dataset import Batch
from tests.fixtures.commands import ROOT
from tests.fixtures.steps import BATCHES, SEGMENT, GivenLabels
from training.trainer import Trainer
from utils.distributed import join_group

LABELS = [(math.nan, 0.7), (0.9, 0.4)]
"""Labels of the crops of two steps."""


def train(out: Path, batch_size: int) -> None:
    """Train with this process's rows of each batch; rank 0 saves weights and logs."""
    sizes = ("model.channels=8", "stft.n_fft=126", "stft.win_size=126", "stft.hop_size=60")
    batches = (f"data.segment_size={SEGMENT}", f"train.batch_size={batch_size}")
    group = join_group("cpu")
    rows = slice(group.rank * batch_size, (group.rank + 1) * batch_size)
    labeler = GivenLabels(*(labels[rows] for labels in LABELS))
    trainer = Trainer(load_config(ROOT / "configs/imse.json", [*sizes, *batches]), group, labeler)
    logs: list[dict[str, float]] = []
    for batch in BATCHES[: len(LABELS)]:
        clean, noisy = (crops[rows].astype(np.float64) for crops in (batch.clean, batch.noisy))
        logs.append(group.mean(trainer.step(Batch(batch.indices[rows], clean, noisy, batch.dry[rows]), 0)))
    state = trainer.state_dict()
    second_is_there = group.any(group.rank == 1)  # as when a signal reaches one process only
    norm = nn.BatchNorm1d(3)
    norm.get_buffer("running_mean").fill_(group.rank + 1)
    group.share_buffers(norm)
    means = group.gather(norm.get_buffer("running_mean").tolist())
    if group.leads:
        saved = {name: state[name] for name in ("network", "discriminator", "global_step")}
        torch.save(saved | {"logs": logs, "second_is_there": second_is_there, "means": means}, out)
    group.close()


def test_two_processes_have_the_weights_and_logs_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun does, but its own start takes seconds; tests/test_train.py uses it.
    group = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.utils.test_distributed", str(tmp_path / "2.pt"), "1"]
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
        train(tmp_path / "1.pt", 2)
    finally:
        torch.set_default_dtype(torch.float32)
    alone, together = (torch.load(tmp_path / name, weights_only=True) for name in ("1.pt", "2.pt"))
    assert alone["global_step"] == together["global_step"] == len(LABELS)
    assert (alone["second_is_there"], together["second_is_there"]) == (False, True)
    assert together["means"] == [[1.0] * 3] * 2  # those of rank 0
    for part in ("network", "discriminator"):
        for name, weight in alone[part].items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(together[part][name], weight, rtol=0, atol=1e-8, msg=f"{part} {name}")
    for one, both in zip(alone["logs"], together["logs"], strict=True):
        assert {"loss", "metric", "discriminator", "gradient_norm", "learning_rate"} < one.keys()
        assert both == pytest.approx(one, rel=1e-6)


def test_a_single_process_takes_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert join_group("cuda").device == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    join_group("cuda")
    assert taken == [torch.device("cuda", 0), torch.device("cuda", 3)]  # `set_device` takes no "cuda" without an index


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    train(Path(sys.argv[1]), int(sys.argv[2]))
