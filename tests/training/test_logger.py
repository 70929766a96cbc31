"""TensorBoard curves of a run that was killed and resumed; tests/test_train.py looks at audio and spectrograms."""

from __future__ import annotations

import time
from pathlib import Path

from tests.fixtures.training import read_curves
from training.logger import TensorBoardLogger


def test_resumed_curves_have_no_gap_and_no_overlap(tmp_path: Path) -> None:
    killed = TensorBoardLogger(tmp_path, 0)
    for step in range(1, 16):
        killed.scalars("training", {"loss": 1, "rate": step}, step)
    killed.flush()  # killed after step 15, last saved after step 10
    assert len(read_curves(tmp_path)["training/loss"]) == 15
    time.sleep(1.1)  # files are read in the order of the second in which they were created
    resumed = TensorBoardLogger(tmp_path, 10)
    for step in range(11, 21):
        resumed.scalars("training", {"loss": 3, "rate": step}, step)
    resumed.close()
    assert read_curves(tmp_path) == {
        "training/loss": [(step, 1 if step <= 10 else 3) for step in range(1, 21)],
        "training/rate": [(step, step) for step in range(1, 21)],
    }
